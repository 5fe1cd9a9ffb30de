"""Whether the disk tier's helper process works on this machine: one is started as an engine would, and looked at.

A throw-away directory and a pool of a few slots, in memory, are all that it gets.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import queue
import signal
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kvtier import config as configuration
from kvtier.build import build
from kvtier.codec.forms import EXTENSION
from kvtier.depot import SharedPool
from kvtier.errors import KvtierError
from kvtier.keys import Namespace
from kvtier.types import Geometry

LIMIT_S: Final = 20.0
"""A helper that is not ready by then is killed. One takes about a second."""

_KILLED_S: Final = 10.0
_CHUNK_BYTES: Final = 16 << 10
_N_SLOTS: Final = 4


@dataclass(frozen=True, slots=True)
class Helper:
    """One that was ready for an engine."""

    start_s: float
    policies: frozenset[int]  # scheduling policies of its threads
    same_group: bool  # the kernel shares processors between it and us as between any two processes
    native: bool  # it has loaded kvtier's compiled code

    @property
    def runs_idle(self) -> bool:
        """Whether it takes only what processors have left."""
        return self.policies == {os.SCHED_IDLE}


def start_helper(*, model_on_processors: bool) -> Helper:
    """Start one, look at it, and end it. KvtierError says why there is none. Takes LIMIT_S, and a little, at most."""
    answers: queue.SimpleQueue[Helper | str] = queue.SimpleQueue()
    with tempfile.TemporaryDirectory(prefix="kvtier-doctor-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        thread = threading.Thread(
            target=lambda: answers.put(_try(folder, model_on_processors=model_on_processors)), daemon=True
        )
        thread.start()
        try:
            found = answers.get(timeout=LIMIT_S)
        except queue.Empty:
            found = f"it was not ready after {LIMIT_S:g} s"
            pid = _pid_of(folder)
            if pid is not None:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
        thread.join(_KILLED_S)
    if isinstance(found, str):
        raise KvtierError(found)
    return found


def _try(folder: Path, *, model_on_processors: bool) -> Helper | str:
    """What `build` makes of it; why not, if it makes no helper."""
    reports: list[str] = []
    fd = os.memfd_create("kvtier-doctor")
    try:
        os.ftruncate(fd, _N_SLOTS * _CHUNK_BYTES)
        began_s = time.perf_counter()
        kvtier = build(
            configuration.parse({"version": 1, "disk": {"path": str(folder), "capacity": "16MiB"}}),
            Geometry(_CHUNK_BYTES, 16, "bfloat16"),
            SharedPool(memoryview(mmap.mmap(fd, 0)), fd),
            Namespace({"model": "doctor"}),
            report=reports.append,
            emit=lambda _: None,
            model_on_processors=model_on_processors,
        )
        start_s = time.perf_counter() - began_s
        try:
            pid = _pid_of(folder)
            if kvtier.cache.disk is None or not kvtier.cache.disk_readable or pid is None:
                said = [line for line in reports if line.startswith("helper process")]
                return "; ".join([line for line in reports if line not in said][:1] + said[-1:]) or "it ended at once"
            return _look(pid, start_s)
        finally:
            kvtier.stop()
    except (KvtierError, OSError) as error:
        return str(error)
    finally:
        os.close(fd)


def _look(pid: int, start_s: float) -> Helper:
    process = Path(f"/proc/{pid}")
    policies = frozenset(os.sched_getscheduler(int(thread.name)) for thread in (process / "task").iterdir())
    native = EXTENSION.rpartition(".")[2] + "." in (process / "maps").read_text()
    return Helper(start_s, policies, _group(process) == _group(Path("/proc/self")), native)


def _group(process: Path) -> str:
    """The scheduling group of a process; empty where the kernel makes none by session."""
    try:
        return (process / "autogroup").read_text().split()[0]
    except (OSError, IndexError):
        return ""


def _pid_of(folder: Path) -> int | None:
    """The helper that was started for `folder`, which is in its arguments."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.fsencode(folder) in (process / "cmdline").read_bytes().split(b"\0"):
                return int(process.name)
    return None
