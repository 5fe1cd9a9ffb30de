"""Scheduler: what full traffic of the disk tier does to the engine's scheduler thread, beside an idle machine.

The stand-in for the scheduler does 0.25 ms of dictionary work, waits for 1 ms as for the device, and so on. A step
counts from when its wait was due to end: that a waiting thread gets processor and interpreter lock late is part of it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from statistics import median
from typing import Final

import numpy as np

from kvtier.bench import kv
from kvtier.bench.base import Conditions, Result
from kvtier.bench.movers import Done, Movers, Task, shared_pool
from kvtier.bench.promote import n_threads
from kvtier.bench.traffic import fill
from kvtier.codec.registry import codec_for
from kvtier.depot import SharedPool

QUANTUM_S: Final = 0.25e-3
WAIT_S: Final = 1e-3
_PHASE_S: Final = 1.5
_QUICK_PHASE_S: Final = 0.2
_POOL_CHUNKS: Final = 64
_STORE_BYTES: Final = 256 << 20


class Scheduler:
    """The stand-in. Made while nothing else runs: it measures how much work a quantum is."""

    def __init__(self) -> None:
        self._table = dict.fromkeys(range(4096), 0)
        n_turns, took_s = 64, 0.0
        while took_s < QUANTUM_S:
            n_turns += n_turns // 8
            took_s = min(self._timed_s(n_turns) for _ in range(9))
        self._n_turns = max(1, int(n_turns * QUANTUM_S / took_s))

    def steps_s(self, seconds: float, wait_s: float) -> list[float]:
        """Seconds of each step for so long."""
        steps = []
        end_s = time.perf_counter() + seconds
        now = time.perf_counter()
        while now < end_s:
            due_s = now + wait_s
            if wait_s:
                time.sleep(wait_s)
            self._work(self._n_turns)
            now = time.perf_counter()
            steps.append(now - due_s)
        return steps

    def _timed_s(self, n_turns: int) -> float:
        started = time.perf_counter()
        self._work(n_turns)
        return time.perf_counter() - started

    def _work(self, n_turns: int) -> None:
        table = self._table
        for i in range(n_turns):
            table[i & 4095] = table.get(i * 7 & 4095, 0) + 1


def task_for(conditions: Conditions, *, loads: bool, spills: bool) -> Task:
    """Endless traffic over a store that was filled in the conditions' folder, if it is not yet."""
    data = kv.kv_for(conditions)
    n_chunks = max(8, min(conditions.data_bytes, _STORE_BYTES) // conditions.chunk_bytes)
    path = conditions.folder / "kvtier"
    if not path.exists():
        fill(path, data.chunks, n_chunks, codec_for(data.dtype))
    return Task(path, n_chunks, conditions.chunk_bytes, data.dtype, n_threads(), loads=loads, spills=spills)


def pool_for(conditions: Conditions) -> SharedPool:
    """A pool of KV that a helper process can map too."""
    chunks = kv.kv_for(conditions).chunks
    pool = shared_pool(_POOL_CHUNKS * conditions.chunk_bytes)
    for row in range(_POOL_CHUNKS):
        pool.view[row * conditions.chunk_bytes : (row + 1) * conditions.chunk_bytes] = chunks[row % len(chunks)]
    return pool


def run(conditions: Conditions) -> Iterator[Result]:
    """Steps while idle, beside a helper process, which is what vLLM gets, and beside threads, in turns."""
    pool = pool_for(conditions)
    try:
        yield from _run(conditions, pool)
    finally:
        os.close(pool.fd)


def _run(conditions: Conditions, pool: SharedPool) -> Iterator[Result]:
    phase_s = _QUICK_PHASE_S if conditions.quick else _PHASE_S
    task = task_for(conditions, loads=True, spills=True)
    scheduler = Scheduler()
    movers: dict[str, Movers | None] = {
        "idle": None,
        "helper": Movers(pool, helper=True),
        "threads": Movers(pool, helper=False),
    }
    steps: dict[str, list[list[float]]] = {name: [] for name in movers}
    busy: dict[str, list[float]] = {name: [] for name in movers}
    done: dict[str, list[Done]] = {name: [] for name in movers}
    for number in range(conditions.n_repeats):
        conditions.progress(f"round {number + 1} of {conditions.n_repeats}")
        for name, mover in movers.items():
            if mover is not None:
                mover.start(task)
            try:
                steps[name].append(scheduler.steps_s(phase_s, WAIT_S))
                busy[name].append(median(scheduler.steps_s(phase_s / 2, 0.0)))
            finally:
                if mover is not None:
                    done[name].append(mover.stop())
    for percent in (50, 99):
        yield from _percentile(percent, steps)
    yield Result(
        "scheduler.busy_median_vs_idle",
        _ratio(busy, "helper"),
        "x",
        {"threads": _ratio(busy, "threads")},
    )
    for name, what in (("gbps", "GB/s"), ("cpu_s_per_gb", "s/GB")):
        in_helper, in_threads = (median(getattr(each, name) for each in done[way]) for way in ("helper", "threads"))
        yield Result(f"scheduler.traffic_{name}", in_helper, what, {"threads": in_threads})
    conditions.note(f"scheduler: steps of {QUANTUM_S * 1e3} ms, {WAIT_S * 1e3:.0f} ms apart; {task.n_threads} decoders")


def _percentile(percent: int, steps: dict[str, list[list[float]]]) -> Iterator[Result]:
    rounds = {name: [float(np.percentile(each, percent)) * 1e3 for each in all_] for name, all_ in steps.items()}
    idle, helper, threads = (median(rounds[name]) for name in ("idle", "helper", "threads"))
    yield Result(f"scheduler.p{percent}_ms", helper, "ms", {"idle": idle, "threads": threads})
    if percent == 99:
        yield Result("scheduler.p99_vs_idle", _ratio(rounds, "helper"), "x", {"threads": _ratio(rounds, "threads")})


def _ratio(rounds: dict[str, list[float]], name: str) -> float:
    """To idle: the median of the rounds' own ratios."""
    return median(loaded / idle for loaded, idle in zip(rounds[name], rounds["idle"], strict=True))
