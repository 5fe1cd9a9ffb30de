"""Backlog: chunks in host memory to be written to disk, and which of them next. Decides; the spill thread writes.

What is admitted is decided for a chain head first, and behind the first chunk that is held back everything is: a chunk
on disk is of no use behind a hole. The order of writing is another one, cold end first.
"""

from __future__ import annotations

import zlib
from itertools import islice
from typing import TYPE_CHECKING

from kvtier.policy.seen import Seen
from kvtier.residency import State
from kvtier.types import chunk_hash_of

if TYPE_CHECKING:
    from collections.abc import Container, Sequence

    from kvtier.budget import WriteBudget
    from kvtier.observe.stats import Stats
    from kvtier.residency import Chain, Resident
    from kvtier.tiers.host import HostTier
    from kvtier.types import ChunkKey

MAX_SPILL_FAILURES = 3

CLEAN_SHARE = 0.125
"""Share of the host pool that is kept free or clean at the cold end, so that an eviction never has to wait."""

MAX_SPILL_SCAN = 512
"""Residents the spiller looks at per call; bounds the time the lock is held to about 0.3 ms."""


class Backlog:
    """The dirty chunks of a host tier, oldest first. Called under the cache's lock."""

    def __init__(
        self,
        host: HostTier,
        stats: Stats,
        *,
        write_behind_after_s: float | None = None,
        clean_share: float = CLEAN_SHARE,
        admit_share: float = 1.0,
        n_remembered: int = 1,
        budget: WriteBudget | None = None,
    ) -> None:
        """Nothing to write yet. Without `write_behind_after_s` only what is about to leave `host` is written.

        `clean_share` is the reserve that covers what spills take; where they take no time, one slot will do. Of
        chains, `admit_share` (0 to 1) are written on first use, the others on a second, if `n_remembered` chunks or
        fewer were held back meanwhile.
        """
        self.budget = budget
        self.selective = admit_share < 1 or budget is not None
        self._host = host
        self._stats = stats
        self._write_behind_after_s = write_behind_after_s
        self._clean_share = clean_share
        self._admit_share = admit_share
        self._seen = Seen(n_remembered) if admit_share < 1 else None
        self._dirty: dict[ChunkKey, Resident] = {}

    def __len__(self) -> int:
        return len(self._dirty)

    def judge(self, chain: Chain, residents: Sequence[Resident], known: Container[ChunkKey]) -> None:
        """Hold back what may not go to disk of `residents`, new chunks of `chain`, head first.

        Their copies from the device are under way. `known` are those that were here before.
        """
        n = 0 if chain.held_back else self._n_admitted(chain, residents, known)
        n_paid = min(n, self._n_affordable())
        self._stats.held_back_chunks += len(residents) - n
        self._stats.over_budget_chunks += n - n_paid
        for resident in residents[n_paid:]:
            chain.held_back = resident.held_back = True
            if self._seen is not None:
                self._seen.add(resident.key)

    def used_again(self, chain: Chain, residents: Sequence[Resident]) -> None:
        """`chain` used `residents`, which had been held back for others, given head first: now they may go to disk."""
        n_paid = 0 if chain.held_back else self._n_affordable()
        chain.held_back |= n_paid < len(residents)
        for resident in residents[:n_paid]:
            resident.held_back = False
            if resident.state is State.READY:
                self.add(resident)

    def hold_back(self, resident: Resident) -> None:
        """The budget does not cover `resident` after all."""
        self._stats.over_budget_chunks += 1
        resident.held_back = True
        self.remove(resident)

    def add(self, resident: Resident) -> None:
        """`resident`, READY and not held back, is not on disk and should be."""
        resident.dirty = True
        self._dirty[resident.key] = resident

    def remove(self, resident: Resident) -> None:
        """`resident` is on disk, or never will be."""
        resident.dirty = False
        if self._dirty.get(resident.key) is resident:
            del self._dirty[resident.key]

    def failed(self, resident: Resident) -> None:
        """Writing `resident` did not work. After MAX_SPILL_FAILURES times it stays in host only."""
        self._stats.spill_failed_chunks += 1
        resident.spill_failures += 1
        if resident.spill_failures >= MAX_SPILL_FAILURES:
            self.remove(resident)

    def clear(self) -> None:
        """All residents have left the tier."""
        self._dirty.clear()

    def next(self, max_chunks: int, now_s: float, *, idle: bool) -> list[Resident]:
        """What to write now, marked as spilling: first the cold end, then what has rested long enough.

        A busy engine's chunks rest ten times as long: idle time is cheaper. What the budget does not cover is dropped.
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
        if self.budget is not None and self.budget.left_bytes < self._frame_bytes():
            for resident in chosen:
                resident.spilling = False
                self.hold_back(resident)
            return []
        return chosen

    def check(self) -> None:
        """Raise AssertionError if an invariant is broken."""
        for resident in self._host.residents():
            assert resident.dirty == (self._dirty.get(resident.key) is resident)
            assert not (resident.dirty and resident.held_back)
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

    def _n_admitted(self, chain: Chain, residents: Sequence[Resident], known: Container[ChunkKey]) -> int:
        """How many of `residents` may go to disk for what they are: used before, or of a chain that was picked."""
        for n, resident in enumerate(residents):
            key = resident.key
            if self._seen is None or key in known or key in self._seen:
                continue
            if chain.picked is None:  # by its first new chunk: the first of all is a prompt that many share
                chain.picked = zlib.crc32(chunk_hash_of(key)) < self._admit_share * (1 << 32)
            if not chain.picked:
                return n
        return len(residents)

    def _n_affordable(self) -> int:
        """How many more chunks the budget covers beside those that are dirty already."""
        if self.budget is None:
            return len(self._host)
        return max(0, self.budget.left_bytes // self._frame_bytes() - len(self._dirty))

    def _frame_bytes(self) -> int:
        """What a chunk takes as a frame, as far as is known."""
        stats = self._stats
        if not stats.spilled_chunks:
            return self._host.chunk_bytes
        return max(1, stats.spill_stored_bytes // stats.spilled_chunks)
