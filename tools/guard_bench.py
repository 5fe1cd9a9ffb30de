"""What keys cost: frames sealed and opened plain, with HMAC and with AES-GCM, in turns, by CPU time of the thread.

CPU time, because what else runs on the machine then hardly matters. docs/performance.md has a run.
"""

import statistics
import time

import numpy as np

from kvtier.codec.aesgcm import AesGcm
from kvtier.codec.frame import frame_bound, open_into, seal_into
from kvtier.codec.guard import PLAIN, Guard, Hmac
from kvtier.codec.registry import codec_for
from kvtier.types import ChunkKey

CHUNK_BYTES = 2 << 20
N_CHUNKS, N_ROUNDS = 24, 9
KEY = ChunkKey(bytes(range(56)))
SECRET = bytes(range(32))
GUARDS: dict[str, Guard] = {"plain": PLAIN, "hmac": Hmac(SECRET), "aes-gcm": AesGcm(SECRET)}
CODEC = codec_for("bfloat16")


def main() -> None:
    """Print GB of KV per second of CPU: the median round, the worst and the best."""
    rng = np.random.default_rng(0)
    values = (rng.normal(size=CHUNK_BYTES // 2).astype(np.float32) for _ in range(N_CHUNKS))
    chunks = [memoryview((value.view(np.uint32) >> 16).astype(np.uint16).tobytes()) for value in values]
    room = {name: memoryview(bytearray(frame_bound(CHUNK_BYTES, CODEC, guard))) for name, guard in GUARDS.items()}
    slot = memoryview(bytearray(CHUNK_BYTES))

    def seal(name: str, chunk: memoryview) -> memoryview:
        return room[name][: seal_into(chunk, room[name], key=KEY, codec=CODEC, guard=GUARDS[name])]

    frames = {name: [memoryview(bytes(seal(name, chunk))) for chunk in chunks] for name in GUARDS}
    rates: dict[tuple[str, str], list[float]] = {}
    for n in range(N_ROUNDS):
        names = list(GUARDS)
        for name in names[n % 3 :] + names[: n % 3]:
            began_s = time.thread_time()
            for chunk in chunks:
                seal(name, chunk)
            sealed_s = time.thread_time()
            for frame in frames[name]:
                open_into(frame, slot, key=KEY, guard=GUARDS[name])
            opened_s = time.thread_time()
            for verb, took_s in (("seal", sealed_s - began_s), ("open", opened_s - sealed_s)):
                rates.setdefault((name, verb), []).append(N_CHUNKS * CHUNK_BYTES / took_s / 1e9)
    print(f"chunks of {CHUNK_BYTES >> 20} MiB, ratio {N_CHUNKS * CHUNK_BYTES / sum(map(len, frames['plain'])):.3f}")
    for (name, verb), figures in rates.items():
        print(f"{name:8} {verb}  {statistics.median(figures):.2f} GB/s ({min(figures):.2f} to {max(figures):.2f})")


if __name__ == "__main__":
    main()
