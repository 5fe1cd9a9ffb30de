"""Holdings: what the tiers of one cache hold between them, and how a chunk leaves for another reason than lack of room.

TieredCache builds on it. Methods without an underscore take the cache's lock and are not the scheduler's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvtier.residency import State

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Sequence

    from kvtier.backlog import Backlog
    from kvtier.residency import Promises, Resident
    from kvtier.tiers.disk import DiskTier
    from kvtier.tiers.host import HostTier
    from kvtier.types import ChunkKey, Miss


class Holdings:
    """State that TieredCache makes; see there."""

    host: HostTier
    disk: DiskTier | None
    _lock: threading.Lock
    _clock: Callable[[], float]
    _promises: Promises
    _backlog: Backlog
    _delete_frame: Callable[[int, ChunkKey], None]

    def host_keys(self, *, older_than_s: float | None = None) -> list[ChunkKey]:
        """The chunks in host memory, or those that came there longer ago than `older_than_s`."""
        with self._lock:
            if older_than_s is None:
                return self.host.keys()
            before_s = self._clock() - older_than_s
            old: list[ChunkKey] = []
            for resident in self.host.residents():  # in the order in which they came
                if resident.state is not State.READY:
                    continue
                if resident.since_s > before_s:
                    break
                old.append(resident.key)
            return old

    def forget_in_host(self, keys: Sequence[ChunkKey], *, only_deleted: bool = False) -> list[ChunkKey]:
        """Drop `keys` from host memory; returns those that are in use at the moment, to be tried again.

        With `only_deleted` those stay that are on disk, or wait to be written there. A few dozen keys at a time: the
        scheduler waits meanwhile.
        """
        busy = []
        with self._lock:
            for key in keys:
                resident = self.host.get(key)
                if resident is None or (only_deleted and (resident.dirty or self._is_on_disk(key))):
                    continue
                if resident.pinned:
                    busy.append(key)
                else:
                    self._forget_host(resident)
        return busy

    def forget_on_disk(self, keys: Sequence[ChunkKey]) -> None:
        """Drop the frames of `keys`, and have them deleted. A few dozen keys at a time."""
        with self._lock:
            for key in keys:
                self._forget_disk(key)

    def _forget_host(self, resident: Resident, failure: Miss | None = None) -> None:
        self._promises.break_off(resident, failure)
        self._backlog.remove(resident)
        if not resident.detached:
            self.host.drop(resident.key)

    def _is_on_disk(self, key: ChunkKey) -> bool:
        """Whether it can be read there; a frame not ready is being written, or left by a reader of a dropped chunk."""
        return self.disk is not None and self.disk.is_ready(key)

    def _forget_disk(self, key: ChunkKey) -> None:
        """Drop a committed frame. One that is being written is dropped when that has ended: see `spilled`."""
        frame = self.disk.get(key) if self.disk is not None else None
        if self.disk is not None and frame is not None and frame.ready:
            self.disk.drop(key)
            self._delete_frame(frame.shard, key)
