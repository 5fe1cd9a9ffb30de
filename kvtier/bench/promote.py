"""Promote: chunks of one prefix from disk into host slots, beside O_DIRECT and vLLM's disk tier on the same chunks."""

from __future__ import annotations

import mmap
import os
import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from kvtier.bench import kv
from kvtier.bench.base import GB, Conditions, Result, Timings, Work, time_in_turns
from kvtier.bench.ceilings import DirectFile, aligned, cached_share, drop_page_cache, has_direct_io
from kvtier.bench.peers import VllmFs
from kvtier.bench.traffic import Traffic, fill, plan_for
from kvtier.codec.registry import codec_for
from kvtier.helper.depot import READS_AHEAD

_MAX_DATA_BYTES: Final = 1 << 30
MAX_THREADS: Final = 8


def n_threads() -> int:
    """Promote threads: a processor each, up to as many as outrun any drive."""
    return max(1, min(MAX_THREADS, len(os.sched_getaffinity(0))))


def run(conditions: Conditions) -> Iterator[Result]:
    """Rounds of the same prefix, cold and hot. GB/s are of KV that landed in slots."""
    conditions = replace(conditions, data_bytes=min(conditions.data_bytes, _MAX_DATA_BYTES))
    ways = _Ways(conditions)
    n_bytes = ways.n_bytes
    n_rounds = min(conditions.n_repeats, 7)
    try:
        conditions.progress(f"from the disk, {n_rounds} rounds")
        cold = time_in_turns(ways.works(cold=True), n_rounds, warm=False)
        cpu_s_per_gb = ways.cpu_s_per_gb()
        if ways.warmest > 0.02:
            conditions.note(f"promote.cold: up to {ways.warmest:.0%} of the store was still in the page cache")
        yield _rates("promote.cold", cold, n_bytes)
        yield from _ratios("promote.cold", cold, n_bytes)
        yield Result("promote.cold_cpu_s_per_gb", cpu_s_per_gb, "s/GB")
        yield from _cores("promote.cores_for_odirect", cold, "odirect", cpu_s_per_gb, n_bytes)
        yield from _cores("promote.cores_for_twice_vllm_fs", cold, "vllm_fs", 2 * cpu_s_per_gb, n_bytes)
        conditions.progress(f"from the page cache, {n_rounds} rounds")
        hot = time_in_turns(ways.works(cold=False), n_rounds)
        yield _rates("promote.hot", hot, n_bytes)
        yield from _ratios("promote.hot", hot, n_bytes)
        yield Result("promote.hot_cpu_s_per_gb", ways.cpu_s_per_gb(), "s/GB")
    finally:
        ways.close()


def _rates(name: str, timings: Timings, n_bytes: int) -> Result:
    peers = {peer: timings.rate(peer, n_bytes) for peer in timings.seconds if peer != "kvtier"}
    return Result(name, timings.rate("kvtier", n_bytes), "GB/s", peers)


def _ratios(name: str, timings: Timings, n_bytes: int) -> Iterator[Result]:
    for peer in ("odirect", "vllm_fs"):
        if peer in timings.seconds:
            rates = {peer: timings.rate(peer, n_bytes), "kvtier": timings.rate("kvtier", n_bytes)}
            yield Result(f"{name}_vs_{peer}", timings.speedup("kvtier", peer), "x", rates)


def _cores(name: str, timings: Timings, peer: str, cpu_s_per_gb: float, n_bytes: int) -> Iterator[Result]:
    """Processors that promote as many GB/s of KV as `peer`, at the seconds of processor time that one GB took here.

    A floor: it takes them to be busy all the time, and the disk to have the frames as fast.
    """
    if peer in timings.seconds:
        here = {"here": float(len(os.sched_getaffinity(0)))}
        yield Result(name, cpu_s_per_gb * timings.rate(peer, n_bytes), "cores", here)


class _Ways:
    """The store, filled, and its peers."""

    def __init__(self, conditions: Conditions) -> None:
        data = kv.kv_for(conditions)
        self._chunk_bytes = conditions.chunk_bytes
        self._n_chunks = conditions.n_chunks
        self.n_bytes = self._n_chunks * self._chunk_bytes
        self._cpu_s: list[float] = []  # of kvtier's rounds
        self.warmest = 0.0
        self._dtype = data.dtype
        self._path = conditions.folder / "kvtier"
        self._pool = aligned(self.n_bytes)
        self._traffic: Traffic | None = None
        conditions.progress(f"writing {self._n_chunks} chunks")
        fill(self._path, data.chunks, self._n_chunks, codec_for(data.dtype))
        self._direct = None
        if has_direct_io(conditions.folder):
            self._direct = DirectFile(conditions.folder / "direct.bin", self.n_bytes)
            self._direct.write()
        else:
            conditions.note("no O_DIRECT on this file system: no ceiling of the disk; name a disk with --dir")
        self._vllm = None if self._chunk_bytes % mmap.PAGESIZE else VllmFs.open(conditions.folder / "vllm")
        if self._vllm is None:
            conditions.note("vLLM is not installed, or chunks are no whole pages: no comparison with its disk tier")
        else:
            for row in range(self._n_chunks):
                chunk = data.chunks[row % len(data.chunks)]
                self._pool[row * self._chunk_bytes : (row + 1) * self._chunk_bytes] = chunk
            self._vllm.store(range(self._n_chunks), self._pool, self._chunk_bytes)
        conditions.note(
            f"promote: {n_threads()} threads and {READS_AHEAD} more, as in an engine's helper process; "
            "vllm_fs and odirect: one, as one request has it"
        )

    def works(self, *, cold: bool) -> dict[str, Work]:
        """All ways, each from where `cold` says it begins."""
        numbers = range(self._n_chunks)
        works = {"kvtier": Work(self._promote, prepare=lambda: self._open(cold=cold), after=self._close)}
        if self._direct is not None:
            works["odirect"] = Work(self._direct.read)
        if (vllm := self._vllm) is not None:
            folder = self._path.with_name("vllm")
            works["vllm_fs"] = Work(
                lambda: vllm.load(numbers, self._pool, self._chunk_bytes),
                prepare=(lambda: drop_page_cache(folder)) if cold else None,
            )
        return works

    def close(self) -> None:
        """Let go of the files."""
        self._close()

    def cpu_s_per_gb(self) -> float:
        """Processor time of kvtier's rounds since the last call, the middle one."""
        seconds, self._cpu_s = self._cpu_s, []
        return statistics.median(seconds) / (self.n_bytes / GB)

    def _open(self, *, cold: bool) -> None:
        if cold:
            drop_page_cache(self._path)
            self.warmest = max(self.warmest, cached_share(self._path))
        else:
            for shard in self._path.glob("shard-*.lmdb"):
                _read_through(shard)
        plan = plan_for(
            self._path, self._n_chunks, self._chunk_bytes, self._dtype, n_threads(), n_reads_ahead=READS_AHEAD
        )
        self._traffic = Traffic(plan, self._pool)

    def _promote(self) -> None:
        assert self._traffic is not None
        before_s = time.process_time()
        self._traffic.promote(range(self._n_chunks))
        self._cpu_s.append(time.process_time() - before_s)

    def _close(self) -> None:
        if self._traffic is not None:
            self._traffic.stop()
            self._traffic = None


def _read_through(path: os.PathLike[str]) -> None:
    """Have what a sparse file holds in the page cache."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        piece = bytearray(4 << 20)
        at = 0
        while n := os.preadv(descriptor, [piece], at):
            at += n
    finally:
        os.close(descriptor)
