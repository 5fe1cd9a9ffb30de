"""HelperDepot: a depot in a helper process, seen from the engine's. Jobs go there, what became of them comes back.

A slot counts as free or filled only when the helper has said so or is known to be dead. When it dies, everything that
it had is ended as a miss or a failed spill, the tier is off for a while, another is started, and the index is made to
agree with what the store then holds. Nothing of that reaches the engine, and it makes no difference whether the store
had been opened by then: what opens it first tells how it is laid out.
"""

from __future__ import annotations

import contextlib
import itertools
import queue
import threading
import time
from array import array
from dataclasses import asdict, replace
from mmap import PAGESIZE
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from kvtier.errors import KvtierError, StoreError
from kvtier.helper.life import GoneError, Life
from kvtier.residency import Placement, Promotion, Resident
from kvtier.store.base import Change
from kvtier.store.listing import Listing
from kvtier.store.lmdb_index import frame_cost
from kvtier.store.manifest import read_manifest
from kvtier.transfer.breaker import FIRST_PAUSE_S, LONGEST_PAUSE_S
from kvtier.transfer.mover import IDLE_AFTER_S, STOP_TIMEOUT_S
from kvtier.types import ChunkKey, Miss

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from kvtier.depot import Plan, SharedPool
    from kvtier.helper.wire import Message
    from kvtier.residency import Frame
    from kvtier.tiers.follow import SharedIndex
    from kvtier.transfer.work import Work

READS_AHEAD: Final = 2
"""Promotion threads beyond `disk.promote_threads`, because they wait for the disk. Not so beside the scheduler
thread, which each of them takes processor and interpreter from. docs/performance.md, "What a promotion gives"."""

PING_S: Final = 5.0
MOST_UNANSWERED: Final = 6
"""A helper that is asked every PING_S and does not answer so many times is killed: a disk that hangs does not keep it
from answering, unless the page that hangs is one of LMDB's trees."""

LIVED_S: Final = 60.0
"""A helper that lived so long starts the pauses anew."""

KILL_WAIT_S: Final = 1.0
"""How long stopping waits for a killed helper, which a disk that hangs may keep."""

OPEN_WAIT_S: Final = 30.0
"""How long the engine's start waits for the store to be opened, and as long again for its index: a million chunks on a
cold disk take 3 s. A slower one is opened by another helper while the engine serves, from what the page cache has."""

ASK_S: Final = 60.0
"""Longest that anybody waits for what the helper has to look up."""


class _Layout(NamedTuple):
    """What the engine has to know of a store, from whoever opened it."""

    folder: Path
    n_shards: int
    shard_bytes: int
    opened_alone: bool
    page_bytes: int


