"""Traffic: a depot kept busy over a real store, with a stand-in for the cache. Chunks in, counts out.

What decides is the real disk tier and nothing else: every promotion is of a frame that is there, every spill of a chunk
that is not, and a spill evicts the oldest when there is no room, as long as the traffic lasts.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from kvtier.bench.store import key_of
from kvtier.codec.base import Codec
from kvtier.codec.frame import frame_bound, seal_into
from kvtier.depot import LocalDepot, Plan, SharedPool
from kvtier.errors import StoreError
from kvtier.helper.depot import HelperDepot
from kvtier.observe.stats import Stats
from kvtier.policy.linked import LinkedSlru
from kvtier.residency import Frame, Placement, Promotion, Resident, State
from kvtier.store.lmdb import LmdbStore, shard_map_bytes_for
from kvtier.tiers.disk import DiskTier
from kvtier.tiers.follow import SharedIndex
from kvtier.transfer.slots import Slots
from kvtier.types import NAMESPACE_BYTES, ChunkKey, Miss

WRITE_BATCH = 8
PROMOTIONS_QUEUED = 32
"""Of one endless prefix: as many as keep every reading thread busy."""


def capacity_for(n_chunks: int, chunk_bytes: int) -> int:
    """Disk capacity that takes `n_chunks` however little they shrink."""
    return (n_chunks * (chunk_bytes + 3 * 4096) + (16 << 20)) * 4 // 3


def fill(path: Path, chunks: Sequence[memoryview], n_chunks: int, codec: Codec) -> dict[int, int]:
    """Write `n_chunks` chunks as an engine leaves them: a chain's frames from shard to shard. Shard of each number."""
    chunk_bytes = len(chunks[0])
    room = [memoryview(bytearray(frame_bound(chunk_bytes, codec))) for _ in range(WRITE_BATCH)]
    store = open_store(path, n_chunks, chunk_bytes)
    shards: dict[int, int] = {}
    try:
        for first in range(0, n_chunks, WRITE_BATCH * store.n_shards):
            for shard in range(store.n_shards):
                numbers = range(first + shard, min(first + WRITE_BATCH * store.n_shards, n_chunks), store.n_shards)
                puts = []
                for number, out in zip(numbers, room, strict=False):
                    key = key_of(number)
                    puts.append((key, out[: seal_into(chunks[number % len(chunks)], out, key=key, codec=codec)]))
                    shards[number] = shard
                store.write(shard, puts, [])
        store.sync()
    finally:
        store.close()
    return shards


def open_store(path: Path, n_chunks: int, chunk_bytes: int) -> LmdbStore:
    """The store at `path`, with room for `n_chunks`."""
    return LmdbStore.open(path, capacity_for(n_chunks, chunk_bytes), shard_map_bytes=shard_map_bytes_for(chunk_bytes))


def plan_for(
    path: Path, n_chunks: int, chunk_bytes: int, dtype: str, n_threads: int, *, n_reads_ahead: int = 0
) -> Plan:
    """The same store, and what an engine works on it with."""
    return Plan(
        folder=path,
        capacity_bytes=capacity_for(n_chunks, chunk_bytes),
        shard_map_bytes=shard_map_bytes_for(chunk_bytes),
        sync_commits=False,
        chunk_bytes=chunk_bytes,
        dtype=dtype,
        raw=False,
        n_promote_threads=n_threads,
        n_reads_ahead=n_reads_ahead,
        poll_s=0.05,
        sync_every_s=5.0,
    )


class Moved(NamedTuple):
    """Chunks that went each way so far."""

    promoted: int
    spilled: int


