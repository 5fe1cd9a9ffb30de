"""The helper process: a depot over an engine's host pool, told what to do through a socket. Ends with its engine.

`python -P -m kvtier.helper SOCKET_FD POOL_FD POOL_BYTES FOLDER`, by `kvtier.helper.depot` alone; FOLDER is for those
who read process lists.
"""

from __future__ import annotations

import faulthandler
import itertools
import mmap
import os
import queue
import socket
import sys
import threading
import time
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from kvtier.codec.guards import Secret
from kvtier.depot import LocalDepot, Plan
from kvtier.helper.wire import Wire
from kvtier.observe.stats import Stats
from kvtier.residency import Frame, Placement, Promotion, Resident, State
from kvtier.transfer.slots import Slots
from kvtier.types import ChunkKey, Miss

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from kvtier.helper.wire import Message
    from kvtier.store.base import Change
    from kvtier.store.listing import Listing

ORPHAN_LOOK_S: Final = 1.0
"""How often to look whether the engine still lives. Its end of the socket says so at once, unless a fork has it too."""


GATHER_S: Final = 0.002
"""How long news for the engine may wait for more. An engine's step is longer."""


class Helper:
    """Takes messages, has one thread for what takes long, and stands between the depot and its engine."""

    def __init__(self, wire: Wire, pool: memoryview) -> None:
        self._wire = wire
        self._pool = pool
        self._notes: list[Message] = []
        self._noting = threading.Condition(threading.Lock())
        self._sending = threading.Lock()
        self._answers: dict[int, queue.SimpleQueue[Any]] = {}
        self._call_numbers = itertools.count()
        self._calls: queue.SimpleQueue[tuple[int, str, list[Any]]] = queue.SimpleQueue()
        self._depot: LocalDepot | None = None
        self._runs_idle = False
        self._work = FarWork(self)
        self._promoting: dict[Resident, int] = {}
        self._listings: Iterator[Listing] = iter(())
        self._named: dict[str, Callable[..., Any]] = {
            "open": self._open, "scan": self._scan, "start": self._start, "probe": self._probe, "stop": self._stop,
            "catch_up": self._catch_up, "written_before": self._written_before,
        }  # fmt: skip

    def run(self) -> None:
        """Serve until the engine is gone."""
        threading.Thread(target=self._answer_calls, name="kvtier-calls", daemon=True).start()
        threading.Thread(target=self._send_notes, name="kvtier-notes", daemon=True).start()
        threading.Thread(target=_end_with, args=(os.getppid(),), name="kvtier-orphan", daemon=True).start()
        while messages := self._wire.receive():
            for what, *values in messages:
                if what == "promote":
                    self._promote(*values)
                elif what == "delete":
                    self.depot.delete(values[0], ChunkKey(values[1]))
                elif what == "wake":
                    self.depot.wake_spiller()
                elif what == "answer":
                    number, answer = values
                    self._answers.pop(number).put(answer)
                elif what == "call":
                    number, name, arguments = values
                    self._calls.put((number, name, arguments))
                else:
                    self.tell("alive")

    @property
    def depot(self) -> LocalDepot:
        """Open by now."""
        assert self._depot is not None
        return self._depot

    def note(self, *message: Any) -> None:
        """Send a message soon, in one with others: each that arrives wakes a thread beside the engine's scheduler."""
        with self._noting:
            self._notes.append(message)
            if len(self._notes) == 1:
                self._noting.notify()

    def tell(self, *message: Any) -> None:
        """Send a message now, behind those noted. Waits until the socket has taken it."""
        self._send(message)

    def _send(self, *more: Message) -> None:
        with self._sending:
            with self._noting:
                notes, self._notes = self._notes, []
            if notes or more:
                try:
                    self._wire.send((*notes, *more))
                except OSError:
                    os._exit(0)  # nobody is left whom it could matter to

    def _send_notes(self) -> None:
        while True:
            with self._noting:
                self._noting.wait_for(lambda: self._notes)
            time.sleep(GATHER_S)
            self._send()

    def ask(self, name: str, *arguments: Any) -> Any:
        """Call the engine and wait for what it answers."""
        number = next(self._call_numbers)
        answer = self._answers[number] = queue.SimpleQueue()
        self.tell("call", number, name, arguments)
        return answer.get()

    # ---- promotions

    def _promote(self, number: int, slot: int, key: bytes, shard: int) -> None:
        resident = Resident(ChunkKey(key), slot, State.PROMOTING, 0.0)
        self._promoting[resident] = number
        self.depot.submit_promotion(Promotion(resident, Frame(ChunkKey(key), shard, 0, ready=True)))

    def promoted(self, job: Promotion, failure: Miss | None) -> None:
        """One has ended."""
        self.note("promoted", self._promoting.pop(job.resident), failure)

    # ---- calls of the engine

    def _answer_calls(self) -> None:
        while True:
            number, name, arguments = self._calls.get()
            try:
                self.tell("answer", number, self._named[name](*arguments), None, None)
            except Exception as error:  # noqa: BLE001 - whatever it was, the engine decides what follows from it
                self.tell("answer", number, None, type(error).__name__, str(error))

    def _open(self, plan: dict[str, Any]) -> list[Any]:
        plan |= {"folder": Path(plan["folder"]), "secret": Secret(*plan["secret"])}
        assert set(plan) == {field.name for field in fields(Plan)}
        slots = Slots(self._pool, plan["chunk_bytes"])
        self._runs_idle = plan["runs_idle"]
        depot = self._depot = LocalDepot(
            Plan(**plan), slots, steps_back=True, report=lambda line: self.tell("report", line)
        )
        self._listings = depot.scan()
        return [
            str(depot.folder), depot.capacity_bytes, depot.n_shards, depot.shard_bytes, depot.opened_alone,
            depot.page_bytes,
        ]  # fmt: skip

    def _scan(self) -> list[Any] | None:
        listing = next(self._listings, None)
        if listing is None:
            return None
        columns = listing.n_bytes.tobytes(), listing.written_ns.tobytes()
        return [listing.shard, listing.key_bytes, listing.keys, *columns]

    def _start(self) -> None:
        if self._runs_idle:
            _run_idle()
        self.depot.start(self._work, FarIndex(self), lambda: 0.0, lambda: self.tell("synced"))

    def _probe(self, frames: list[tuple[int, bytes]]) -> None:
        taken = [Frame(ChunkKey(key), shard, 0, ready=True) for shard, key in frames]
        self.depot.probe(taken, lambda bytes_per_s: self.tell("rate", bytes_per_s))

    def _catch_up(self, wait_s: float) -> None:
        self.depot.catch_up(wait_s=wait_s)

    def _written_before(self, shard: int, before_ns: int) -> list[ChunkKey]:
        return self.depot.written_before(shard, before_ns)

    def _stop(self) -> bool:
        return self._depot is None or self._depot.stop()


