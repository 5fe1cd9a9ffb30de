"""Mover: the threads that carry chunks between host slots and the store, sealing them down and opening them up.

Promotions begin in the order in which they were asked for, head first along a chain, a few to a thread. One thread
spills, deletes and syncs; another helps it to seal a round's chunks and to write them to several shards. Both give way
to promotions.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from functools import partial
from operator import itemgetter
from typing import TYPE_CHECKING

from kvtier.codec.frame import frame_bound, open_into, opens_at_once, read_at_once, seal_into
from kvtier.codec.guard import PLAIN
from kvtier.errors import FrameCorruptError, FrameForeignError, StoreError, StoreFullError
from kvtier.transfer.batch import Workers, in_parallel
from kvtier.transfer.breaker import Breaker
from kvtier.transfer.precedence import LoadsFirst
from kvtier.transfer.promotion_queue import PromotionQueue
from kvtier.types import Miss, chunk_hash_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kvtier.codec.base import Codec
    from kvtier.codec.guard import Guard
    from kvtier.residency import Placement, Promotion, Resident
    from kvtier.store.base import Store
    from kvtier.transfer.slots import Slots
    from kvtier.transfer.work import Work
    from kvtier.types import ChunkKey, FilePages

PROMOTIONS_AT_ONCE = 4
"""Chunks that a thread promotes together: it takes the interpreter once for them, and the disk is at work on some while
others are opened. docs/performance.md, "What a promotion gives"."""

SPILL_BATCH = 8
"""Frames per round of the spill thread: for each of SPILL_THREADS as many as DiskTier places in one shard."""

SPILL_THREADS = 2
"""One thread takes 0.6 s to seal a GB of KV and up to 1 s to write it, which is slower than disks are."""

SPILL_BUFFER_BYTES = 64 << 20
"""Memory for sealed frames, beside the host pool. With chunks of which it holds fewer a round is shorter; one fits."""

IDLE_AFTER_S = 0.25
"""Without a call from the engine for so long, it counts as idle."""

PROMOTE_NICENESS = 5
SPILL_NICENESS = 10
"""Scheduling niceness on Linux of threads that step back: whatever the engine's processes leave. ADR 0004."""

STOP_TIMEOUT_S = 5.0


def promotions_at_once(codec: Codec, guard: Guard) -> int:
    """Chunks that a thread promotes together."""
    return PROMOTIONS_AT_ONCE if opens_at_once(codec, guard) else 1


