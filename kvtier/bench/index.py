"""Index: a store of very many chunks, written once -> what opening it costs, in a fresh process as after a restart."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import kvtier
from kvtier.bench.base import Conditions, Result
from kvtier.bench.ceilings import drop_page_cache
from kvtier.bench.peers import FilePerChunk
from kvtier.bench.store import key_of
from kvtier.errors import StoreError
from kvtier.store.lmdb import LmdbStore

_N_CHUNKS, _N_CHUNKS_QUICK = 1_000_000, 20_000
_N_FILES, _N_FILES_QUICK = 50_000, 2_000
"""Of the peer that keeps a file per chunk; a million would take longer to make than all else here."""

_FRAME_BYTES = 2_100
"""What is stored for each chunk: as little as gives it pages of its own, as real frames have. Shorter ones would lie in
LMDB's trees, which would be three times as large and in one piece. The index reads no frame."""

_BATCH = 4_096
_TIMEOUT_S = 600


def run(conditions: Conditions) -> Iterator[Result]:
    """Seconds a million, bytes a chunk, and milliseconds for a prefix of 1,000 chunks on the scheduler thread.

    `lookup_1000_ms` is of a prefix that is on disk and is promoted, its chunks written at any time, or together.
    `landing_us` is what each of these promotions costs a transfer thread under the cache's lock: its own end, and the
    beginning of the next in line.
    """
    n_chunks = _N_CHUNKS_QUICK if conditions.quick else _N_CHUNKS
    n_files = _N_FILES_QUICK if conditions.quick else _N_FILES
    path = conditions.folder / "store"
    capacity_bytes = n_chunks * conditions.chunk_bytes * 2
    n_shards = _fill(conditions, path, capacity_bytes, n_chunks)
    conditions.note(f"index: {n_chunks:,} chunks in {n_shards} shards, frames of {_FRAME_BYTES} bytes in their place")
    hot, cold = [], []
    for number in range(min(3, conditions.n_repeats)):
        conditions.progress(f"opening {n_chunks:,} chunks in a fresh process, round {number + 1}")
        hot.append(_child("open", path, capacity_bytes, n_chunks))
        drop_page_cache(path)
        cold.append(_child("open", path, capacity_bytes, n_chunks))
    keys = _child("keys", path, capacity_bytes, n_chunks)
    conditions.progress(f"listing {n_files:,} files, one per chunk")
    files_s = _list_files(conditions.folder / "files", n_files)
    per_million = 1e6 / n_chunks

    def middle(children: list[dict[str, float]], what: str) -> float:
        return statistics.median(child[what] for child in children)

    hot_s, keys_s = middle(hot, "open_s") * per_million, keys["open_s"] * per_million
    files_s *= 1e6 / n_files
    yield Result("index.open_s_per_million", hot_s, "s", {"keys_in_a_dict": keys_s, "file_per_chunk": files_s})
    cold_s = middle(cold, "open_s") * per_million
    yield Result("index.open_cold_s_per_million", cold_s, "s", {"page_cache": hot_s, "keys_in_a_dict": keys_s})
    yield Result(
        "index.rss_bytes_per_chunk",
        middle(hot, "rss_bytes") / n_chunks,
        "B",
        {"private": middle(hot, "private_bytes") / n_chunks, "keys_in_a_dict": keys["rss_bytes"] / n_chunks},
    )
    yield Result(
        "index.lookup_1000_ms",
        middle(hot, "lookup_disk_ms"),
        "ms",
        {"written_together": middle(hot, "lookup_together_ms"), "keys_in_a_dict": keys["lookup_ms"]},
    )
    yield Result("index.lookup_1000_in_host_ms", middle(hot, "lookup_host_ms"), "ms", {})
    yield Result("index.landing_us", middle(hot, "landing_us"), "us", {})
    for what in ("insert_ns", "touch_ns"):
        yield Result(f"index.policy_{what}", middle(hot, what), "ns", {"ordered_dict": keys[what]})


def _fill(conditions: Conditions, path: Path, capacity_bytes: int, n_chunks: int) -> int:
    """Write `n_chunks` small frames into as many shards as that many chunks of their real size would be in."""
    store = LmdbStore.open(path, capacity_bytes)
    frame = memoryview(bytes(_FRAME_BYTES))
    try:
        per_shard = -(-n_chunks // store.n_shards)
        for shard in range(store.n_shards):
            if shard % 32 == 0:
                conditions.progress(f"writing {n_chunks:,} chunks, shard {shard + 1} of {store.n_shards}")
            numbers = range(shard * per_shard, min(n_chunks, (shard + 1) * per_shard))
            for first in range(0, len(numbers), _BATCH):
                store.write(shard, [(key_of(number), frame) for number in numbers[first : first + _BATCH]], [])
        store.sync()
        return store.n_shards
    finally:
        store.close()


def _child(what: str, path: Path, capacity_bytes: int, n_chunks: int) -> dict[str, float]:
    """Run `opening` in a process of its own: memory that others have freed would hide what the index takes."""
    package = str(Path(kvtier.__path__[0]).parent)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))}
    command = [sys.executable, "-m", "kvtier.bench.opening", what, str(path), str(capacity_bytes), str(n_chunks)]
    child = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False, env=environment)  # noqa: S603 - our own module
    if child.returncode != 0:
        raise StoreError(f"{path}: the process that opens the index failed: {child.stderr[-1000:]}")
    figures: dict[str, float] = json.loads(child.stdout)
    return figures


def _list_files(folder: Path, n_files: int) -> float:
    """Seconds to learn name and length of every file, as a tier that keeps a file per chunk must after a restart."""
    files = FilePerChunk(folder)
    frame = memoryview(bytes(_FRAME_BYTES))
    for number in range(n_files):
        files.write(number, frame)
    started = time.perf_counter()
    found = {entry.name: entry.stat().st_size for place in os.scandir(folder) for entry in os.scandir(place)}
    elapsed_s = time.perf_counter() - started
    if len(found) != n_files:
        raise StoreError(f"{folder}: {len(found)} files of {n_files}")
    return elapsed_s
