"""Backlog: chunks in host memory to be written to disk, and which of them next. Decides; the spill thread writes."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvtier.residency import Resident
    from kvtier.tiers.host import HostTier
    from kvtier.types import ChunkKey

CLEAN_SHARE = 0.125
"""Share of the host pool that is kept free or clean at the cold end, so that an eviction never has to wait."""

MAX_SPILL_SCAN = 512
"""Residents the spiller looks at per call; bounds the time the lock is held to about 0.3 ms."""


class Backlog:
    """The dirty chunks of a host tier, oldest first. Called under the cache's lock."""

    def __init__(
        self, host: HostTier, *, write_behind_after_s: float | None = None, clean_share: float = CLEAN_SHARE
    ) -> None:
        """Nothing to write yet. Without `write_behind_after_s` only what is about to leave `host` is written.

        `clean_share` is the reserve that covers what spills take; where they take no time, one slot will do.
        """
        self._host = host
        self._write_behind_after_s = write_behind_after_s
        self._clean_share = clean_share
        self._dirty: dict[ChunkKey, Resident] = {}

    def __len__(self) -> int:
        return len(self._dirty)

    def add(self, resident: Resident) -> None:
        """`resident`, READY, is not on disk and should be."""
        resident.dirty = True
        self._dirty[resident.key] = resident

    def remove(self, resident: Resident) -> None:
        """`resident` is on disk, or never will be."""
        resident.dirty = False
        if self._dirty.get(resident.key) is resident:
            del self._dirty[resident.key]

    def clear(self) -> None:
        """All residents have left the tier."""
        self._dirty.clear()

    def next(self, max_chunks: int, now_s: float, *, idle: bool) -> list[Resident]:
        """What to write now, marked as spilling: first the cold end, then what has rested long enough.

        A busy engine's chunks rest ten times as long: idle time is cheaper.
        """
        chosen = self._cold(max_chunks)
        if self._write_behind_after_s is not None:
            due_s = now_s - self._write_behind_after_s * (1 if idle else 10)
            for resident in self._dirty.values():
                if len(chosen) >= max_chunks or resident.since_s > due_s:
                    break
                if not resident.spilling:
                    resident.spilling = True
                    chosen.append(resident)
        return chosen

    def check(self) -> None:
        """Raise AssertionError if an invariant is broken."""
        for resident in self._host.residents():
            assert resident.dirty == (self._dirty.get(resident.key) is resident)
        assert all(not resident.detached for resident in self._dirty.values())

    def _cold(self, max_chunks: int) -> list[Resident]:
        """The coldest dirty chunks, until the reserve is free or clean at the cold end."""
        chosen: list[Resident] = []
        lacking = max(1, int(self._host.n_slots * self._clean_share)) - self._host.n_free
        for resident in islice(self._host.coldest(), MAX_SPILL_SCAN):
            if lacking <= 0 or len(chosen) >= max_chunks:
                break
            if resident.dirty and not resident.spilling:
                resident.spilling = True
                chosen.append(resident)
            lacking -= resident.spilling or not resident.pinned
        return chosen
