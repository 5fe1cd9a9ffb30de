"""TieredCache: the one orchestrator. Says what is where, who leaves, and what to move; moves nothing itself.

Scheduler-thread calls (lookup, begin_*, end_*, close_chain, step_ended) are dictionary work under one short lock.
Transfer threads take work (next_spills, place) and report back (promoted, spilled) under the same lock.
"""

from __future__ import annotations

import threading
from itertools import islice, takewhile
from typing import TYPE_CHECKING

from kvtier.backlog import CLEAN_SHARE, Backlog
from kvtier.observe.rate import PrefillRate
from kvtier.observe.stats import Gauges, Stats
from kvtier.policy.gate import LoadGate
from kvtier.promotions import PINNED_SHARE, UNDER_WAY, Promotions
from kvtier.residency import PROMOTING, READY, Chain, Offload, Placement, Promises, Promotion, Resident, State
from kvtier.tiers.host import MAX_OFFLOAD_SCAN
from kvtier.types import LOOKUP_HIT, LOOKUP_MISS, LOOKUP_PENDING, SOURCE_HOST, Found, Miss, Source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from kvtier.budget import WriteBudget
    from kvtier.tiers.disk import DiskTier
    from kvtier.tiers.host import HostTier
    from kvtier.types import ChunkKey, Lookup

QUARANTINE_STEPS = 16
"""Engine steps after a reset until copies that were in flight have surely ended (pipeline depth included)."""

PROMISE_STEPS = 256
"""Engine steps after which promises of a request that is not looked up any more are taken back."""


N_AT_ONCE = 64
"""Chunks of a prefix that are looked up under the lock at a time. That takes about 60 us, and transfer threads wait."""


