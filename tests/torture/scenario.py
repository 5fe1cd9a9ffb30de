"""What a scenario is and what it reports: a seed and a folder go in, one Row per kind of fault comes out."""

import contextlib
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol


@dataclass
class Row:
    """One kind of fault: how often it was injected and what became of it."""

    scenario: str
    fault: str
    injected: int = 0
    detected: int = 0  # seen for what they are: counted misses, files set aside, errors of the right kind
    harmless: int = 0  # without any effect: the bytes were not in use, or what was interrupted had not begun
    served_wrong: int = 0  # chunks handed to the engine with other bytes than were stored
    failed_requests: int = 0
    requests: int = 0
    worst_call_s: float = 0.0  # the longest that a call of the engine's scheduler thread took
    figures: dict[str, Any] = field(default_factory=dict)  # what else was measured
    violations: list[str] = field(default_factory=list)  # promises that were broken
    skipped: str = ""  # why it could not be run here

    def expect(self, kept: object, promise: str) -> None:
        """Note a promise that was broken, unless it was `kept`."""
        if not kept:
            self.violations.append(promise)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Setting:
    """How to run a scenario. The same seed gives the same faults; the moment a signal arrives is the kernel's."""

    seed: int
    folder: Path  # empty, for this scenario alone
    short: bool  # a fraction of the faults, for a test suite
    tell: Callable[[str], None] = lambda _: None  # progress
    server_kills: int = 20  # of a real vLLM engine; seven seconds each

    def rng(self, name: str) -> random.Random:
        return random.Random(f"{self.seed}/{name}")

    def n(self, full: int, short: int) -> int:
        return short if self.short else full


class Scenario(Protocol):
    """A function of a module in this package; its first docstring line is its title."""

    def __call__(self, setting: Setting) -> Iterator[Row]:
        """Run, yielding each row when it is complete."""
        ...


@contextlib.contextmanager
def timed(row: Row) -> Iterator[Row]:
    """Note how long a row took."""
    started_s = time.monotonic()
    yield row
    row.figures["seconds"] = round(time.monotonic() - started_s, 1)


class ChildDiedError(Exception):
    """A child process ended by a signal, or without its result."""


class Child:
    """`work` in a fork: damaged files and failing media may end that process, and only it.

    Nothing of the parent may be open that a fork must not inherit: no LMDB environment, no thread that holds a lock.
    """

    def __init__(self, work: Callable[[], object], timeout_s: float = 120.0) -> None:
        """Start it. It is killed after `timeout_s`: a hang is a death, too."""
        self._said_by, writer = os.pipe()
        self.pid = os.fork()
        if self.pid:
            os.close(writer)
            return
        signal.alarm(int(timeout_s))
        status = 1
        try:
            os.close(self._said_by)
            said = str(work())
            with os.fdopen(writer, "w") as out:
                out.write(said)
            status = 0
        except BaseException as error:  # noqa: BLE001 - it must not go on as a second parent
            with contextlib.suppress(OSError):
                os.write(writer, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(status)

    def result(self) -> str:
        """What `work` returned, as text. Raises ChildDiedError."""
        with os.fdopen(self._said_by) as said_by:
            text = said_by.read()
        _, status = os.waitpid(self.pid, 0)
        if os.WIFSIGNALED(status):
            raise ChildDiedError(signal.Signals(os.WTERMSIG(status)).name)
        if status:
            raise ChildDiedError(text)
        return text


def in_child(work: Callable[[], object], timeout_s: float = 120.0) -> str:
    """What `work` returns, as text, from a process of its own. Raises ChildDiedError."""
    return Child(work, timeout_s).result()


def clone(source: Path, target: Path) -> Path:
    """A copy of a store that is closed, holes kept, in the place of whatever was there."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, copy_function=_copy_sparse)
    return target


def _copy_sparse(source: str, target: str) -> None:
    with open(source, "rb") as old, open(target, "wb") as new:  # noqa: PTH123 - as shutil calls it
        end = os.fstat(old.fileno()).st_size
        os.truncate(target, end)
        at = 0
        while at < end:
            try:
                at = os.lseek(old.fileno(), at, os.SEEK_DATA)
            except OSError:
                break  # only holes from here on
            hole = os.lseek(old.fileno(), at, os.SEEK_HOLE)
            os.pwrite(new.fileno(), os.pread(old.fileno(), hole - at, at), at)
            at = hole
    shutil.copymode(source, target)
