"""Depot: the store of one engine's disk tier and all that works on it. What the cache decides -> bytes moved.

`Depot` is what an engine's process sees. `LocalDepot` works on threads of the process it is in: the engine's own, or a
helper process, which then has one over the same host pool.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from kvtier.codec.guards import NO_SECRET, Secret, guard_of
from kvtier.codec.registry import RAW, codec_for
from kvtier.errors import StoreError, StoreFormatError
from kvtier.store.beside import room_beside
from kvtier.store.lmdb import LmdbStore
from kvtier.tiers.follow import Follower
from kvtier.transfer.mover import Mover, promotions_at_once
from kvtier.transfer.precedence import LoadsFirst
from kvtier.transfer.probe import LoadProbe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from kvtier.codec.base import Codec
    from kvtier.residency import Frame, Promotion
    from kvtier.store.listing import Listing
    from kvtier.tiers.follow import Index, SharedIndex
    from kvtier.transfer.slots import Slots
    from kvtier.transfer.work import Work
    from kvtier.types import ChunkKey


class SharedPool(NamedTuple):
    """A host pool that another process can map as well."""

    view: memoryview
    fd: int  # of the file behind it, from its first byte; its owner closes it when the engine's cache has stopped


@dataclass(frozen=True)
class Plan:
    """What a depot is to be. Plain values: it travels to a helper process."""

    folder: Path
    capacity_bytes: int
    shard_map_bytes: int
    sync_commits: bool
    chunk_bytes: int
    dtype: str
    raw: bool  # frames are not to be compressed
    n_promote_threads: int
    poll_s: float
    sync_every_s: float
    n_reads_ahead: int = 0
    runs_idle: bool = True  # a helper process takes only processor time that nobody else wants
    secret: Secret = NO_SECRET

    @property
    def n_readers(self) -> int:
        """Threads that read."""
        return self.n_promote_threads + self.n_reads_ahead

    @property
    def n_at_work(self) -> int:
        """Promotions that threads may be at."""
        return self.n_readers * promotions_at_once(self.codec, guard_of(self.secret))

    @property
    def codec(self) -> Codec:
        """What frames are made with."""
        return RAW if self.raw else codec_for(self.dtype)


class Depot(Protocol):
    """Opened by whoever makes it. `scan`, then `start`, each once; `stop` once, whatever was called before."""

    plan: Plan

    @property
    def folder(self) -> Path:
        """Where it is: as planned, or beside that, where a newer build's store is in the way."""
        ...

    @property
    def n_shards(self) -> int:
        """As `Store`'s."""
        ...

    @property
    def shard_bytes(self) -> int:
        """As `Store`'s."""
        ...

    @property
    def opened_alone(self) -> bool:
        """As `SharedStore`'s."""
        ...

    def frame_cost(self, n_bytes: int) -> int:
        """As `Store`'s."""
        ...

    def scan(self) -> Iterator[Listing]:
        """As `Store`'s; what it leaves out because nobody can look there yet, the index hears of after `start`."""
        ...

    def start(
        self, work: Work, index: SharedIndex, last_engine_call: Callable[[], float], after_sync: Callable[[], None]
    ) -> None:
        """Begin to serve `work`, as `Mover.start` says, and to tell `index` what other processes do to the store."""
        ...

    def probe(self, frames: Sequence[Frame], tell: Callable[[float], None]) -> None:
        """Tell once, from another thread, at how many bytes per second `frames` come up; see `LoadProbe`."""
        ...

    def submit_promotion(self, job: Promotion) -> None:
        """As `Mover`'s: never blocks."""
        ...

    def wake_spiller(self) -> None:
        """As `Mover`'s: never blocks."""
        ...

    def delete(self, shard: int, key: ChunkKey) -> None:
        """As `Mover`'s: never blocks."""
        ...

    def catch_up(self, *, wait_s: float = 0.0) -> None:
        """As `Follower`'s."""
        ...

    def written_before(self, shard: int, before_ns: int) -> list[ChunkKey]:
        """As `Store`'s."""
        ...

    def stop(self) -> bool:
        """End it in seconds; what was written is synced. True if neither slot nor store is touched afterwards."""
        ...


