"""Follower: what other processes do to a shared store -> the index of this one. A store that goes on as it is, watched.

Every process has the whole index in memory. It stays true by reading, about once a second and after each own write, the
log of the shards that somebody else has changed. What is not known yet costs a miss or a write too many, never more: a
frame that is gone reads as absent, and a shard that is fuller than was thought refuses.
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING, Protocol

from kvtier.errors import StoreError, StoreFullError
from kvtier.store.base import Change
from kvtier.store.listing import coldest_first

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from kvtier.store.base import SharedStore
    from kvtier.store.listing import Listing
    from kvtier.tiers.disk import DiskTier
    from kvtier.types import ChunkKey, UsePages

FOLLOW_EVERY_S = 1.0
"""How old this process's knowledge of what others wrote may be. A look at 256 unchanged shards takes 0.2 ms."""

RELEASE_DEAD_EVERY_S = 10.0
"""How long what a killed reader held is kept from being used again, at most; less when a shard runs full."""

CHANGES_AT_ONCE = 128
"""Changes handed to the index in one call, which holds its lock; about 0.1 ms."""


class Index(Protocol):
    """Whoever knows what is on disk. Called from any thread; each call takes the index's own lock for a short time."""

    def follow_disk(self, shard: int, changes: Sequence[Change]) -> None:
        """Frames came to `shard` or left it; see `DiskTier.follow`. Deletes of frames that never were are no error."""
        ...

    def disk_keys(self, shard: int) -> list[ChunkKey]:
        """The chunks whose frames are in `shard`, committed, as far as is known."""
        ...


class SharedIndex:
    """A DiskTier that follows what other processes do to its store. Satisfies `Index`."""

    def __init__(
        self,
        disk: DiskTier,
        lock: AbstractContextManager[object],
        delete_frame: Callable[[int, ChunkKey], None],
        arrived: Callable[[ChunkKey], None] = lambda _: None,
    ) -> None:
        """Keep `disk` true, under the `lock` that guards it.

        `delete_frame` hands a deletion to whoever writes. `arrived` hears of each chunk that another process wrote, on
        disk by now unless we are writing it ourselves. Both are called under the lock.
        """
        self._disk = disk
        self._lock = lock
        self._delete_frame = delete_frame
        self._arrived = arrived

    def follow_disk(self, shard: int, changes: Sequence[Change]) -> None:
        """As `Index` says."""
        with self._lock:
            for stale_shard, key in self._disk.follow(shard, changes):
                self._delete_frame(stale_shard, key)
            for key, n_bytes in changes:
                if n_bytes is not None:
                    self._arrived(key)

    def lay_out(self, n_shards: int, shard_bytes: int) -> None:
        """See `DiskTier.lay_out`."""
        with self._lock:
            self._disk.lay_out(n_shards, shard_bytes)

    def agree_with(self, listings: Iterable[Listing]) -> None:
        """Have the tier list what the whole store holds, and that alone, while nobody writes to the store for us."""
        columns = coldest_first(listings, self._disk.family)
        gone = set(self.all_keys())
        changes: dict[int, list[Change]] = {}
        for key, shard, n_bytes in zip(*columns, strict=True):
            gone.discard((shard, key))
            changes.setdefault(shard, []).append(Change(key, n_bytes))
        for shard, key in gone:
            changes.setdefault(shard, []).append(Change(key, None))
        for shard, news in changes.items():
            _hand_over(self, shard, news)

    def disk_keys(self, shard: int) -> list[ChunkKey]:
        """As `Index` says."""
        with self._lock:
            return self._disk.ready_in(shard)

    def all_keys(self) -> list[tuple[int, ChunkKey]]:
        """(shard, key) of every committed frame. Holds the lock for about 10 ms per million."""
        with self._lock:
            listed = self._disk.listed()
        return list(listed)


