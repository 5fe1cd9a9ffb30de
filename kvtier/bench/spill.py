"""Spill: chunks from host slots to disk without end, by a helper process and by threads, scheduler at rest or busy."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from statistics import median
from typing import Final

from kvtier.bench.base import GB, Conditions, Result
from kvtier.bench.ceilings import DirectFile, has_direct_io
from kvtier.bench.movers import Done, Movers
from kvtier.bench.scheduler import Scheduler, pool_for, task_for
from kvtier.depot import SharedPool

_PHASE_S: Final = 2.0
_QUICK_PHASE_S: Final = 0.3
_DIRECT_BYTES: Final = 256 << 20


def run(conditions: Conditions) -> Iterator[Result]:
    """Both ways in turns. GB/s are of KV, before compression; syncs every five seconds, as an engine has them."""
    pool = pool_for(conditions)
    try:
        yield from _run(conditions, pool)
    finally:
        os.close(pool.fd)


def _run(conditions: Conditions, pool: SharedPool) -> Iterator[Result]:
    phase_s = _QUICK_PHASE_S if conditions.quick else _PHASE_S
    task = task_for(conditions, loads=False, spills=True)
    scheduler = Scheduler()
    movers: dict[str, Movers] = {"helper": Movers(pool, helper=True), "threads": Movers(pool, helper=False)}
    resting: dict[str, list[Done]] = {name: [] for name in movers}
    working: dict[str, list[Done]] = {name: [] for name in movers}
    slower: dict[str, list[float]] = {name: [] for name in movers}
    odirect: list[float] = []
    for number in range(conditions.n_repeats):
        conditions.progress(f"round {number + 1} of {conditions.n_repeats}")
        if has_direct_io(conditions.folder):
            odirect.append(_direct_write_gbps(conditions))
        alone = len(scheduler.steps_s(phase_s, 0.0))
        for name, mover in movers.items():
            mover.start(task)
            try:
                time.sleep(phase_s)
            finally:
                resting[name].append(mover.stop())
            mover.start(task)
            try:
                slower[name].append(alone / max(1, len(scheduler.steps_s(phase_s, 0.0))))
            finally:
                working[name].append(mover.stop())
    ceiling = {"odirect": median(odirect)} if odirect else {}
    yield _result("spill.sustained", "gbps", "GB/s", resting, ceiling)
    yield _result("spill.cpu_s_per_gb", "cpu_s_per_gb", "s/GB", resting, {})
    yield _result("spill.busy_sustained", "gbps", "GB/s", working, {})
    yield _result("spill.busy_cpu_s_per_gb", "cpu_s_per_gb", "s/GB", working, {})
    yield Result("spill.scheduler_slowdown", median(slower["helper"]), "x", {"threads": median(slower["threads"])})
    conditions.note(
        "spill: busy means beside a scheduler thread that never waits; slowdown is of what that one gets done"
    )


def _result(name: str, what: str, unit: str, done: dict[str, list[Done]], ceiling: dict[str, float]) -> Result:
    helper, threads = (median(getattr(each, what) for each in done[way]) for way in ("helper", "threads"))
    return Result(name, helper, unit, {"threads": threads, **ceiling})


def _direct_write_gbps(conditions: Conditions) -> float:
    file = DirectFile(conditions.folder / "direct.bin", min(_DIRECT_BYTES, conditions.data_bytes))
    started = time.perf_counter()
    file.write()
    return file.n_bytes / (time.perf_counter() - started) / GB