class Mover:
    """Owns the transfer threads of one engine. `start` once, `stop` once."""

    def __init__(
        self,
        slots: Slots,
        store: Store,
        codec: Codec,
        *,
        guard: Guard = PLAIN,
        n_promote_threads: int,
        n_reads_ahead: int = 0,
        poll_s: float,
        sync_every_s: float,
        steps_back: bool = False,
        report: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Move between `slots` and `store`; `guard` protects what goes there and judges what comes from there.

        `n_promote_threads` promote, and `n_reads_ahead` more, as they wait for the disk. `poll_s` is how often dirty
        chunks are looked over for write-behind. Threads run behind others of the machine if `steps_back` says so; not
        where one that must not wait for them has the same process: while they hold a lock that it wants, it would run
        behind others as well. `report` prints one line for the operator; any thread may call it. `clock` gives seconds,
        the same as what `start` is given to tell the engine's last call.
        """
        self._slots = slots
        self._store = store
        self._codec = codec
        self._guard = guard
        self._at_once = opens_at_once(codec, guard)
        self._poll_s = poll_s
        self._sync_every_s = sync_every_s
        self._steps_back = steps_back
        self._yields = False
        self._last_engine_call = clock
        self._after_sync: Callable[[], None] = lambda: None
        self._report = report
        self._clock = clock
        self._work: Work | None = None
        n_threads = n_promote_threads + n_reads_ahead
        self._promotions = PromotionQueue(n_threads, promotions_at_once(codec, guard))
        self._loads, self._borrowed = LoadsFirst(), LoadsFirst()  # all of them; those on threads of others
        self._deletes: queue.SimpleQueue[tuple[int, ChunkKey]] = queue.SimpleQueue()
        self._wake = threading.Event()
        self._stopping = False
        self._read_breaker, self._write_breaker = Breaker(), Breaker()
        self._breaker_lock = threading.Lock()
        self._owed: dict[int, list[ChunkKey]] = {}  # deletes to come, by shard; with its next write at the latest
        self._owed_lock = threading.Lock()
        self._spill_helpers: Workers
        bound = 1 if slots.sealed else frame_bound(len(slots[0]), codec, guard)
        n_buffers = max(1, min(SPILL_BATCH, SPILL_BUFFER_BYTES // bound))
        self._buffers = [memoryview(bytearray(bound)) for _ in range(n_buffers)]
        self._unsynced = self._syncs_fail = False
        self._synced_s = self._clock()
        self._threads = [
            threading.Thread(target=self._promote_loop, name=f"kvtier-promote-{i}", daemon=True)
            for i in range(n_threads)
        ]
        self._threads.append(threading.Thread(target=self._spill_loop, name="kvtier-spill", daemon=True))

    def start(
        self, work: Work, last_engine_call: Callable[[], float], *, after_sync: Callable[[], None] = lambda: None
    ) -> None:
        """Begin serving `work`. `last_engine_call` gives the time of the engine's last call.

        `after_sync` is called by the spill thread whenever the store has been synced. Threads have the scheduling class
        of the caller; idle-class ones let others of their processor run after each promotion (ADR 0004).
        """
        self._work = work
        self._yields = hasattr(os, "SCHED_IDLE") and os.sched_getscheduler(0) == os.SCHED_IDLE
        self._last_engine_call = last_engine_call
        self._after_sync = after_sync
        prepare = partial(self._step_back, SPILL_NICENESS)
        self._spill_helpers = Workers(SPILL_THREADS - 1, "kvtier-spill-beside", prepare=prepare)
        for thread in self._threads:
            thread.start()

    def submit_promotion(self, job: Promotion) -> None:
        """Queue a promotion. Never blocks; any thread."""
        self._loads.began()
        self._promotions.put(job)

    def read(self, shard: int, key: ChunkKey, use: Callable[[memoryview], None]) -> Miss | None:
        """Read a frame for `use`, which raises what `open_into` does; why that did not work, None if it did.

        For threads that are not this class's, in place of a promotion. Blocks for as long as the medium does. Never
        raises.
        """
        self._loads.began()
        self._borrowed.began()
        try:
            return self._outcome(partial(self._read, shard, key, use))
        finally:
            self._borrowed.ended()
            self._loads.ended()

    def wake_spiller(self) -> None:
        """There may be something to spill. Never blocks; any thread."""
        self._wake.set()

    def delete(self, shard: int, key: ChunkKey) -> None:
        """Queue the deletion of a frame that no index knows any more. Never blocks; any thread."""
        self._deletes.put((shard, key))
        self._wake.set()

    def stop(self) -> bool:
        """End all threads after the jobs each is at; the store is synced, not closed. Takes STOP_TIMEOUT_S at most.

        True if no slot and no frame is touched afterwards; False if a thread is stuck in the store after
        STOP_TIMEOUT_S, which then must not be closed.
        """
        self._stopping = True
        self._wake.set()
        self._spill_helpers.stop()  # the spill thread does by itself what they do not take any more
        self._promotions.close()
        give_up_s = time.monotonic() + STOP_TIMEOUT_S
        threads = [*self._threads, *self._spill_helpers.threads]
        for thread in threads:
            thread.join(max(0.0, give_up_s - time.monotonic()))
        others_ended = self._borrowed.none_within(give_up_s - time.monotonic())
        return others_ended and not any(thread.is_alive() for thread in threads)

    # ---- up ---------------------------------------------------------------------------------------------------------

    def _promote_loop(self) -> None:
        self._step_back(PROMOTE_NICENESS)
        while jobs := self._promotions.take():
            try:
                opened = self._read_at_once(jobs)
            except Exception as error:  # noqa: BLE001 - one by one they may do
                self._tell(f"promoting together failed unexpectedly: {error!r}")
                opened = [False] * len(jobs)
            for job, is_open in sorted(zip(jobs, opened, strict=True), key=itemgetter(1), reverse=True):
                try:
                    failure = None if is_open else self._outcome(partial(self._promote, job))
                    self._the_work.promoted(job, failure)
                except Exception as error:  # noqa: BLE001 - the thread must outlive any surprise
                    self._tell(f"ending a promotion failed unexpectedly: {error!r}")
                finally:
                    self._loads.ended()

    def _read_at_once(self, jobs: Sequence[Promotion]) -> list[bool]:
        """Which of them are in their slots now. The others are to be promoted one by one."""
        if not (self._at_once and self._may_read):
            return [False] * len(jobs)

        def read(frames: Sequence[FilePages | None]) -> list[bool]:
            wanted = [
                (pages, self._slots[job.resident.slot], job.resident.key)
                for pages, job in zip(frames, jobs, strict=True)
            ]
            return read_at_once(wanted, yields=self._yields)

        opened = self._store.lend([(job.frame.shard, job.resident.key) for job in jobs], read)
        if len(opened) != len(jobs):
            raise RuntimeError(f"{len(opened)} answers for {len(jobs)} frames")
        if any(opened):
            self._reads_ok()
        return opened

    def _outcome(self, load: Callable[[], Miss | None]) -> Miss | None:
        try:
            return load()
        except Exception as error:  # noqa: BLE001 - whatever it was, the chunk is a miss
            self._tell(f"promotion failed unexpectedly: {error!r}")
            return Miss.LOAD_FAILED

    def _promote(self, job: Promotion) -> Miss | None:
        key, slot = job.resident.key, self._slots[job.resident.slot]
        return self._read(job.frame.shard, key, partial(open_into, out=slot, key=key, guard=self._guard))

    def _read(self, shard: int, key: ChunkKey, use: Callable[[memoryview], None]) -> Miss | None:
        if not self._may_read:
            return Miss.GATE  # switched off since: nobody waits for a sick medium, and the frame may be sound
        try:
            with self._store.read(shard, key) as frame:
                if frame is None:
                    self._reads_ok()
                    return Miss.EVICTED
                use(frame)
        except FrameCorruptError as error:
            self._report_bad(shard, key, error)
            return Miss.CORRUPT
        except FrameForeignError as error:
            self._report_bad(shard, key, error)
            return Miss.FOREIGN
        except StoreError as error:
            self._read_failed(error)
            return Miss.LOAD_FAILED
        self._reads_ok()
        return None

    @property
    def _may_read(self) -> bool:
        return self._the_work.disk_readable and not self._stopping

    def _report_bad(self, shard: int, key: ChunkKey, error: Exception) -> None:
        chunk = chunk_hash_of(key).hex()[:16]
        self._tell(f"frame of chunk {chunk} in shard {shard} does not verify; deleted, to be recomputed: {error}")

    def _reads_ok(self) -> None:
        with self._breaker_lock:
            self._read_breaker.succeeded()

    def _read_failed(self, error: StoreError) -> None:
        with self._breaker_lock:
            tripped = self._read_breaker.failed(self._clock())
            if tripped:
                self._the_work.disk_readable = False
                self._the_work.stats.tier_off += 1
        if tripped:
            self._tell(f"disk tier: reading switched off for a while, requests recompute instead: {error}")
            self._wake.set()

    # ---- down -------------------------------------------------------------------------------------------------------

    def _spill_loop(self) -> None:
        self._step_back(SPILL_NICENESS)
        while not self._stopping:
            try:
                busy = self._spill_round()
            except Exception as error:  # noqa: BLE001 - the spiller must outlive any surprise
                self._tell(f"spill round failed unexpectedly: {error!r}")
                busy = False
            if not busy:
                self._wait()
        self._sync(self._clock(), force=True)  # here, because a medium that hangs would hold whoever stops the engine

    def _wait(self) -> None:
        """Sleep until there may be work: at once when woken, else by the clock while anything is unfinished."""
        work = self._the_work
        unfinished = work.n_dirty() or self._owed or self._unsynced or not (work.disk_readable and work.disk_writable)
        self._wake.wait(self._poll_s if unfinished else None)
        self._wake.clear()

    def _spill_round(self) -> bool:
        work = self._the_work
        now = self._clock()
        self._reopen(now)
        self._take_deletes()
        self._sync(now)
        batch = work.next_spills(len(self._buffers), idle=now - self._last_engine_call() > IDLE_AFTER_S)
        if not batch:
            if work.disk_writable:
                for shard in list(self._owed):
                    self._write(shard, [])
            return False
        frames = in_parallel(self._spill_helpers, self._seal, list(zip(batch, self._buffers, strict=False)))
        sealed = [(resident, frame) for resident, frame in zip(batch, frames, strict=True) if frame is not None]
        in_parallel(self._spill_helpers, self._write, list(self._place(sealed).items()))
        return True

    def _seal(self, resident: Resident, buffer: memoryview) -> memoryview | None:
        self._loads.give_way()
        try:
            frame = self._slots[resident.slot]
            if not self._slots.sealed:
                n_bytes = seal_into(frame, buffer, key=resident.key, codec=self._codec, guard=self._guard)
                frame = buffer[:n_bytes]
        except Exception as error:  # noqa: BLE001 - the resident must be unpinned whatever happens
            self._tell(f"sealing failed unexpectedly: {error!r}")
            self._the_work.spilled(resident, None, ok=False)
            return None
        return frame

    def _place(
        self, sealed: list[tuple[Resident, memoryview]]
    ) -> dict[int, list[tuple[Resident, Placement, memoryview]]]:
        """What goes to each shard."""
        by_shard: dict[int, list[tuple[Resident, Placement, memoryview]]] = {}
        placements: list[Placement | None] = [None] * len(sealed)
        try:
            placements = self._the_work.place_all([(resident, len(frame)) for resident, frame in sealed])
        except Exception as error:  # noqa: BLE001 - the residents must be unpinned whatever happens
            self._tell(f"placing failed unexpectedly: {error!r}")
        for (resident, frame), placement in zip(sealed, placements, strict=True):
            if placement is None:
                self._the_work.spilled(resident, None, ok=False)
                continue
            for shard, key in placement.evicted:
                self._owe(shard, [key])
            by_shard.setdefault(placement.frame.shard, []).append((resident, placement, frame))
        return by_shard

    def _write(self, shard: int, items: list[tuple[Resident, Placement, memoryview]]) -> None:
        """Write `items` to one shard, and delete what is owed there."""
        self._loads.give_way()
        work = self._the_work
        # Whatever left the index before these frames were placed goes before they come: the room of it is promised
        # again, and a delete that waited longer could hit a newer frame of its key.
        self._take_deletes()
        with self._owed_lock:
            owed = self._owed.pop(shard, [])
        ok, full = False, False
        try:
            if work.disk_writable:  # else an earlier shard of this round switched it off
                puts = [(resident.key, frame) for resident, _, frame in items]
                self._store.write(shard, puts, owed)
                self._unsynced = True
                with self._breaker_lock:
                    self._write_breaker.succeeded()
                ok = True
        except StoreFullError:
            full = True
        except Exception as error:  # noqa: BLE001 - of whatever kind: the residents must be unpinned
            self._write_failed(error)
        if not ok:  # an error may come after the fact: what was put is to go as well
            self._owe(shard, owed + [resident.key for resident, _, _ in items])
        for n, (resident, placement, _) in enumerate(items, start=1):
            work.spilled(resident, placement, ok=ok, full=full and n == len(items))

    def _take_deletes(self) -> None:
        with self._owed_lock:
            while not self._deletes.empty():
                shard, key = self._deletes.get()
                self._owed.setdefault(shard, []).append(key)

    def _owe(self, shard: int, keys: list[ChunkKey]) -> None:
        with self._owed_lock:
            self._owed.setdefault(shard, []).extend(keys)

    def _write_failed(self, error: Exception) -> None:
        with self._breaker_lock:
            tripped = self._write_breaker.failed(self._clock())
            if tripped:
                self._the_work.disk_writable = False
                self._the_work.stats.tier_off += 1
        if tripped:
            self._tell(f"disk tier: writing switched off for a while, requests go on without it: {error}")

    def _reopen(self, now_s: float) -> None:
        """Give a tier that was switched off another try when its pause is over."""
        work = self._the_work
        if not work.disk_writable and self._write_breaker.allows(now_s):
            work.disk_writable = True
        if not work.disk_readable and self._read_breaker.allows(now_s):
            work.disk_readable = True

    def _sync(self, now_s: float, *, force: bool = False) -> None:
        if not self._unsynced or (now_s - self._synced_s < self._sync_every_s and not force):
            return
        self._synced_s = now_s
        try:
            self._store.sync()
            self._unsynced = self._syncs_fail = False
            self._after_sync()
        except Exception as error:  # noqa: BLE001 - of whatever kind: it must not keep the engine from ending
            if not self._syncs_fail:  # writes that succeed meanwhile keep the breaker from ever saying it
                self._tell(f"disk tier: what was written cannot be synced, a loss of power may cost it: {error}")
            self._syncs_fail = True
            self._write_failed(error)

    def _tell(self, line: str) -> None:
        with contextlib.suppress(Exception):  # a log that cannot be written must not end a thread
            self._report(line)

    @property
    def _the_work(self) -> Work:
        assert self._work is not None
        return self._work

    def _step_back(self, niceness: int) -> None:
        """Let the calling thread run behind others if it is to, where the system knows priorities of threads."""
        if self._steps_back and hasattr(os, "setpriority"):
            with contextlib.suppress(OSError):  # a container may forbid it; then the thread competes as an equal
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)