class Follower:
    """A shared store, followed. Satisfies `Store`: use it in place of the one it wraps. `start` once, `stop` once."""

    def __init__(self, store: SharedStore, *, report: Callable[[str], None], every_s: float = FOLLOW_EVERY_S) -> None:
        """Follow `store`. `report` prints one line for the operator; the follower's thread calls it."""
        self._store = store
        self._report = report
        self._every_s = every_s
        self._index: Index | None = None
        self._locks = [threading.Lock() for _ in range(store.n_shards)]  # one write, or one look at news, at a time
        self._stopping = threading.Event()
        self._complained = False
        self._thread = threading.Thread(target=self._loop, name="kvtier-follow", daemon=True)

    def start(self, index: Index) -> None:
        """Begin to tell `index`, which has taken over what `scan` gave."""
        self._index = index
        self._thread.start()

    def stop(self) -> bool:
        """End the thread. False if it is stuck in the store, which then must not be closed."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(5.0)
        return not self._thread.is_alive()

    def catch_up(self, *, wait_s: float = 0.0) -> None:
        """Tell the index all that is new. Any thread; StoreError when a shard cannot be read.

        Leaves out a shard that is being written or told of at the moment: whoever does that does it. With `wait_s` it
        waits for them, and StoreError says that one took longer: what was new before the call is known after it.
        """
        for shard, lock in enumerate(self._locks):
            if not wait_s and not self._store.is_behind(shard):
                continue
            if not lock.acquire(timeout=wait_s):
                if wait_s:
                    raise StoreError(f"shard {shard} is being written for {wait_s:.0f} s and more")
                continue
            try:
                if self._store.is_behind(shard):
                    self._tell(shard)
            finally:
                lock.release()

    # ---- Store ------------------------------------------------------------------------------------------------------

    @property
    def n_shards(self) -> int:
        """As the store's."""
        return self._store.n_shards

    @property
    def shard_bytes(self) -> int:
        """As the store's."""
        return self._store.shard_bytes

    def frame_cost(self, n_bytes: int) -> int:
        """As the store's."""
        return self._store.frame_cost(n_bytes)

    @property
    def opened_alone(self) -> bool:
        """As the store's."""
        return self._store.opened_alone

    def scan(self) -> Iterator[Listing]:
        """As the store's. Following begins with what this gives."""
        return self._store.scan()

    def written_before(self, shard: int, before_ns: int) -> list[ChunkKey]:
        """As the store's."""
        return self._store.written_before(shard, before_ns)

    def write(self, shard: int, puts: Sequence[tuple[ChunkKey, memoryview]], deletes: Sequence[ChunkKey]) -> None:
        """As the store's; then tells the index what others did to this shard."""
        with self._locks[shard]:
            try:
                self._store.write(shard, puts, deletes)
            except StoreFullError:
                self._settle(shard, deletes)  # they took place, and now it is known what is in the way
                raise
            self._settle(shard, {*deletes}.difference(key for key, _ in puts))

    def read(self, shard: int, key: ChunkKey) -> AbstractContextManager[memoryview | None]:
        """As the store's."""
        return self._store.read(shard, key)

    def lend(self, wanted: Sequence[tuple[int, ChunkKey]], use: UsePages) -> list[bool]:
        """As the store's."""
        return self._store.lend(wanted, use)

    def sync(self) -> None:
        """As the store's."""
        self._store.sync()

    def close(self) -> None:
        """As the store's, after `stop`."""
        self._store.close()

    # ---- following --------------------------------------------------------------------------------------------------

    def _settle(self, shard: int, deleted: Sequence[ChunkKey] | set[ChunkKey]) -> None:
        if self._index is None:
            return
        if deleted:
            # Between the decision to delete and the deletion another's frame of the key may have come to the index.
            self._index.follow_disk(shard, [Change(key, None) for key in deleted])
        with contextlib.suppress(StoreError):  # the write was a success; the thread will find the same error
            if self._store.is_behind(shard):
                self._tell(shard)

    def _tell(self, shard: int) -> None:
        """Under the shard's lock, so that no write of our own falls between the news and their arrival."""
        if self._index is None:
            return
        changes, whole = self._store.news(shard)
        if whole:
            there = {change.key for change in changes}
            changes += [Change(key, None) for key in self._index.disk_keys(shard) if key not in there]
        _hand_over(self._index, shard, changes)

    def _loop(self) -> None:
        released_s = time.monotonic()
        while not self._stopping.wait(self._every_s):
            try:
                self.catch_up()
                if time.monotonic() - released_s > RELEASE_DEAD_EVERY_S:
                    released_s = time.monotonic()
                    self._store.release_dead()
                self._complained = False
            except Exception as error:  # noqa: BLE001 - of whatever kind: the next round tries again
                if not self._complained:
                    with contextlib.suppress(Exception):  # a log that cannot be written must not end the thread
                        self._report(f"what other engines do to the disk tier cannot be followed for now: {error}")
                self._complained = True


def _hand_over(index: Index, shard: int, changes: Sequence[Change]) -> None:
    """All `changes`, a few at a time."""
    for first in range(0, len(changes), CHANGES_AT_ONCE):
        index.follow_disk(shard, changes[first : first + CHANGES_AT_ONCE])
