"""Codec: chunks -> frames and back on one thread, beside plain zstd level 1, memcpy and the entropy of the bytes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle

import numpy as np

from kvtier.bench import kv
from kvtier.bench.base import Conditions, Result, time_in_turns
from kvtier.bench.ceilings import memcpy
from kvtier.bench.kv import KvData
from kvtier.bench.peers import PlainZstd
from kvtier.codec.frame import frame_bound, open_into, seal_into
from kvtier.codec.registry import RAW, codec_for
from kvtier.errors import FrameCorruptError
from kvtier.types import NAMESPACE_BYTES, ChunkKey

_KEY = ChunkKey(b"bench".ljust(NAMESPACE_BYTES, b"\0") + bytes(32))
_MAX_BYTES = 32 << 20
"""KV to go through, chunk by chunk: more than the caches of one core hold."""


def run(conditions: Conditions) -> Iterator[Result]:
    """bf16, as most models keep their KV, under `codec.*`; all of a capture besides, as `codec.DTYPE.TOKENS.*`."""
    conditions.note("codec: GB/s are of KV in each second of this thread's processor time")
    captured = kv.captures(conditions.sample)
    main = max((data for data in captured if data.dtype == "bfloat16"), key=lambda data: data.chunk_bytes, default=None)
    main = main or kv.synthetic(conditions.chunk_bytes, 16)
    conditions.note(f"codec.*: {main.source}, chunks of {main.chunk_bytes} bytes")
    yield from _measure("codec", main, conditions)
    for data in captured:
        if data is not main:
            name = f"codec.{data.dtype}.{data.tokens_per_chunk}_tokens"
            conditions.note(f"{name}.*: {data.source}, chunks of {data.chunk_bytes} bytes")
            yield from _measure(name, data, conditions)


def _measure(name: str, data: KvData, conditions: Conditions) -> Iterator[Result]:
    chunks = data.chunks[: max(2, min(conditions.data_bytes, _MAX_BYTES) // data.chunk_bytes)]
    n_rounds = conditions.n_repeats * len(chunks)
    conditions.progress(f"{data.dtype}, {len(chunks)} chunks of {data.chunk_bytes} bytes, {n_rounds} rounds")
    codec = codec_for(data.dtype)
    room = memoryview(bytearray(frame_bound(data.chunk_bytes, codec)))
    zstd = PlainZstd(data.chunk_bytes)
    frames = [memoryview(bytes(room[: seal_into(chunk, room, key=_KEY, codec=codec)])) for chunk in chunks]
    payloads = [memoryview(bytes(zstd.compress(chunk))) for chunk in chunks]
    raw_frames = [memoryview(bytes(room[: seal_into(chunk, room, key=_KEY, codec=RAW)])) for chunk in chunks]
    slots = [memoryview(bytearray(data.chunk_bytes)) for _ in chunks]
    for chunk, frame, slot in zip(chunks, frames, slots, strict=True):
        open_into(frame, slot, key=_KEY)
        if slot != chunk:
            raise FrameCorruptError(f"bench codec: a {data.dtype} chunk did not come back as it went in")
    noise = memoryview(np.random.default_rng(3).bytes(data.chunk_bytes))
    timings = time_in_turns(
        {
            "seal": _each(lambda i: seal_into(chunks[i], room, key=_KEY, codec=codec), len(chunks)),
            "zstd1_in": _each(lambda i: zstd.compress(chunks[i]), len(chunks)),
            # Each to a slot that was written long ago, as those of a host pool are: none is in the processor's cache.
            "open": _each(lambda i: open_into(frames[i], slots[i], key=_KEY), len(chunks)),
            "zstd1_out": _each(lambda i: zstd.decompress(payloads[i], slots[i - len(slots) // 3]), len(chunks)),
            "raw_in": _each(lambda i: seal_into(chunks[i], room, key=_KEY, codec=RAW), len(chunks)),
            "raw_out": _each(lambda i: open_into(raw_frames[i], slots[i - 2 * len(slots) // 3], key=_KEY), len(chunks)),
            "noise": lambda: seal_into(noise, room, key=_KEY, codec=codec),
            "noise_zstd1": lambda: zstd.compress(noise),
            "memcpy": memcpy(data.chunk_bytes),
        },
        n_rounds,
        clock=time.thread_time,
    )
    n_bytes = len(chunks) * data.chunk_bytes
    against = {"zstd1": n_bytes / sum(map(len, payloads)), "entropy_of_bytes": entropy_bound(chunks, data.dtype)}
    yield Result(f"{name}.ratio", n_bytes / sum(map(len, frames)), "x", against)
    yield Result(f"{name}.compress_vs_zstd1", timings.speedup("seal", "zstd1_in"), "x")
    yield Result(f"{name}.decompress_vs_zstd1", timings.speedup("open", "zstd1_out"), "x")
    for what, ours, works in (
        ("compress", "seal", {"zstd1": "zstd1_in", "no_compression": "raw_in", "memcpy": "memcpy"}),
        ("decompress", "open", {"zstd1": "zstd1_out", "no_compression": "raw_out", "memcpy": "memcpy"}),
        ("compress_noise", "noise", {"zstd1": "noise_zstd1", "no_compression": "raw_in"}),
    ):
        peers = {label: timings.rate(work, data.chunk_bytes) for label, work in works.items()}
        yield Result(f"{name}.{what}", timings.rate(ours, data.chunk_bytes), "GB/s", peers)


def _each(step: Callable[[int], object], n: int) -> Callable[[], object]:
    """Work: `step` for another chunk each time. A pair of ours and theirs is then milliseconds apart, not seconds."""
    turns = cycle(range(n))
    return lambda: step(next(turns))


def entropy_bound(chunks: Sequence[memoryview], dtype: str) -> float:
    """Best ratio of any coder that takes each byte of a value by itself, knowing only how often each byte occurs.

    Shannon's order-0 entropy of the high and the low bytes for 16-bit values, of all bytes for others. Over all chunks
    together, so the estimate's own bias (255 / 2n nats a plane) is below 1e-4.
    """
    raw = np.concatenate([np.frombuffer(chunk, dtype=np.uint8) for chunk in chunks])
    n_planes = 2 if dtype in ("bfloat16", "float16") else 1
    bits = [_entropy_bits(np.bincount(raw[plane::n_planes], minlength=256)) for plane in range(n_planes)]
    return 8 / max(1e-9, statistics.fmean(bits))


def _entropy_bits(counts: np.ndarray) -> float:
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log2(shares)).sum())