class LocalDepot:
    """On threads of this process."""

    def __init__(self, plan: Plan, slots: Slots, *, steps_back: bool = False, report: Callable[[str], None]) -> None:
        """Open the store of `plan`; see `LmdbStore.open` for what that raises. `report` prints a line, any thread.

        `steps_back` as in Mover.
        """
        self.plan = plan
        self._guard = guard_of(plan.secret)
        self._probe: LoadProbe | None = None
        self._started = self._stopping = False
        self._asking = LoadsFirst()  # threads of others that are in the store
        self._store, self.folder, self.capacity_bytes = _open_store(plan, report)
        self._follower = Follower(self._store, report=report)
        self._mover = Mover(
            slots,
            self._follower,
            plan.codec,
            guard=self._guard,
            n_promote_threads=plan.n_promote_threads,
            n_reads_ahead=plan.n_reads_ahead,
            poll_s=plan.poll_s,
            sync_every_s=plan.sync_every_s,
            steps_back=steps_back,
            report=report,
        )
        self.n_shards = self._store.n_shards
        self.shard_bytes = self._store.shard_bytes
        self.opened_alone = self._store.opened_alone
        self.frame_cost = self._store.frame_cost
        self.scan = self._follower.scan
        self.read = self._mover.read
        self.submit_promotion = self._mover.submit_promotion
        self.wake_spiller = self._mover.wake_spiller
        self.delete = self._mover.delete

    @property
    def page_bytes(self) -> int:
        """What `frame_cost` rests on."""
        return self._store.page_bytes

    def start(
        self, work: Work, index: Index, last_engine_call: Callable[[], float], after_sync: Callable[[], None]
    ) -> None:
        """As `Depot` says."""
        self._started = True
        self._mover.start(work, last_engine_call, after_sync=after_sync)
        self._follower.start(index)

    def probe(self, frames: Sequence[Frame], tell: Callable[[float], None]) -> None:
        """As `Depot` says."""
        self._probe = LoadProbe(
            self._follower,
            list(frames),
            self.plan.chunk_bytes,
            guard=self._guard,
            n_threads=self.plan.n_readers,
            n_processors=len(os.sched_getaffinity(0)),
            tell=tell,
        )
        self._probe.start()

    def catch_up(self, *, wait_s: float = 0.0) -> None:
        """As `Depot` says."""
        with self._in_store():
            self._follower.catch_up(wait_s=wait_s)

    def written_before(self, shard: int, before_ns: int) -> list[ChunkKey]:
        """As `Depot` says."""
        with self._in_store():
            return self._follower.written_before(shard, before_ns)

    @contextmanager
    def _in_store(self) -> Iterator[None]:
        """The store stays open for the block; StoreError when it is too late for that."""
        self._asking.began()
        try:
            if self._stopping:
                raise StoreError("the disk tier is being stopped")
            yield
        finally:
            self._asking.ended()

    def stop(self) -> bool:
        """As `Depot` says."""
        self._stopping = True
        ended = [self._asking.none_within(0.0)]  # who asks has been given its time to end
        ended += [self._probe.stop()] if self._probe is not None else []
        if self._started:
            ended += [self._mover.stop(), self._follower.stop()]
        stopped = all(ended)
        if stopped:
            self._store.close()
        return stopped


def _open_store(plan: Plan, report: Callable[[str], None]) -> tuple[LmdbStore, Path, int]:
    open_store = partial(
        LmdbStore.open, shard_map_bytes=plan.shard_map_bytes, sync_commits=plan.sync_commits, report=report
    )
    folder, capacity_bytes = plan.folder, plan.capacity_bytes
    try:
        store = open_store(folder, capacity_bytes)
    except StoreFormatError as error:
        folder, capacity_bytes = room_beside(folder, capacity_bytes)
        report(f"{error}. Until then this one starts beside it, in {folder}, with {capacity_bytes} bytes")
        store = open_store(folder, capacity_bytes)
    for notice in store.notices:
        report(notice)
    return store, folder, capacity_bytes