class FarWork:
    """`Work`, decided in the engine's process."""

    def __init__(self, helper: Helper) -> None:
        self.stats = Stats()  # the engine counts
        self._helper = helper
        self._readable = self._writable = True
        self._n_dirty = 0
        self._spilling: dict[Resident, int] = {}

    @property
    def disk_readable(self) -> bool:
        """As `Work` says; the engine hears of each change."""
        return self._readable

    @disk_readable.setter
    def disk_readable(self, on: bool) -> None:
        self._readable = on
        self._helper.tell("readable", on)

    @property
    def disk_writable(self) -> bool:
        """As `Work` says; the engine hears of each change."""
        return self._writable

    @disk_writable.setter
    def disk_writable(self, on: bool) -> None:
        self._writable = on
        self._helper.tell("writable", on)

    def next_spills(self, max_chunks: int, *, idle: bool) -> list[Resident]:  # noqa: ARG002 - the engine knows
        """As `Work` says."""
        self._n_dirty, given = self._helper.ask("next_spills", max_chunks)
        batch = []
        for number, slot, key in given:
            resident = Resident(ChunkKey(key), slot, State.READY, 0.0)
            self._spilling[resident] = number
            batch.append(resident)
        return batch

    def place_all(self, sealed: Sequence[tuple[Resident, int]]) -> list[Placement | None]:
        """As `Work` says."""
        places = self._helper.ask("place", [(self._spilling[resident], n_bytes) for resident, n_bytes in sealed])
        return [
            None if place is None else Placement(
                Frame(resident.key, place[0], n_bytes, ready=False),
                tuple((shard, ChunkKey(key)) for shard, key in place[1]),
            )
            for (resident, n_bytes), place in zip(sealed, places, strict=True)
        ]  # fmt: skip

    def spilled(self, resident: Resident, placement: Placement | None, *, ok: bool, full: bool = False) -> None:  # noqa: ARG002 - the engine has it
        """As `Work` says."""
        self._helper.note("spilled", self._spilling.pop(resident), ok, full)

    def promoted(self, job: Promotion, failure: Miss | None) -> None:
        """As `Work` says."""
        self._helper.promoted(job, failure)

    def n_dirty(self) -> int:
        """As of the last batch: whoever makes a chunk dirty wakes the spiller."""
        return self._n_dirty


class FarIndex:
    """`Index`, kept in the engine's process."""

    def __init__(self, helper: Helper) -> None:
        self._helper = helper

    def follow_disk(self, shard: int, changes: Sequence[Change]) -> None:
        """As `Index` says, except that it has happened when the engine has taken what was sent until now."""
        self._helper.note("follow", shard, changes)

    def disk_keys(self, shard: int) -> list[ChunkKey]:
        """As `Index` says."""
        return [ChunkKey(key) for key in self._helper.ask("disk_keys", shard)]


def _run_idle() -> None:
    """Have all threads, and those to come, run when the processors have nothing else to do, where that can be asked."""
    with suppress(OSError, AttributeError):
        for thread in Path("/proc/self/task").iterdir():
            os.sched_setscheduler(int(thread.name), os.SCHED_IDLE, os.sched_param(0))


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        threading.Event().wait(ORPHAN_LOOK_S)
    os._exit(0)


def main() -> None:
    """Be the helper."""
    faulthandler.enable(all_threads=False)
    connection, pool_fd, pool_bytes = map(int, sys.argv[1:4])
    pool = memoryview(mmap.mmap(pool_fd, pool_bytes))
    os.close(pool_fd)
    Helper(Wire(socket.socket(fileno=connection)), pool).run()
    os._exit(0)  # as a kill would: what is under way was promised to nobody


if __name__ == "__main__":
    main()
