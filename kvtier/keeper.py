"""Keeper: what has to go for another reason than lack of room. Purge notices and TTLs -> chunks forgotten in all tiers.

One thread per engine, awake for microseconds a second. The scheduler thread is never kept waiting longer than a few
dozen chunks take.
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from kvtier.cache import TieredCache
    from kvtier.purges import Listener, Notice
    from kvtier.types import ChunkKey

EVERY_S = 1.0
"""How soon a purge notice is heard of."""

STOP_TIMEOUT_S = 5.0

INSIST_S = 3.0
"""How long chunks that are being copied are waited for before the next round tries again."""

SWEEPS_PER_TTL = 20
"""Expired chunks outlive their TTL by a twentieth of it at most, and by EVERY_S."""

AT_ONCE = 32
"""Chunks forgotten under one hold of the cache's lock; about 0.1 ms."""


class DatedStore(Protocol):
    """What the keeper asks of the disk tier's store: how old frames are. StoreError when that cannot be had."""

    @property
    def n_shards(self) -> int:
        """As `Store`'s."""
        ...

    def catch_up(self, *, wait_s: float = 0.0) -> None:
        """As `Follower`'s."""
        ...

    def written_before(self, shard: int, before_ns: int) -> list[ChunkKey]:
        """As `Store`'s."""
        ...


class Keeper:
    """Forgets what expires or is purged. `start` once, `stop` once."""

    def __init__(
        self,
        cache: TieredCache,
        listener: Listener | None,
        *,
        store: DatedStore | None,
        host_ttl_s: float,
        disk_ttl_s: float,
        report: Callable[[str], None],
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """Look after `cache` and the store of its disk tier. A TTL of 0 is none.

        `clock_ns` is the wall clock that frames are dated by. `report` prints one line for the operator.
        """
        self._cache = cache
        self._listener = listener
        self._host_ttl_s = host_ttl_s
        self._disk_ttl_s = disk_ttl_s
        self._store = store
        self._report = report
        self._clock_ns = clock_ns
        self._next_sweep_s = 0.0
        self._complained = False
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="kvtier-keeper", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread; unless a disk hangs, it is not in the store afterwards. Takes STOP_TIMEOUT_S at most."""
        self._stopping.set()
        self._thread.join(STOP_TIMEOUT_S)
        if self._listener is not None and not self._thread.is_alive():
            self._listener.close()

    def round(self) -> None:
        """Carry out what was asked since the last round. Keeper's thread; StoreError when the disk cannot be listed."""
        for name, notice in self._listener.news() if self._listener is not None else ():
            if self._purge(notice) and self._listener is not None:
                self._listener.confirm(name)
        if self._host_ttl_s:
            self._forget(self._cache.host_keys(older_than_s=self._host_ttl_s))
        if self._disk_ttl_s and self._store is not None and time.monotonic() >= self._next_sweep_s:
            self._next_sweep_s = time.monotonic() + self._disk_ttl_s / SWEEPS_PER_TTL
            self._expire_disk()

    def _purge(self, notice: Notice) -> bool:
        """Drop what is purged; whether nothing of it is left in host RAM, or thought to be on disk."""
        if self._store is not None:
            self._store.catch_up(wait_s=INSIST_S)
        keys = [key for key in self._cache.host_keys() if notice.fits(key)]
        return self._forget(keys, only_deleted=notice.only_deleted)

    def _expire_disk(self) -> None:
        """Shard by shard: listing one takes about a millisecond, and others have the processor in between."""
        assert self._store is not None
        before_ns = self._clock_ns() - int(self._disk_ttl_s * 1e9)
        for shard in range(self._store.n_shards):
            expired = self._store.written_before(shard, before_ns)
            for start in range(0, len(expired), AT_ONCE):
                self._cache.forget_on_disk(expired[start : start + AT_ONCE])
            if self._stopping.wait(0.001):
                return

    def _forget(self, keys: Iterable[ChunkKey], *, only_deleted: bool = False) -> bool:
        """Drop `keys` from host memory; False when some are in use all the time."""
        left = list(keys)
        give_up_s = time.monotonic() + INSIST_S
        while True:
            busy: list[ChunkKey] = []
            for start in range(0, len(left), AT_ONCE):
                busy += self._cache.forget_in_host(left[start : start + AT_ONCE], only_deleted=only_deleted)
            left = busy
            if not left or time.monotonic() > give_up_s or self._stopping.wait(0.01):
                return not left

    def _loop(self) -> None:
        while not self._stopping.wait(EVERY_S):
            try:
                self.round()
                self._complained = False
            except Exception as error:  # noqa: BLE001 - of whatever kind: the next round tries again
                if not self._complained:
                    with contextlib.suppress(Exception):  # a log that cannot be written must not end the thread
                        self._report(f"purges and TTLs cannot be carried out for now: {error}")
                self._complained = True
