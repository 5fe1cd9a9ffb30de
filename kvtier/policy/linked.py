"""LinkedSlru: SLRU-G over entries that carry their own links, for tiers of millions. Decides exactly as Slru does.

One dictionary from key to entry serves the tier and the policy, and the order is in the entries: beside its key and its
entry a chunk costs one place in a dictionary. Slru, whose dictionaries keep the order in C, is the faster one.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Generic, TypeVar, cast

from kvtier.policy.slru import PROTECTED_SHARE
from kvtier.residency import Link
from kvtier.types import ChunkKey

if TYPE_CHECKING:
    from collections.abc import Iterator

Entry = TypeVar("Entry", bound=Link)


class LinkedSlru(Generic[Entry]):
    """Segmented LRU with a ghost list; satisfies `EvictionPolicy`. All operations O(1)."""

    def __init__(self, capacity: int, *, protected: float = PROTECTED_SHARE, ghosts: int | None = None) -> None:
        """As Slru's."""
        self.entries: dict[ChunkKey, Entry] = {}
        """What is present, by key. The tier reads it; only the policy changes it."""
        self._protected_share = protected
        self._max_protected = int(capacity * protected)
        self._n_protected = 0
        self._ghosts_follow = ghosts is None
        self._max_ghosts = capacity if ghosts is None else ghosts
        self._probation = _ring()  # its `hotter` is the cold end, its `colder` the hot one
        self._protected = _ring()
        self._ghosts: OrderedDict[ChunkKey, None] = OrderedDict()  # oldest first

    def __len__(self) -> int:
        return len(self.entries)

    def insert(self, key: ChunkKey) -> None:
        """`key`, absent until now, entered the tier; it has no more to say of it."""
        self.enter(cast("Entry", Link(key)))

    def enter(self, entry: Entry) -> None:
        """`entry`, of a key absent until now, entered the tier: protected if remembered, else on probation."""
        self.entries[entry.key] = entry
        entry.protected = False
        if self._ghosts and self._ghosts.pop(entry.key, self) is None:
            self._protect(entry)
        else:
            _put_hottest(self._probation, entry)

    def touch(self, key: ChunkKey) -> None:
        """`key` was used again."""
        entry = self.entries[key]
        _take_out(entry)
        if entry.protected:
            _put_hottest(self._protected, entry)
        else:
            self._protect(entry)

    def refresh(self, key: ChunkKey) -> None:
        """Move `key` to the hot end of its segment; no use is counted."""
        entry = self.entries[key]
        _take_out(entry)
        _put_hottest(self._protected if entry.protected else self._probation, entry)

    def remove(self, key: ChunkKey, *, evicted: bool) -> None:
        """`key` left the tier; an evicted one is remembered."""
        entry = self.entries.pop(key)
        _take_out(entry)
        del entry.colder, entry.hotter  # whoever still holds it holds no others by it
        self._n_protected -= entry.protected
        if evicted and self._max_ghosts:
            self._ghosts[key] = None
            if len(self._ghosts) > self._max_ghosts:
                self._ghosts.popitem(last=False)

    def victims(self) -> Iterator[ChunkKey]:
        """Probation from its cold end, then protected from its cold end."""
        for ring in (self._probation, self._protected):
            entry = ring.hotter
            while entry is not ring:
                yield entry.key
                entry = entry.hotter

    def remembers(self, key: ChunkKey) -> bool:
        """Whether `key` is on the ghost list."""
        return key in self._ghosts

    def resize(self, capacity: int) -> None:
        """As Slru's."""
        self._max_protected = int(capacity * self._protected_share)
        if self._ghosts_follow:
            self._max_ghosts = capacity
        while self._n_protected > self._max_protected:
            self._demote()
        while len(self._ghosts) > self._max_ghosts:
            self._ghosts.popitem(last=False)

    def check(self) -> None:
        """Raise AssertionError if an invariant is broken."""
        for ring in (self._probation, self._protected):
            entry = ring
            while True:
                assert entry.hotter.colder is entry
                entry = entry.hotter
                if entry is ring:
                    break
                assert self.entries[entry.key] is entry
                assert entry.protected == (ring is self._protected)
        assert sum(1 for _ in self.victims()) == len(self.entries)
        assert sum(entry.protected for entry in self.entries.values()) == self._n_protected <= self._max_protected
        assert not self._ghosts.keys() & self.entries.keys()
        assert len(self._ghosts) <= self._max_ghosts

    def _protect(self, entry: Entry) -> None:
        """Put `entry`, which is in no segment, into protected."""
        if self._max_protected == 0:
            _put_hottest(self._probation, entry)
            return
        entry.protected = True
        _put_hottest(self._protected, entry)
        self._n_protected += 1
        if self._n_protected > self._max_protected:
            self._demote()

    def _demote(self) -> None:
        entry = self._protected.hotter
        _take_out(entry)
        entry.protected = False
        self._n_protected -= 1
        _put_hottest(self._probation, entry)


def _ring() -> Link:
    ring = Link(ChunkKey(b""))
    ring.colder = ring.hotter = ring
    return ring


def _take_out(entry: Link) -> None:
    colder, hotter = entry.colder, entry.hotter
    colder.hotter = hotter
    hotter.colder = colder


def _put_hottest(ring: Link, entry: Link) -> None:
    before = ring.colder
    entry.colder, entry.hotter = before, ring
    before.hotter = ring.colder = entry
