"""Micro-benchmarks of what a chunk passes through: codec, disk store, eviction policy; one table out.

A chunk is 4 MiB of bf16 with normally distributed values, which compress about as well as real KV. Each figure is the
best of several rounds on one thread with the files in the page cache: what the code costs, not what the disk gives.
"""

import argparse
import hashlib
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from kvtier.codec.base import Codec
from kvtier.codec.frame import frame_bound, open_into, seal_into
from kvtier.codec.registry import RAW, codec_for
from kvtier.policy.slru import Slru
from kvtier.store.lmdb import LmdbStore
from kvtier.types import NAMESPACE_BYTES, ChunkKey

CHUNK_BYTES = 4 << 20
N_CHUNKS = 48
BATCH = 4
"""Frames in one write transaction, as the spiller does."""
N_KEYS = 100_000
_ROUNDS = 5
_ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    """Run everything and print the table."""
    parser = argparse.ArgumentParser(description="Micro-benchmarks of codec, store and policy.")
    parser.add_argument(
        "--dir", type=Path, default=_ROOT / ".cache", help="where the store's files go (default: .cache)"
    )
    folder: Path = parser.parse_args().dir
    folder.mkdir(parents=True, exist_ok=True)
    chunk = _bfloat16_like()
    print(f"{'what':38} {'best of ' + str(_ROUNDS):>12}")
    for name, codec in (("codec bf16", codec_for("bfloat16")), ("codec raw", RAW)):
        _codec(name, codec, chunk)
    work = Path(tempfile.mkdtemp(prefix="bench.", dir=folder))
    try:
        _store(work / "store", chunk)
    finally:
        shutil.rmtree(work)
    _policy()
    return 0


def _codec(name: str, codec: Codec, chunk: memoryview) -> None:
    out, back, key = memoryview(bytearray(frame_bound(CHUNK_BYTES, codec))), bytearray(CHUNK_BYTES), _key(0)
    n_bytes = seal_into(chunk, out, key=key, codec=codec)
    frame = out[:n_bytes]
    seal_s = _best(lambda: seal_into(chunk, out, key=key, codec=codec))
    open_s = _best(lambda: open_into(frame, memoryview(back), key=key))
    assert back == chunk
    _row(f"{name}: seal", f"{CHUNK_BYTES / seal_s / 1e9:.2f} GB/s", f"x{CHUNK_BYTES / n_bytes:.3f}")
    _row(f"{name}: open and verify", f"{CHUNK_BYTES / open_s / 1e9:.2f} GB/s")


def _store(path: Path, chunk: memoryview) -> None:
    codec = codec_for("bfloat16")
    out = memoryview(bytearray(frame_bound(CHUNK_BYTES, codec)))
    frames = {}
    for number in range(N_CHUNKS):
        frames[_key(number)] = bytes(out[: seal_into(chunk, out, key=_key(number), codec=codec)])
    keys = list(frames)
    frame_bytes = sum(map(len, frames.values()))
    slot = memoryview(bytearray(CHUNK_BYTES))
    store = LmdbStore.open(path, 1 << 30)
    try:

        def write() -> None:
            for first in range(0, N_CHUNKS, BATCH):
                batch = keys[first : first + BATCH]
                shard = first // BATCH % store.n_shards
                store.write(shard, [(key, memoryview(frames[key])) for key in batch], [])

        def read() -> None:
            for number, key in enumerate(keys):
                with store.read(number // BATCH % store.n_shards, key) as frame:
                    assert frame is not None
                    open_into(frame, slot, key=key)

        write_s = _best(write)
        sync_s = _best(store.sync, rounds=1)
        read_s = _best(read)
    finally:
        store.close()
    _row("store: write frames", f"{frame_bytes / write_s / 1e9:.2f} GB/s", f"then {sync_s:.2f} s to sync")
    _row("store: read and open into a slot", f"{N_CHUNKS * CHUNK_BYTES / read_s / 1e9:.2f} GB/s", "of KV")


def _policy() -> None:
    keys = [_key(number) for number in range(N_KEYS)]
    policy = Slru(N_KEYS)

    def over_all(step: Callable[[ChunkKey], None]) -> None:
        for key in keys:
            step(key)

    insert_s = _best(lambda: over_all(policy.insert), rounds=1)
    touch_s = _best(lambda: over_all(policy.touch))
    _row(f"policy: insert, {N_KEYS:,} keys", f"{insert_s / N_KEYS * 1e9:.0f} ns")
    _row("policy: touch", f"{touch_s / N_KEYS * 1e9:.0f} ns")


def _bfloat16_like() -> memoryview:
    values = np.random.default_rng(1).normal(0, 1, CHUNK_BYTES // 2).astype(np.float32)
    return memoryview((values.view(np.uint32) >> 16).astype(np.uint16).tobytes())


def _key(number: int) -> ChunkKey:
    return ChunkKey(b"bench".ljust(NAMESPACE_BYTES, b"\0") + hashlib.sha256(str(number).encode()).digest())


def _best(work: Callable[[], object], rounds: int = _ROUNDS) -> float:
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def _row(what: str, figure: str, note: str = "") -> None:
    print(f"{what:38} {figure:>12}  {note}".rstrip(), flush=True)


if __name__ == "__main__":
    sys.exit(main())