class TieredCache(Promotions):
    """Lookup, touch, spill, promote, evict over a host tier and, where there is one, a disk tier."""

    def __init__(
        self,
        host: HostTier,
        disk: DiskTier | None,
        *,
        clock: Callable[[], float],
        submit_promotion: Callable[[Promotion], None],
        wake_spiller: Callable[[], None],
        delete_frame: Callable[[int, ChunkKey], None],
        write_behind_after_s: float | None,
        clean_share: float = CLEAN_SHARE,
        ready_for_restart: bool = True,
        gate: LoadGate | None = None,
        admit_share: float = 1.0,
        budget: WriteBudget | None = None,
        max_under_way: int = UNDER_WAY,
    ) -> None:
        """Orchestrate `host` and `disk`.

        `clock` gives seconds, any origin. `submit_promotion`, `wake_spiller` and `delete_frame` hand work to transfer
        threads; they are called under the lock and must not block. `write_behind_after_s`, `clean_share`,
        `admit_share` and `budget` are as in Backlog. Unless `ready_for_restart`, the disk copy of what host RAM keeps
        serving grows cold and makes room. Without `gate` whatever is on disk is loaded.
        `max_under_way` promotions begin, the others stand in line.
        """
        self.stats = Stats()
        self.host = host
        self.disk = disk
        self.disk_readable = True  # switched by the transfer threads' circuit breaker
        self.disk_writable = True
        self._clock = clock
        self._submit_promotion = submit_promotion
        self._wake_spiller = wake_spiller
        self._delete_frame = delete_frame
        self._gate = gate or LoadGate(
            chunk_bytes=host.chunk_bytes, tokens_per_chunk=1, prefill=PrefillRate(), mode="always"
        )
        self._lock = threading.Lock()
        self._promises = Promises(host.release)
        self._backlog = Backlog(
            host,
            self.stats,
            write_behind_after_s=write_behind_after_s,
            clean_share=clean_share,
            admit_share=admit_share,
            n_remembered=max(1, 2 * disk.capacity_bytes // host.chunk_bytes if disk is not None else 1),
            budget=budget,
        )
        self._quarantine: list[tuple[int, Resident]] = []
        self._step = 0
        self._n_promoting = 0
        self._max_under_way = max_under_way
        self._max_pinned = int(host.n_slots * PINNED_SHARE)
        self._ready_for_restart = ready_for_restart

    # ---- scheduler thread -------------------------------------------------------------------------------------------

    def open_chain(self) -> Chain:
        """A request arrived. Close the chain when it has ended, whatever became of it."""
        with self._lock:
            return self._promises.open()

    def lookup(self, chain: Chain, key: ChunkKey) -> Lookup:
        """Where is `key`?

        HIT and PENDING promise it to `chain`: it stays until begin_onload, close_chain, or the request is not looked up
        any more for PROMISE_STEPS. A chunk on disk starts its promotion here, if a slot can be had; otherwise MISS, so
        that a prefix longer than the pool yields its longest loadable head.
        """
        with self._lock:
            chain.seen_step = self._step
            return self._lookup(chain, key)

    def lookup_prefix(self, chain: Chain, keys: Iterable[ChunkKey], *, n_at_once: int = N_AT_ONCE) -> Found:
        """`lookup` of `keys`, all different, head first and up to the first MISS. Takes half the time.

        Takes the lock for `n_at_once` of them at a time.
        """
        n_chunks, pending, left = 0, False, iter(keys)
        while some := list(islice(left, n_at_once)):
            with self._lock:
                chain.seen_step = self._step
                if self._stand_in_line(chain, some):
                    n_chunks, pending = n_chunks + len(some), True
                    continue
                for key in some:
                    answer = self._lookup(chain, key)
                    if answer is LOOKUP_MISS:
                        return Found(n_chunks, pending)
                    n_chunks += 1
                    pending |= answer is LOOKUP_PENDING
        return Found(n_chunks, pending)

    def begin_walk(self, chain: Chain, n_chunks: int = 1, n_before: int = 0) -> bool:
        """The engine is about to ask for the keys of `chain` from the head; False if promotions are under way still.

        The device has `n_before` of its tokens; beyond those the request could find `n_chunks` at most.
        """
        chain.seen_step = self._step
        if chain.pending:
            now = self._clock()
            self._gate.n_in_line = self._promises.n_waiting
            if self._gate.waits(chain, now):
                return False
            with self._lock:  # the request computes what it cannot get in time
                self._gate.gave_up(chain, now)
                self._promises.take_back(chain)
                self.stats.gave_up_requests += 1
        chain.waits_since_s = None
        chain.miss = None
        chain.n_chunks, chain.n_before = n_chunks, n_before
        return True

    def begin_onload(self, chain: Chain, keys: Sequence[ChunkKey]) -> list[int] | None:
        """Slots of `keys`, all HIT before, pinned until end_onload. None if one is gone, which is a caller's bug.

        Takes back the chain's promises and counts one use of each key.
        """
        with self._lock:
            residents = [self.host.get(key) for key in keys]
            slots = [r.slot for r in residents if r is not None and r.state is State.READY and not r.spoilt]
            if len(slots) != len(keys):
                self._promises.take_back(chain)
                return None
            for resident in residents:
                assert resident is not None
                resident.onloads += 1
            self._use(chain, keys)
            self.stats.onload_bytes += len(slots) * self.host.chunk_bytes
            self._promises.take_back(chain)
            return slots

    def end_onload(self, keys: Sequence[ChunkKey], *, failed: bool = False) -> None:
        """The copies that begin_onload announced have ended. A failed one drops its chunks from all tiers."""
        with self._lock:
            for key in keys:
                resident = self.host.get(key)
                if resident is None or not resident.onloads:
                    continue  # a reset came between; the quarantine has it
                resident.onloads -= 1
                if failed:
                    # From everywhere: the retry must not find what failed, or it would fail for ever.
                    self.stats.load_errors += 1
                    resident.spoilt = True
                    self._promises.break_off(resident)
                    self._promises.blame(key, Miss.LOAD_FAILED)
                    self._backlog.remove(resident)
                    self._forget_disk(key)
                if resident.spoilt and not resident.onloads:  # until then it stands for the other copies from its slot
                    self._forget_host(resident)

    def begin_offload(self, chain: Chain, keys: Sequence[ChunkKey]) -> Offload:
        """The engine has computed `keys`, head first: which to copy down, and where.

        Keys already here count one use. What is left out for lack of slots is the tail, and counted as refused.
        """
        with self._lock:
            absent = [key for key in dict.fromkeys(keys) if key not in self.host]
            self._use(chain, keys)
            known = {key for key in absent if self._remembered(key)} if self._backlog.selective else ()
            self._make_room(chain, len(absent), MAX_OFFLOAD_SCAN)
            placed = absent[: self.host.n_free]
            self.stats.store_refused_chunks += len(absent) - len(placed)
            residents = [self.host.place(key, State.WRITING, 0.0) for key in placed]
            for key in reversed(placed):
                self.host.policy.refresh(key)
            if residents and self._backlog.selective and self.disk is not None:
                self._backlog.judge(chain, residents, known)
            return Offload(placed, [resident.slot for resident in residents])

    def end_offload(self, keys: Sequence[ChunkKey], *, failed: bool = False) -> None:
        """The copies that begin_offload announced have landed, or failed: then their slots hold nothing."""
        now = self._clock()
        with self._lock:
            for key in keys:
                resident = self.host.get(key)
                if resident is None or resident.state is not State.WRITING:
                    continue  # a reset came between
                self._promises.ready(resident)
                resident.since_s = now
                if failed:
                    self._forget_host(resident)
                    continue
                self.stats.offloaded_chunks += 1
                self.stats.offload_bytes += self.host.chunk_bytes
                if self._is_on_disk(key):
                    resident.held_back = False
                elif self.disk is not None and not resident.held_back:
                    self._backlog.add(resident)
            if self._backlog:
                self._wake_spiller()

    def close_chain(self, chain: Chain) -> None:
        """The request has ended: take back its promises and leave its chain head hottest."""
        with self._lock:
            self._promises.close(chain)
            for key in reversed(chain.sources | chain.used):  # what was looked up comes first in the chain
                if key in self.host:
                    self.host.policy.refresh(key)
                # On disk too, or what host RAM always has would be the coldest there and gone after a restart.
                on_disk = self._ready_for_restart or chain.sources.get(key) is not SOURCE_HOST
                if on_disk and self.disk is not None and key in self.disk:
                    self.disk.policy.refresh(key)

    def step_ended(self) -> None:
        """One engine step was scheduled. Releases what only had to outlive a number of steps."""
        self._step += 1
        if self._step & 63 and not self._quarantine:
            return
        with self._lock:
            while self._quarantine and self._quarantine[0][0] <= self._step:
                resident = self._quarantine.pop(0)[1]
                resident.state, resident.onloads = State.READY, 0
                self.host.release(resident)
            self._promises.take_back_unseen(self._step - PROMISE_STEPS)

    def reset(self, family: bytes) -> None:
        """The engine's weights may have changed: nothing stored so far may be found again; `family` begins new keys."""
        with self._lock:
            self._promises.take_back_all()
            for resident in list(self.host.residents()):
                if resident.state is State.WRITING or resident.onloads:
                    # The engine's copies are still under way and nobody will say when they end.
                    self._quarantine.append((self._step + QUARANTINE_STEPS, resident))
                self.host.drop(resident.key)
            self._backlog.clear()
            if self.disk is not None:
                self.disk.set_family(family)

    def grow_host(self, n_slots: int) -> None:
        """The first `n_slots` of the host pool may be used from now on."""
        with self._lock:
            self.host.grow(n_slots)
            self._max_pinned = int(self.host.n_slots * PINNED_SHARE)

    def count_request(self, chain: Chain, asked: int, device: int, host: int, disk: int) -> None:
        """A request was admitted: tokens `asked`, and those of them that each source had."""
        with self._lock:
            stats = self.stats
            stats.requests += 1
            stats.asked_tokens += asked
            for source, n_tokens in zip(Source, (device, host, disk), strict=True):
                stats.hit_tokens[source] += n_tokens
            stats.miss_tokens[Miss.NEW if chain.miss is None else chain.miss] += asked - device - host - disk

    # ---- transfer threads -------------------------------------------------------------------------------------------

    def promoted(self, job: Promotion, failure: Miss | None) -> None:
        """A promotion ended. After a failure the chunk is in no tier, so that the next lookup recomputes it.

        Miss.GATE means that the frame was not looked at: it stays on disk.
        """
        now = self._clock()
        with self._lock:
            resident = job.resident
            self._promises.ready(resident)
            resident.since_s = now
            if failure is None:
                self.host.release(resident)
            else:
                self._forget_host(resident, failure)
            self._read_ended(job.frame, failure, now)

    def assume_load_rate(self, bytes_per_s: float) -> None:
        """What a probe of the disk tier gave; counts unless loads have been measured meanwhile."""
        with self._lock:
            self._gate.disk.assume(bytes_per_s)

    def next_spills(self, max_chunks: int, *, idle: bool) -> list[Resident]:
        """Dirty chunks to write now, pinned until `spilled`; see Backlog for which."""
        if self.disk is None or not self.disk_writable or not self._backlog:
            return []
        now = self._clock()
        with self._lock:
            return self._backlog.next(max_chunks, now, idle=idle)

    def place(self, key: ChunkKey, n_bytes: int) -> Placement | None:
        """Room on disk for the sealed frame of a spill; the evicted are to be deleted before or with the write.

        None, too, when the write budget is spent. Reads and writes the budget's small file at times.
        """
        return self._place([(key, n_bytes)])[0]

    def place_all(self, sealed: Sequence[tuple[Resident, int]]) -> list[Placement | None]:
        """`place` for a batch. Takes the lock for as many of them at a time as one shard takes."""
        return self._place([(resident.key, n_bytes) for resident, n_bytes in sealed])

    def _place(self, frames: Sequence[tuple[ChunkKey, int]]) -> list[Placement | None]:
        disk, budget = self.disk, self._backlog.budget
        assert disk is not None
        placements: dict[ChunkKey, Placement | None] = {}
        left = []
        for key, n_bytes in frames:
            if budget is None or budget.take(disk.cost_of(n_bytes)):
                left.append((key, n_bytes))
                continue
            placements[key] = None
            with self._lock:
                resident = self.host.get(key)
                if resident is not None and resident.spilling:
                    self._backlog.hold_back(resident)
        while left:
            with self._lock:
                placed: list[Placement | None] = [None]
                if left[0][0] not in disk:  # another process may write any of them meanwhile
                    placed = disk.place_head(list(takewhile(lambda frame: frame[0] not in disk, left)))
                self.stats.disk_evicted_chunks += sum(len(one.evicted) for one in placed if one is not None)
            for (key, n_bytes), placement in zip(left, placed, strict=False):
                placements[key] = placement
                if placement is None and budget is not None:
                    budget.give_back(disk.cost_of(n_bytes))
            left = left[len(placed) :]
        return [placements[key] for key, _ in frames]

    def spilled(self, resident: Resident, placement: Placement | None, *, ok: bool, full: bool = False) -> None:
        """The write of a spill ended. `full`, with the last of a write's: its shard had less room than was thought."""
        with self._lock:
            assert self.disk is not None
            resident.spilling = False
            if ok and placement is not None:
                frame = placement.frame
                self.stats.spilled_chunks += 1
                self.stats.spill_raw_bytes += self.host.chunk_bytes
                self.stats.spill_stored_bytes += frame.n_bytes
                for shard, key in self.disk.committed(frame):
                    self._delete_frame(shard, key)
                if resident.detached or resident.spoilt:  # dropped meanwhile: what came to disk after that goes too
                    self._forget_disk(resident.key)
                self._backlog.remove(resident)
            else:
                if placement is not None:
                    self.disk.drop(resident.key)
                    if full:
                        self.disk.shard_full(placement.frame.shard)
                if self._is_on_disk(resident.key):  # another process wrote it meanwhile
                    self._backlog.remove(resident)
                elif not resident.held_back:
                    self._backlog.failed(resident)
            self.host.release(resident)

    def written_elsewhere(self, key: ChunkKey) -> None:
        """Another process wrote `key`: this one need not. Called under the lock."""
        resident = self.host.get(key)
        if resident is not None and self._is_on_disk(key):
            resident.held_back = False
            self._backlog.remove(resident)

    def n_dirty(self) -> int:
        """Chunks in host that are not on disk."""
        return len(self._backlog)

    def snapshot(self, prefill_tokens_per_s: float) -> tuple[Stats, Gauges]:
        """Totals and state of one instant; called by whoever prints them, any thread."""
        with self._lock:
            disk = self.disk
            return self.stats.copy(), Gauges(
                host_used_bytes=self.host.used_bytes,
                host_capacity_bytes=self.host.capacity_bytes,
                disk_used_bytes=disk.used_bytes if disk is not None else 0,
                disk_capacity_bytes=disk.capacity_bytes if disk is not None else 0,
                disk_raw_bytes=len(disk) * self.host.chunk_bytes if disk is not None else 0,
                disk_stored_bytes=disk.frame_bytes if disk is not None else 0,
                spill_backlog=len(self._backlog),
                promote_backlog=self._n_promoting + self._promises.n_waiting,
                prefill_tokens_per_s=prefill_tokens_per_s,
                **self._gate.rates()._asdict(),
                disk_on=disk is not None and self.disk_readable,
                write_budget_bytes=self._backlog.budget.left_bytes if self._backlog.budget is not None else 0,
            )

    def check(self) -> None:
        """Raise AssertionError if an invariant is broken."""
        with self._lock:
            self.host.check()
            if self.disk is not None:
                self.disk.check()
            self._promises.check(self.host.residents())
            self._backlog.check()
            for resident in self.host.residents():
                assert not resident.dirty or (resident.state is State.READY and not self._is_on_disk(resident.key))
            assert self._n_promoting >= (self._max_under_way if self._promises.n_waiting else 0)

    # ---- under the lock ---------------------------------------------------------------------------------------------

    def _lookup(self, chain: Chain, key: ChunkKey) -> Lookup:
        resident = self.host.get(key)
        if resident is None:
            return self._lookup_disk(chain, key)
        if resident.spoilt:
            return self._miss(chain, key, Miss.LOAD_FAILED)
        if key not in chain.promises:
            if resident.state is PROMOTING and not self._gate.joins(chain):
                return self._miss(chain, key, Miss.GATE)
            self._promises.give(chain, resident)
            chain.sources.setdefault(key, SOURCE_HOST)
            self.host.policy.refresh(key)  # pinned chunks at the cold end would be in the way of evictions
        return LOOKUP_HIT if resident.state is READY else LOOKUP_PENDING

    def _lookup_disk(self, chain: Chain, key: ChunkKey) -> Lookup:
        disk = self.disk
        if disk is None or not disk.is_ready(key):
            return self._miss(chain, key)
        if not self.disk_readable:
            return self._miss(chain, key, Miss.LOAD_FAILED)
        return LOOKUP_PENDING if self._promote(chain, key) else self._miss(chain, key, Miss.GATE)

    def _miss(self, chain: Chain, key: ChunkKey, reason: Miss | None = None) -> Lookup:
        if chain.miss is None:
            chain.miss = reason if reason is not None else chain.failures.get(key)
            if chain.miss is None:
                chain.miss = self._why_absent(key)
        return LOOKUP_MISS

    def _why_absent(self, key: ChunkKey) -> Miss:
        if self._remembered(key):
            return Miss.EVICTED
        return Miss.FOREIGN if self.disk is not None and self.disk.has_foreign(key) else Miss.NEW

    def _remembered(self, key: ChunkKey) -> bool:
        """Whether a tier evicted `key` not too long ago."""
        return self.host.remembers(key) or (self.disk is not None and self.disk.remembers(key))

    def _use(self, chain: Chain, keys: Sequence[ChunkKey]) -> None:
        """Count one use per request of each of `keys`, given head first; the head is hottest afterwards."""
        policy = self.host.policy
        held_back: list[Resident] = []
        for key in reversed(keys):
            resident = self.host.get(key)
            if resident is None:
                continue
            if key in chain.used:
                policy.refresh(key)
                continue
            policy.touch(key)
            if resident.held_back:
                held_back.append(resident)
        if held_back:
            self._backlog.used_again(chain, held_back[::-1])
            self._wake_spiller()
        chain.used.update(dict.fromkeys(keys))
