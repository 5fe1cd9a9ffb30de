"""Where transfer threads run: in this process, or in a helper process over the same pool. Chunks moved, CPU spent.

`python -m kvtier.bench.movers POOL_FD STORE N_CHUNKS CHUNK_BYTES DTYPE N_THREADS WHAT` is the helper: it says `ready`,
works until a line comes on stdin, and says what it did as JSON.
"""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple, Protocol

from kvtier.bench.traffic import Traffic, open_store
from kvtier.codec.registry import codec_for
from kvtier.errors import StoreError


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
    cpu_s: float  # of the transfer threads; the helper's whole process

    @property
    def gbps(self) -> float:
        """Both ways together."""
        return (self.promoted_bytes + self.spilled_bytes) / self.seconds / 1e9

    @property
    def cpu_s_per_gb(self) -> float:
        """Of what was moved."""
        return self.cpu_s / max(1e-9, (self.promoted_bytes + self.spilled_bytes) / 1e9)


class Movers(Protocol):
    """Begun and ended by the thread that stands for the scheduler, which does something else in between."""

    def start(self, task: Task) -> None:
        """Open the store and be busy when this returns."""
        ...

    def stop(self) -> Done:
        """End it. StoreError when something could not be moved."""
        ...


class InThreads:
    """As kvtier does it."""

    def __init__(self, pool_fd: int) -> None:
        self._pool = memoryview(mmap.mmap(pool_fd, 0))

    def start(self, task: Task) -> None:
        """See `Movers`."""
        self._task = task
        self._store = open_store(task.store, task.n_chunks, task.chunk_bytes)
        self._traffic = Traffic(
            self._pool, self._store, codec_for(task.dtype), chunk_bytes=task.chunk_bytes, n_threads=task.n_threads
        )
        self._traffic.begin(loads=task.loads, spills=task.spills)
        self._began = time.perf_counter(), _others_cpu_s()

    def stop(self) -> Done:
        """See `Movers`."""
        moved, seconds, cpu_s = self._traffic.moved(), time.perf_counter(), _others_cpu_s()
        self._traffic.stop()
        self._store.close()
        if self._traffic.failures:
            raise StoreError(self._traffic.failures[0])
        n_bytes = self._task.chunk_bytes
        return Done(seconds - self._began[0], moved.promoted * n_bytes, moved.spilled * n_bytes, cpu_s - self._began[1])


class InProcess:
    """As a helper process would do it: no interpreter lock in common with the scheduler."""

    def __init__(self, pool_fd: int) -> None:
        self._pool_fd = pool_fd

    def start(self, task: Task) -> None:
        """See `Movers`."""
        what = ("loads " if task.loads else "") + ("spills" if task.spills else "")
        arguments = (task.store, task.n_chunks, task.chunk_bytes, task.dtype, task.n_threads, what)
        self._child = subprocess.Popen(  # noqa: S603 - ourselves
            [sys.executable, "-m", "kvtier.bench.movers", str(self._pool_fd), *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=(self._pool_fd,),
        )
        if self._line() != "ready":
            raise StoreError("the helper process did not start")

    def stop(self) -> Done:
        """See `Movers`."""
        assert self._child.stdin is not None
        self._child.stdin.write("stop\n")
        self._child.stdin.flush()
        line = self._line()
        self._child.communicate(timeout=30)
        if not line:
            raise StoreError("the helper process failed")
        return Done(*json.loads(line))

    def _line(self) -> str:
        assert self._child.stdout is not None
        return self._child.stdout.readline().strip()


def _others_cpu_s() -> float:
    """CPU of all threads but this one."""
    return time.process_time() - time.thread_time()


def main() -> int:
    """Be the helper."""
    pool_fd, store, n_chunks, chunk_bytes, dtype, n_threads, what = sys.argv[1:]
    task = Task(Path(store), int(n_chunks), int(chunk_bytes), dtype, int(n_threads), "loads" in what, "spills" in what)
    movers = InThreads(int(pool_fd))
    movers.start(task)
    print("ready", flush=True)  # noqa: T201 - what its parent waits for
    sys.stdin.readline()
    print(json.dumps(movers.stop()), flush=True)  # noqa: T201 - its result
    return 0


def shared_pool(n_bytes: int) -> int:
    """Descriptor of `n_bytes` of memory that a helper can map as well."""
    descriptor = os.memfd_create("kvtier-bench-pool")
    os.ftruncate(descriptor, n_bytes)
    return descriptor


if __name__ == "__main__":
    sys.exit(main())
