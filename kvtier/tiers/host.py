"""HostTier: which chunk sits in which slot of the host pool, and who leaves when a slot is needed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvtier.residency import Resident, State

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator

    from kvtier.policy.slru import Slru
    from kvtier.types import ChunkKey

MAX_PROMOTE_SCAN = 256
"""Residents looked at to find a slot for one promotion. The ones in use sit near the hot end, so a handful is the rule.
A walk looks for as many slots as its chain has chunks on disk."""

MAX_OFFLOAD_SCAN = 4096
"""The same for all that one call offloads; bounds the time the lock is held to about 0.5 ms."""

MAX_CLEAN_SCAN = 32
"""How far past enough victims to look for clean ones, which cost nothing to evict."""


class HostTier:
    """Slots and their residents; satisfies `Tier`."""

    def __init__(self, n_slots: int, chunk_bytes: int, policy: Slru) -> None:
        """Own slots 0..n_slots-1 of `chunk_bytes` each."""
        self.chunk_bytes = chunk_bytes
        self.n_slots = n_slots
        self.policy = policy
        self._residents: dict[ChunkKey, Resident] = {}
        self._free = list(range(n_slots - 1, -1, -1))

    @property
    def used_bytes(self) -> int:
        """Bytes of the slots that are not free."""
        return (self.n_slots - len(self._free)) * self.chunk_bytes

    @property
    def capacity_bytes(self) -> int:
        """Bytes of all slots."""
        return self.n_slots * self.chunk_bytes

    @property
    def n_free(self) -> int:
        """Slots nobody uses."""
        return len(self._free)

    def __contains__(self, key: ChunkKey) -> bool:
        return key in self._residents

    def __len__(self) -> int:
        return len(self._residents)

    def get(self, key: ChunkKey) -> Resident | None:
        """The chunk's resident, in whatever state."""
        return self._residents.get(key)

    def has_none_of(self, keys: Iterable[ChunkKey]) -> bool:
        """Whether all `keys` are absent."""
        return self._residents.keys().isdisjoint(keys)

    def touch(self, key: ChunkKey) -> None:
        """The chunk, present, was used again."""
        self.policy.touch(key)

    def remembers(self, key: ChunkKey) -> bool:
        """Whether the chunk was evicted from here not too long ago."""
        return self.policy.remembers(key)

    def choose_victims(self, n: int, keep: Container[ChunkKey], max_scan: int) -> list[Resident]:
        """Up to `n` of the coldest evictable residents not in `keep`, preferring clean ones close by.

        Looks at no more than `n + max_scan`.
        """
        clean: list[Resident] = []
        dirty: list[Resident] = []
        to_look_at = n + max_scan
        if n <= 0:
            return clean
        for key in self.policy.victims():
            if len(clean) == n or not to_look_at:
                break
            to_look_at -= 1
            resident = self._residents[key]
            if not resident.pinned and key not in keep:
                (dirty if resident.dirty else clean).append(resident)
                if len(clean) + len(dirty) == n:
                    to_look_at = min(to_look_at, MAX_CLEAN_SCAN)
        return (clean + dirty)[:n]

    def grow(self, n_slots: int) -> None:
        """Own slots 0..n_slots-1 from now on; not fewer than before."""
        self._free[:0] = range(n_slots - 1, self.n_slots - 1, -1)
        self.n_slots = max(n_slots, self.n_slots)
        self.policy.resize(self.n_slots)

    def place(self, key: ChunkKey, state: State, now_s: float) -> Resident:
        """Put an absent chunk into a free slot; there must be one."""
        resident = Resident(key, self._free.pop(), state, now_s)
        self._residents[key] = resident
        self.policy.insert(key)
        return resident

    def evict(self, resident: Resident) -> None:
        """Make an unpinned resident leave for lack of room."""
        self._detach(resident, evicted=True)

    def drop(self, key: ChunkKey) -> None:
        """Forget the chunk; its slot comes free when nobody uses it any more."""
        resident = self._residents.get(key)
        if resident is not None:
            self._detach(resident, evicted=False)

    def release(self, resident: Resident) -> None:
        """Free the slot of a detached resident if nobody uses it any more. Call after every unpin."""
        if resident.detached and resident.slot >= 0 and not resident.pinned:
            self._free.append(resident.slot)
            resident.slot = -1

    def keys(self) -> list[ChunkKey]:
        """The chunks of all residents, in the order in which they came."""
        return list(self._residents)

    def residents(self) -> Iterator[Resident]:
        """All residents, any order."""
        return iter(self._residents.values())

    def coldest(self) -> Iterator[Resident]:
        """Residents from coldest to hottest."""
        residents = self._residents
        return (residents[key] for key in self.policy.victims())

    def check(self) -> None:
        """Raise AssertionError if an invariant is broken."""
        self.policy.check()
        held = [r.slot for r in self._residents.values()]
        assert len(self.policy) == len(self._residents)
        assert len(set(held)) == len(held)
        assert not set(held) & set(self._free)
        assert len(set(self._free)) == len(self._free)
        assert all(0 <= slot < self.n_slots for slot in (*held, *self._free))
        assert not any(r.detached for r in self._residents.values())

    def _detach(self, resident: Resident, *, evicted: bool) -> None:
        del self._residents[resident.key]
        self.policy.remove(resident.key, evicted=evicted)
        resident.detached = True
        resident.dirty = False
        self.release(resident)
