"""Life: one helper process from its start to its death, and the calls to it. HelperDepot has one at a time."""

from __future__ import annotations

import contextlib
import itertools
import os
import queue
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import kvtier
from kvtier import errors
from kvtier.errors import StoreError
from kvtier.helper.wire import Wire

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kvtier.depot import SharedPool
    from kvtier.helper.wire import Message

LOOK_S: Final = 0.5
"""How often a call looks whether it is still to be waited for."""


class GoneError(StoreError):
    """There is no helper process to talk to: it could not be started, is dead, or takes too long."""


class Life:
    """A helper process. Any thread."""

    def __init__(
        self,
        pool: SharedPool,
        folder: Path,
        *,
        handle: Callable[[Life, list[Any]], None],
        report: Callable[[str], None],
    ) -> None:
        """Start one over `pool`. GoneError when that cannot be done.

        `handle` gets each message from it, in order, on one thread; `report` what it prints, line by line, on another.
        """
        self.alive = True
        self.n_heard = 0
        self._handle = handle
        self._report = report
        self._sending = threading.Lock()
        self._answers: dict[int, queue.SimpleQueue[list[Any]]] = {}
        self._numbers = itertools.count()
        ours, theirs = socket.socketpair()
        self._wire = Wire(ours)
        arguments = (theirs.fileno(), pool.fd, pool.view.nbytes, folder)
        try:
            self._process = subprocess.Popen(  # noqa: S603 - ourselves
                [sys.executable or "python3", "-P", "-m", "kvtier.helper", *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(theirs.fileno(), pool.fd),
                env=_environment(),
                # Ctrl-C is for the engine, which still needs its helper then. Not a session of its own: Linux shares
                # processors between sessions first (autogroup), and running last in one's own is running as an equal.
                process_group=0,
            )
        except OSError as error:
            self._wire.close()
            raise GoneError(f"its helper process cannot be started: {error}") from error
        finally:
            theirs.close()
        self._log = threading.Thread(target=self._read_log, name="kvtier-helper-log", daemon=True)
        self._log.start()
        self._receiver = threading.Thread(target=self._receive, name="kvtier-from-helper", daemon=True)
        self._receiver.start()

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def send(self, messages: Sequence[Message], *, patient: bool = True) -> bool:
        """Send; False when it is dead. Unless `patient`, also when another thread is at it and does not get through."""
        if not self._sending.acquire(timeout=-1 if patient else LOOK_S):
            return False
        try:
            if not self.alive:
                return False
            self._wire.send(messages)
        except OSError:
            return False  # what receives hears of it too, and sees to the rest
        finally:
            self._sending.release()
        return True

    def call(self, name: str, *arguments: Any, timeout_s: float = float("inf")) -> Any:
        """Have it do something and wait for the answer. Raises what it raised.

        GoneError when it dies meanwhile or takes longer than `timeout_s`.

        Not on the thread on which `handle` is called, nor on one that brings answers.
        """
        number = next(self._numbers)
        answers = self._answers[number] = queue.SimpleQueue()
        give_up_s = time.monotonic() + timeout_s
        try:
            if not self.send((("call", number, name, arguments),), patient=False):
                raise self._gone()
            while True:
                with contextlib.suppress(queue.Empty):
                    value, kind, message = answers.get(timeout=LOOK_S)
                    break
                if not self.alive:
                    raise self._gone()
                if time.monotonic() > give_up_s:
                    raise GoneError(f"its helper process takes longer than {timeout_s:.0f} s (call {name!r})")
        finally:
            del self._answers[number]
        if kind is None:
            return value
        error = getattr(errors, kind, StoreError)
        raise error(message) if issubclass(error, errors.KvtierError) else StoreError(message)

    def answer(self, number: int, *answer: Any) -> None:
        """An answer to a call has come."""
        waiting = self._answers.get(number)
        if waiting is not None:
            waiting.put(list(answer))

    def kill(self) -> None:
        """End it. Its memory may be in use until `wait` says otherwise."""
        self.alive = False
        with contextlib.suppress(OSError):
            self._process.kill()

    def await_silence(self, timeout_s: float) -> None:
        """Return when it says nothing more because it is dead, or after `timeout_s`."""
        self._receiver.join(timeout_s)

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until nothing of it is left and all that it said has been handled; False after `timeout_s`."""
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        self._receiver.join()
        self._log.join(LOOK_S)
        with self._sending:
            self.alive = False
            self._wire.close()
        return True

    def epitaph(self) -> str:
        """How it died, for people; after `wait`."""
        code = self._process.returncode
        return f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"

    def _gone(self) -> GoneError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(LOOK_S)
            return GoneError(f"its helper process {self.epitaph()}")
        return GoneError("its helper process does not answer")

    def _receive(self) -> None:
        try:
            while messages := self._wire.receive():
                self.n_heard += 1
                for message in messages:
                    self._handle(self, message)
        except Exception as error:  # noqa: BLE001 - of whatever kind: nothing that it says can be relied on any more
            with contextlib.suppress(Exception):
                self._report(f"what the helper process said could not be dealt with: {error!r}")
        finally:
            self.alive = False

    def _read_log(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                with contextlib.suppress(Exception):  # a log that cannot be written must not end the thread
                    self._report(f"helper process: {line.decode(errors='replace').rstrip()}")


def _environment() -> dict[str, str]:
    """The engine's own, in which it finds this very kvtier first."""
    home = str(Path(kvtier.__file__).parent.parent)
    others = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": f"{home}{os.pathsep}{others}" if others else home}
