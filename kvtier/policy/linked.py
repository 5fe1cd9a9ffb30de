"""LinkedSlru: SLRU-G whose order is in columns of row numbers, for tiers of millions. Decides exactly as Slru does.

One dictionary from key to row serves the tier and the policy: beside its key a chunk costs one place in a dictionary,
one integer and a few bytes of column, and nothing that the garbage collector looks at. Slru, whose dictionaries keep
the order in C, is the faster one.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from typing import TYPE_CHECKING

from kvtier.policy.slru import PROTECTED_SHARE
from kvtier.types import ChunkKey

if TYPE_CHECKING:
    from collections.abc import Iterator

_PROBATION, _PROTECTED = 0, 1
"""Rows that stand for the ends of the two segments: the next hotter one is the coldest of all."""

FIRST_ROW = 2


class LinkedSlru:
    """Segmented LRU with a ghost list; satisfies `EvictionPolicy`. All operations O(1).

    A key has a row, from `enter` to `remove`; rows are small numbers, and used again. A tier keeps what else it knows
    of a chunk in columns of its own.
    """

    def __init__(self, capacity: int, *, protected: float = PROTECTED_SHARE, ghosts: int | None = None) -> None:
        """As Slru's."""
        self.rows: dict[ChunkKey, int] = {}
        """What is present. The tier reads it; only the policy changes it."""
        self._protected_share = protected
        self._max_protected = int(capacity * protected)
        self._n_protected = 0
        self._ghosts_follow = ghosts is None
        self._max_ghosts = capacity if ghosts is None else ghosts
        self._ghosts: OrderedDict[ChunkKey, None] = OrderedDict()  # oldest first
        self._keys: list[ChunkKey] = [ChunkKey(b"")] * FIRST_ROW
        self._colder, self._hotter = array("I", range(FIRST_ROW)), array("I", range(FIRST_ROW))
        self._is_protected = bytearray(FIRST_ROW)
        self._unused = array("I")

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def n_rows(self) -> int:
        """Rows there are, used or not."""
        return len(self._keys)

    def insert(self, key: ChunkKey) -> None:
        """`key`, absent until now, entered the tier."""
        self.enter(key)

    def enter(self, key: ChunkKey) -> int:
        """As `insert`, which row it has from now on: one that was used before, or the next new one."""
        if self._unused:
            row = self._unused.pop()
            self._keys[row] = key
        else:
            row = len(self._keys)
            self._keys.append(key)
            self._colder.append(0)
            self._hotter.append(0)
            self._is_protected.append(0)
        self.rows[key] = row
        if self._ghosts and self._ghosts.pop(key, self) is None:
            self._protect(row)
        else:
            self._put_hottest(_PROBATION, row)
        return row

    def enter_all(self, keys: list[ChunkKey]) -> bool:
        """`enter` all of them, coldest first: they have rows from FIRST_ROW on. False, and nothing done, if one comes
        twice. Only for a policy that is new; 0.2 us a key."""
        assert len(self._keys) == FIRST_ROW, "not new"
        assert not self._ghosts
        behind = FIRST_ROW + len(keys)
        rows = dict(zip(keys, range(FIRST_ROW, behind), strict=True))
        if len(rows) < len(keys) or not keys:
            return not keys
        self.rows = rows
        self._keys += keys
        self._is_protected.extend(bytes(len(keys)))
        self._colder.extend(range(FIRST_ROW - 1, behind - 1))
        self._hotter.extend(range(FIRST_ROW + 1, behind + 1))
        self._colder[FIRST_ROW] = self._hotter[-1] = _PROBATION
        self._hotter[_PROBATION], self._colder[_PROBATION] = FIRST_ROW, behind - 1
        return True

    def touch(self, key: ChunkKey) -> None:
        """`key` was used again."""
        row = self.rows[key]
        self._take_out(row)
        if self._is_protected[row]:
            self._put_hottest(_PROTECTED, row)
        else:
            self._protect(row)

    def refresh(self, key: ChunkKey) -> None:
        """Move `key` to the hot end of its segment; no use is counted."""
        row = self.rows[key]
        self._take_out(row)
        self._put_hottest(self._is_protected[row], row)

    def remove(self, key: ChunkKey, *, evicted: bool) -> None:
        """`key` left the tier; an evicted one is remembered."""
        row = self.rows.pop(key)
        self._take_out(row)
        self._n_protected -= self._is_protected[row]
        self._is_protected[row] = 0
        self._keys[row] = self._keys[_PROBATION]
        self._unused.append(row)
        if evicted and self._max_ghosts:
            self._ghosts[key] = None
            if len(self._ghosts) > self._max_ghosts:
                self._ghosts.popitem(last=False)

    def victims(self) -> Iterator[ChunkKey]:
        """Probation from its cold end, then protected from its cold end."""
        keys, hotter = self._keys, self._hotter
        for end in (_PROBATION, _PROTECTED):
            row = hotter[end]
            while row != end:
                yield keys[row]
                row = hotter[row]

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
        n_seen = n_protected = 0
        for end in (_PROBATION, _PROTECTED):
            row = end
            while True:
                assert self._colder[self._hotter[row]] == row
                row = self._hotter[row]
                if row == end:
                    break
                n_seen += 1
                n_protected += end
                assert self.rows[self._keys[row]] == row
                assert self._is_protected[row] == end
        assert n_seen == len(self.rows)
        assert n_protected == self._n_protected <= self._max_protected
        assert len({*self.rows.values(), *self._unused}) == len(self.rows) + len(self._unused)
        assert len(self._keys) == FIRST_ROW + len(self.rows) + len(self._unused)
        assert len(self._keys) == len(self._colder) == len(self._hotter) == len(self._is_protected)
        assert not self._ghosts.keys() & self.rows.keys()
        assert len(self._ghosts) <= self._max_ghosts

    def _protect(self, row: int) -> None:
        """Put `row`, which is in no segment, into protected."""
        if self._max_protected == 0:
            self._put_hottest(_PROBATION, row)
            return
        self._is_protected[row] = 1
        self._put_hottest(_PROTECTED, row)
        self._n_protected += 1
        if self._n_protected > self._max_protected:
            self._demote()

    def _demote(self) -> None:
        row = self._hotter[_PROTECTED]
        self._take_out(row)
        self._is_protected[row] = 0
        self._n_protected -= 1
        self._put_hottest(_PROBATION, row)

    def _take_out(self, row: int) -> None:
        colder, hotter = self._colder[row], self._hotter[row]
        self._hotter[colder] = hotter
        self._colder[hotter] = colder

    def _put_hottest(self, end: int, row: int) -> None:
        before = self._colder[end]
        self._colder[row], self._hotter[row] = before, end
        self._hotter[before] = self._colder[end] = row