class Traffic:
    """`Work` for one depot. Its methods of that protocol are called by transfer threads."""

    def __init__(self, plan: Plan, pool: memoryview | SharedPool) -> None:
        """Move between the rows of `pool` and the store of `plan`, of which it takes everything as promotable.

        In a helper process when the pool is shared, else on threads of this one.
        """
        self.stats = Stats()
        self.disk_readable = True
        self.disk_writable = True
        self.failures: list[str] = []
        self._lock = threading.Lock()
        self._done = threading.Condition(self._lock)
        self.depot: LocalDepot | HelperDepot
        if isinstance(pool, SharedPool):
            self.depot = HelperDepot(plan, pool, report=self.failures.append)
        else:
            self.depot = LocalDepot(plan, Slots(pool, plan.chunk_bytes), report=self.failures.append)
        self._disk = DiskTier(self.depot.n_shards, self.depot.shard_bytes, self.depot.frame_cost, LinkedSlru(1))
        self._disk.set_family(key_of(0)[:8])
        self._disk.load(self.depot.scan())
        self._promoted = self._spilled = self._n_spilling = 0
        self._promote_goal = self._spill_goal = 0
        self._endless: itertools.cycle[Frame] | None = None
        self._new_keys = itertools.count(time.time_ns())  # not in the store from an earlier traffic
        view = pool.view if isinstance(pool, SharedPool) else pool
        self._n_slots = view.nbytes // plan.chunk_bytes
        self._spill_slots = itertools.cycle(range(self._n_slots))
        self._promote_slots = itertools.cycle(range(self._n_slots))
        index = SharedIndex(self._disk, self._lock, self.depot.delete)
        self.depot.start(self, index, lambda: 0.0, lambda: None)

    # ---- what a benchmark asks for

    def promote(self, numbers: Sequence[int]) -> None:
        """Promote chunks `numbers`, in order, and wait until all are there. StoreError when one is not."""
        frames = [self._frame(number) for number in numbers]
        goal = self._promote_goal = self._promoted + len(frames)
        for row, frame in enumerate(frames):
            self._submit(frame, row % self._n_slots)
        with self._done:
            self._done.wait_for(lambda: self._promoted >= goal)
        self._raise_failures()

    def spill(self, n_chunks: int) -> None:
        """Spill so many chunks, one row of the pool after the other, and wait until they are written."""
        with self._done:
            self._spill_goal += n_chunks
            goal = self._spill_goal
        self.depot.wake_spiller()
        with self._done:
            self._done.wait_for(lambda: self._spilled >= goal or self.failures)
        self._raise_failures()

    def begin(self, *, loads: bool, spills: bool) -> None:
        """Promote or spill, or both, without end."""
        if loads:
            frames = list(self._disk.frames())
            again = frames[: len(frames) // 2]  # the other half is what spills replace
            for frame in again:
                self._disk.pin(frame.key)
            self._endless = itertools.cycle(again)
            for frame in itertools.islice(self._endless, PROMOTIONS_QUEUED):
                self._submit(frame, next(self._promote_slots))
        if spills:
            self._spill_goal = 1 << 60
            self.depot.wake_spiller()

    def moved(self) -> Moved:
        """So far."""
        return Moved(self._promoted, self._spilled)

    def stop(self) -> None:
        """End it, and close the store."""
        self._endless = None
        self._spill_goal = 0
        self.depot.stop()

    # ---- Work

    def next_spills(self, max_chunks: int, *, idle: bool) -> list[Resident]:  # noqa: ARG002 - busy or not, it spills
        """See `Work`."""
        with self._lock:
            n = min(max_chunks, self._spill_goal - self._spilled - self._n_spilling)
            self._n_spilling += max(0, n)
        return [Resident(_spill_key(next(self._new_keys)), next(self._spill_slots), State.READY, 0.0) for _ in range(n)]

    def place_all(self, sealed: Sequence[tuple[Resident, int]]) -> list[Placement | None]:
        """See `Work`."""
        with self._lock:
            return self._disk.place_all([(resident.key, n_bytes) for resident, n_bytes in sealed])

    def spilled(self, resident: Resident, placement: Placement | None, *, ok: bool, full: bool = False) -> None:
        """See `Work`."""
        with self._done:
            self._n_spilling -= 1
            self._spilled += ok
            if placement is None or not ok:
                self.failures.append(f"chunk {resident.key.hex()} could not be written (full: {full})")
            if ok and placement is not None:
                self._disk.committed(placement.frame)
            self._done.notify_all()

    def promoted(self, job: Promotion, failure: Miss | None) -> None:
        """See `Work`."""
        with self._done:
            self._disk.unpin(job.frame)
            self._promoted += 1
            if failure is not None:
                self.failures.append(f"chunk {job.frame.key.hex()} could not be read: {failure.name}")
            if self._promoted >= self._promote_goal:  # an engine is not woken for each either: it asks in its next step
                self._done.notify_all()
        if self._endless is not None:
            self._submit(next(self._endless), job.resident.slot)

    def n_dirty(self) -> int:
        """See `Work`."""
        return max(0, self._spill_goal - self._spilled)

    def _frame(self, number: int) -> Frame:
        frame = self._disk.get(key_of(number))
        assert frame is not None
        return frame

    def _submit(self, frame: Frame, slot: int) -> None:
        with self._lock:
            pinned = self._disk.pin(frame.key)
        self.depot.submit_promotion(Promotion(Resident(frame.key, slot, State.PROMOTING, 0.0), pinned))

    def _raise_failures(self) -> None:
        if self.failures:
            raise StoreError(self.failures[0])


def _spill_key(number: int) -> ChunkKey:
    return ChunkKey(b"bench".ljust(NAMESPACE_BYTES, b"\0") + b"spill".ljust(24, b"\0") + number.to_bytes(8, "big"))
