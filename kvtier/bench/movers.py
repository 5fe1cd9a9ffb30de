"""Who moves the bytes: the helper process that engines with a shared pool have, or threads of this one. Traffic -> CPU.

`Done` is what a benchmark compares.
"""

from __future__ import annotations

import mmap
import os
import time
from pathlib import Path
from typing import NamedTuple

from kvtier.bench.traffic import Traffic, plan_for
from kvtier.depot import SharedPool
from kvtier.errors import StoreError
from kvtier.helper.depot import READS_AHEAD, HelperDepot


class Task(NamedTuple):
    """What is to be moved, over and over."""

    store: Path  # filled
    n_chunks: int  # that it has room for
    chunk_bytes: int
    dtype: str
    n_threads: int
    loads: bool
    spills: bool


class Done(NamedTuple):
    """What was moved from `start` to `stop`."""

    seconds: float
    promoted_bytes: int
    spilled_bytes: int
    cpu_s: float  # of all threads but the scheduler's, and of the helper process

    @property
    def gbps(self) -> float:
        """Both ways together."""
        return (self.promoted_bytes + self.spilled_bytes) / self.seconds / 1e9

    @property
    def cpu_s_per_gb(self) -> float:
        """Of what was moved."""
        return self.cpu_s / max(1e-9, (self.promoted_bytes + self.spilled_bytes) / 1e9)


class Movers:
    """Begun and ended by the thread that stands for the scheduler, which does something else in between."""

    def __init__(self, pool: SharedPool, *, helper: bool) -> None:
        """Move between `pool` and a task's store, in a helper process or on threads."""
        self._pool = pool if helper else pool.view

    def start(self, task: Task) -> None:
        """Open the store and be busy when this returns."""
        self._task = task
        ahead = READS_AHEAD if isinstance(self._pool, SharedPool) else 0
        plan = plan_for(task.store, task.n_chunks, task.chunk_bytes, task.dtype, task.n_threads, n_reads_ahead=ahead)
        self._traffic = Traffic(plan, self._pool)
        self._began = time.perf_counter(), self._cpu_s()
        self._traffic.begin(loads=task.loads, spills=task.spills)

    def stop(self) -> Done:
        """End it. StoreError when something could not be moved."""
        moved, seconds, cpu_s = self._traffic.moved(), time.perf_counter(), self._cpu_s()
        self._traffic.stop()
        if self._traffic.failures:
            raise StoreError(self._traffic.failures[0])
        n_bytes = self._task.chunk_bytes
        return Done(seconds - self._began[0], moved.promoted * n_bytes, moved.spilled * n_bytes, cpu_s - self._began[1])

    def _cpu_s(self) -> float:
        depot = self._traffic.depot
        here_s = time.process_time() - time.thread_time()
        if not isinstance(depot, HelperDepot):
            return here_s
        fields = Path(f"/proc/{depot.pid}/stat").read_text().rpartition(")")[2].split()
        return here_s + (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def shared_pool(n_bytes: int) -> SharedPool:
    """Memory that a helper can map as well."""
    descriptor = os.memfd_create("kvtier-bench-pool")
    os.ftruncate(descriptor, n_bytes)
    return SharedPool(memoryview(mmap.mmap(descriptor, n_bytes)), descriptor)