class HelperDepot:
    """Satisfies `Depot`."""

    def __init__(self, plan: Plan, pool: SharedPool, *, report: Callable[[str], None]) -> None:
        """Start a helper, have it open the store of `plan`, and wait for that; raises what that raises.

        If the helper dies over it, cannot be started or takes longer than `OPEN_WAIT_S`, this is a tier that is off, of
        the size that was planned, until another helper has opened the store. `report` prints a line; any thread.
        """
        self.plan = plan
        self._pool = pool
        self._report = report
        self._numbers = itertools.count()
        self._promotions: dict[int, Promotion] = {}
        self._sent: dict[int, None] = {}  # of those, head first, what the helper has
        self._spills: dict[int, tuple[Resident, Placement | None]] = {}
        self._owed: list[Message] = []  # deletes that a dead helper did not hear of
        self._outbox: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._desk: queue.SimpleQueue[tuple[Life, list[Any]] | None] = queue.SimpleQueue()
        self._woken = False
        self._life: Life | None = None
        self._post_to: Life | None = None  # when its store is open and agrees with the index
        self._beginning = threading.Lock()
        self._stopping = threading.Event()
        self._work: Work | None = None
        self._index: SharedIndex | None = None
        self._last_engine_call: Callable[[], float] = time.monotonic
        self._after_sync: Callable[[], None] = lambda: None
        self._tell_rate: Callable[[float], None] = lambda _: None
        self._layout: _Layout | None = None  # as of when the store was first opened
        self._trouble = ""  # why there was no helper when the engine was ready for one
        self._keeper: threading.Thread | None = None
        self._threads = [
            threading.Thread(target=self._post, name="kvtier-to-helper", daemon=True),
            threading.Thread(target=self._serve_desk, name="kvtier-desk", daemon=True),
        ]
        for thread in self._threads:
            thread.start()
        try:
            with self._outliving():
                self._begin_life()
                self._layout, capacity_bytes = self._open(OPEN_WAIT_S)
                self.plan = replace(plan, folder=self._layout.folder, capacity_bytes=capacity_bytes)
                self._post_to = self._life
            if self._layout is None:
                read_manifest(plan.folder)  # a newer build's directory is not for us: its StoreFormatError
        except BaseException:
            self.stop()
            raise

    # ---- Depot

    @property
    def pid(self) -> int:
        """Of the helper process there is, or was last."""
        return self._the_life.pid

    @property
    def folder(self) -> Path:
        """As `Depot` says."""
        return self._known.folder

    @property
    def n_shards(self) -> int:
        """As `Depot` says."""
        return self._known.n_shards

    @property
    def shard_bytes(self) -> int:
        """As `Depot` says."""
        return self._known.shard_bytes

    @property
    def opened_alone(self) -> bool:
        """As `Depot` says."""
        return self._known.opened_alone

    def frame_cost(self, n_bytes: int) -> int:
        """As `Depot` says."""
        return frame_cost(n_bytes, self._known.page_bytes)

    def scan(self) -> Iterator[Listing]:
        """As `Depot` says; ends where the helper does, and what is missing comes with the next one."""
        if self._post_to is not None:
            with self._outliving():
                yield from self._listings(time.monotonic() + OPEN_WAIT_S)

    def start(
        self, work: Work, index: SharedIndex, last_engine_call: Callable[[], float], after_sync: Callable[[], None]
    ) -> None:
        """As `Depot` says."""
        self._work, self._index = work, index
        self._last_engine_call, self._after_sync = last_engine_call, after_sync
        if not self._trouble:
            with self._outliving():
                self._the_life.call("start", timeout_s=ASK_S)
        if self._trouble:
            self._post_to = None
            work.disk_readable = work.disk_writable = False
            work.stats.tier_off += 1
        self._keeper = threading.Thread(target=self._keep_alive, name="kvtier-helper-keeper", daemon=True)
        self._keeper.start()

    def probe(self, frames: Sequence[Frame], tell: Callable[[float], None]) -> None:
        """As `Depot` says."""
        self._tell_rate = tell
        with contextlib.suppress(KvtierError):  # whoever keeps it alive sees to the reason
            self._serving.call("probe", [(frame.shard, frame.key) for frame in frames], timeout_s=ASK_S)

    def submit_promotion(self, job: Promotion) -> None:
        """As `Depot` says."""
        number = next(self._numbers)
        self._promotions[number] = job
        self._outbox.put(("promote", number, job.resident.slot, job.resident.key, job.frame.shard))

    def wake_spiller(self) -> None:
        """As `Depot` says."""
        if not self._woken:
            self._woken = True
            self._outbox.put(("wake",))

    def delete(self, shard: int, key: ChunkKey) -> None:
        """As `Depot` says."""
        self._outbox.put(("delete", shard, key))

    def catch_up(self, *, wait_s: float = 0.0) -> None:
        """As `Depot` says."""
        self._serving.call("catch_up", wait_s, timeout_s=ASK_S)

    def written_before(self, shard: int, before_ns: int) -> list[ChunkKey]:
        """As `Depot` says."""
        return [ChunkKey(key) for key in self._serving.call("written_before", shard, before_ns, timeout_s=ASK_S)]

    def stop(self) -> bool:
        """As `Depot` says."""
        with self._beginning:
            self._stopping.set()
        gone = True
        if self._life is not None:
            with contextlib.suppress(KvtierError):
                self._life.call("stop", timeout_s=STOP_TIMEOUT_S)
            self._life.kill()
            gone = self._life.wait(KILL_WAIT_S)
        if self._keeper is not None:
            self._keeper.join(KILL_WAIT_S)
            gone = gone and not self._keeper.is_alive()
        self._end_threads()
        return gone

    # ---- to the helper

    def _post(self) -> None:
        """Send what is in the outbox, as much at a time as there is."""
        while True:
            messages = [self._outbox.get()]
            with contextlib.suppress(queue.Empty):
                while True:
                    messages.append(self._outbox.get_nowait())
            going = [message for message in messages if message is not None]
            if going:
                self._post_all(going)
            if len(going) < len(messages):
                return

    def _post_all(self, messages: list[Message]) -> None:
        life = self._post_to
        going = [message for message in messages if message[0] != "promote" or message[1] in self._promotions]
        going, self._owed = self._owed + going, []
        for message in going:
            if message[0] == "wake":
                self._woken = False
            elif message[0] == "promote":
                self._sent[message[1]] = None
        if (life is not None and life.send(going)) or self._stopping.is_set():
            return
        for message in going:
            if message[0] == "promote":
                self._promoted(message[1], Miss.GATE)
            elif message[0] == "delete":
                self._owed.append(message)

    # ---- from the helper

    def _begin_life(self) -> None:
        """Start a helper, unless the depot is being stopped."""
        with self._beginning:
            if self._stopping.is_set():
                raise StoreError("the disk tier is being stopped")
            self._life = Life(self._pool, self.plan.folder, handle=self._take, report=self._tell)

    def _take(self, life: Life, message: list[Any]) -> None:
        what = message[0]
        if what == "promoted":
            failure = message[2]
            self._promoted(message[1], None if failure is None else Miss(failure))
        elif what == "report":
            self._tell(message[1])
        elif what != "alive":
            self._desk.put((life, message))

    def _promoted(self, number: int, failure: Miss | None) -> None:
        job = self._promotions.pop(number, None)
        self._sent.pop(number, None)
        if job is not None:
            assert self._work is not None
            self._work.promoted(job, failure)

    def _serve_desk(self) -> None:
        """What may take a file's time, and what has to stay in order: placements, ends of spills, news."""
        while (item := self._desk.get()) is not None:
            life, (what, *values) = item
            try:
                if what == "call":
                    number, name, arguments = values
                    self._answer(life, number, name, arguments)
                elif what == "answer":
                    life.answer(*values)
                else:
                    self._note(what, values)
            except Exception as error:  # noqa: BLE001 - the thread must outlive any surprise
                self._tell(f"what the helper process said could not be dealt with: {error!r}")

    def _answer(self, life: Life, number: int, name: str, arguments: list[Any]) -> None:
        answer: Any = None
        try:
            if name == "next_spills":
                answer = self._next_spills(*arguments)
            elif name == "place":
                answer = self._place(arguments[0])
            elif name == "disk_keys":
                assert self._index is not None
                answer = self._index.disk_keys(*arguments)
        finally:
            life.send((("answer", number, answer),))

    def _next_spills(self, max_chunks: int) -> tuple[int, list[tuple[int, int, ChunkKey]]]:
        assert self._work is not None
        idle = time.monotonic() - self._last_engine_call() > IDLE_AFTER_S
        batch = []
        for resident in self._work.next_spills(max_chunks, idle=idle):
            number = next(self._numbers)
            self._spills[number] = resident, None
            batch.append((number, resident.slot, resident.key))
        return self._work.n_dirty(), batch

    def _place(self, sealed: list[tuple[int, int]]) -> list[tuple[int, Sequence[tuple[int, ChunkKey]]] | None]:
        assert self._work is not None
        residents = [self._spills[number][0] for number, _ in sealed]
        n_bytes = [n for _, n in sealed]
        placements = self._work.place_all(list(zip(residents, n_bytes, strict=True)))
        for (number, _), resident, placement in zip(sealed, residents, placements, strict=True):
            self._spills[number] = resident, placement
        return [None if place is None else (place.frame.shard, place.evicted) for place in placements]

    def _note(self, what: str, values: list[Any]) -> None:
        work = self._work
        assert work is not None
        assert self._index is not None
        if what == "spilled":
            number, ok, full = values
            resident, placement = self._spills.pop(number)
            work.spilled(resident, placement, ok=ok, full=full)
        elif what == "follow":
            shard, changes = values
            self._index.follow_disk(shard, [Change(ChunkKey(key), n_bytes) for key, n_bytes in changes])
        elif what == "synced":
            self._after_sync()
        elif what == "rate":
            self._tell_rate(values[0])
        elif what in ("readable", "writable"):
            setattr(work, f"disk_{what}", values[0])
            work.stats.tier_off += not values[0]
        elif what == "dead":
            self._end_spills()
            values[0].set()

    # ---- life and death

    @contextlib.contextmanager
    def _outliving(self) -> Iterator[None]:
        """A helper that dies, or gets stuck, before the engine has begun to use it is followed by another."""
        try:
            yield
        except GoneError as error:
            self._trouble = str(error)

    @property
    def _known(self) -> _Layout:
        plan = self.plan
        return self._layout or _Layout(plan.folder, 1, plan.capacity_bytes, opened_alone=False, page_bytes=PAGESIZE)

    def _open(self, timeout_s: float = float("inf")) -> tuple[_Layout, int]:
        """What the helper has opened, and the capacity that it was given."""
        plan = asdict(self.plan) | {"folder": str(self.plan.folder), "secret": tuple(self.plan.secret)}
        folder, capacity_bytes, *layout = self._the_life.call("open", plan, timeout_s=timeout_s)
        return _Layout(Path(folder), *layout), capacity_bytes

    def _keep_alive(self) -> None:
        pause_s, began_s = FIRST_PAUSE_S, time.monotonic()
        while True:
            if not self._trouble:
                self._await_death()
            if self._stopping.is_set():
                return
            if time.monotonic() - began_s > LIVED_S:
                pause_s = FIRST_PAUSE_S
            self._bury()
            if self._stopping.is_set():
                return
            trouble, self._trouble = self._trouble or f"its helper process {self._the_life.epitaph()}", ""
            self._tell(
                f"disk tier: {trouble}; the tier is off, requests do without it, and in {pause_s:.0f} s another is "
                "started"
            )
            while True:
                if self._stopping.wait(pause_s):
                    return
                pause_s = min(pause_s * 2, LONGEST_PAUSE_S)
                began_s = time.monotonic()
                try:
                    self._revive()
                    break
                except Exception as error:  # noqa: BLE001 - whatever it was, the engine goes on without
                    if self._stopping.is_set():
                        return
                    self._tell(f"disk tier: stays off, tried again in {pause_s:.0f} s: {error}")
                    self._bury()
            self._tell("disk tier: on again, with a new helper process")

    def _await_death(self) -> None:
        life = self._the_life
        n_heard, n_unanswered = life.n_heard, 0
        while life.alive and not self._stopping.is_set():
            life.send((("ping",),), patient=False)
            life.await_silence(PING_S)
            n_unanswered = n_unanswered + 1 if life.n_heard == n_heard else 0
            n_heard = life.n_heard
            if n_unanswered == MOST_UNANSWERED:
                self._tell(f"disk tier: its helper process {life.pid} does not answer and is killed")
                return

    def _bury(self) -> None:
        """See the helper dead, and end what it had."""
        work = self._work
        assert work is not None
        work.disk_readable = work.disk_writable = False
        work.stats.tier_off += self._post_to is not None
        self._post_to = None
        life = self._life
        if life is None:
            return
        life.kill()
        life.wait()
        at_work = set(itertools.islice(list(self._sent), self.plan.n_at_work))
        for number in list(self._sent):
            # One of the first may be what killed it. The others were not looked at.
            self._promoted(number, Miss.LOAD_FAILED if number in at_work else Miss.GATE)
        done = threading.Event()
        self._desk.put((life, ["dead", done]))
        done.wait()

    def _end_spills(self) -> None:
        assert self._work is not None
        for number in list(self._spills):
            resident, placement = self._spills.pop(number)
            self._work.spilled(resident, placement, ok=False)

    def _revive(self) -> None:
        """Start another helper and have the index agree with what its store holds."""
        assert self._work is not None
        assert self._index is not None
        self._begin_life()
        layout, _ = self._open()
        if self._layout is None and layout.folder == self.folder:
            self._layout = layout
            self._index.lay_out(layout.n_shards, layout.shard_bytes)
        if layout[:3] != self._known[:3]:
            raise StoreError(f"{self.folder} was laid out anew meanwhile; restart the engine to use it again")
        self._index.agree_with(self._listings())
        self._the_life.call("start", timeout_s=ASK_S)
        self._post_to = self._life
        self._work.disk_readable = self._work.disk_writable = True
        self._work.stats.helper_restarts += 1
        self.wake_spiller()

    def _listings(self, until_s: float = float("inf")) -> Iterator[Listing]:
        while columns := self._the_life.call("scan", timeout_s=max(0.0, until_s - time.monotonic())):
            shard, key_bytes, keys, n_bytes, written_ns = columns
            yield Listing(shard, key_bytes, keys, array("Q", n_bytes), array("Q", written_ns))

    @property
    def _serving(self) -> Life:
        """Whose store is open and agrees with the index. StoreError when there is none."""
        life = self._post_to
        if life is None:
            raise StoreError("the disk tier is off")
        return life

    @property
    def _the_life(self) -> Life:
        assert self._life is not None
        return self._life

    def _end_threads(self) -> None:
        self._outbox.put(None)
        self._desk.put(None)
        for thread in self._threads:
            thread.join(KILL_WAIT_S)

    def _tell(self, line: str) -> None:
        with contextlib.suppress(Exception):  # a log that cannot be written must not end a thread
            self._report(line)
