"""The structure of an LMDB data file, checked before liblmdb trusts it, and what its index lists: file -> columns.

A page is never looked at alone: a whole level of a tree is read and checked by numpy at once, so that a million index
entries take a fraction of a second. Maps nothing. Checked is what LMDB's write and read paths assume: every page is
where its number says, of one kind, reached once or listed as free; nodes lie within their pages; keys are in order;
the counters are true. lmdb.verify, of py-lmdb, checks the same a node at a time, and duplicates too, which we never
have.
"""

from __future__ import annotations

import math
import os
import struct
import sys
import time
from array import array
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from typing import Final, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from kvtier.store.listing import Listing
from kvtier.store.lmdb_file import META_PAGES, LmdbMeta, Tree, read_meta, read_metas
from kvtier.store.lmdb_index import ENTRY_LENGTHS

_ORDER = "<" if sys.byteorder == "little" else ">"
_HEADER = struct.Struct(f"{_ORDER}QHHHH")  # page number, -, flags, lower, upper; of a value: number, -, flags, pages
_HEADER_TYPE = np.dtype([("number", "u8"), ("", "u2"), ("flags", "u2"), ("lower", "u2"), ("upper", "u2")])
_VALUE_HEADER = struct.Struct(f"{_ORDER}QHHI")
_TREE = struct.Struct(f"{_ORDER}IHHQQQQQ")
_NODE_BYTES: Final = 8  # u16: low and high half of a size or page number, flags, key bytes
_P_BRANCH, _P_LEAF, _P_OVERFLOW = 0x01, 0x02, 0x04
_F_BIG, _F_TREE = 0x01, 0x02
_NO_PAGE = 2**64 - 1
_MAX_DEPTH = 32
_VALUES_AT_ONCE = 256
_SLOW_S = 20e-6  # for a page that has to come from the disk; one in the page cache takes 1 us
_NEAR_PAGES = 8  # asked for in one piece, with what lies between
_PAGES_AT_ONCE = 512  # Linux takes 1024 buffers for a read
_KEY_FLAGS, _INTEGER_KEYS = 0x7E, 0x08  # how a tree orders its keys, and whether it keeps several values of one

_T = TypeVar("_T")
_Steps = Generator[None, None, _T]  # wherever it yields, the disk has been asked for what is read next
_Ints = npt.NDArray[np.int64]
_Bytes = npt.NDArray[np.uint8]
_Bools = npt.NDArray[np.bool_]


class Walked(NamedTuple):
    """What a whole file holds."""

    txn_id: int  # as of this transaction
    values: tuple[_Ints, _Ints]  # those that have pages of their own: the first page of each, and how many it should be
    page_bytes: int
    listed: list[Listing]  # by the index, of shard 0, whichever it is


def walk(fd: int, databases: tuple[bytes, ...], index: bytes) -> Walked:
    """Check everything but the first page of values, see `find_bad_value`. Nobody may write the file meanwhile.

    ValueError says what is wrong, `databases` that are missing included. About 3 us a tree page, and 0.5 ms a file.
    """
    (walked,) = walk_together([fd], databases, index)
    if isinstance(walked, Exception):
        raise walked
    return walked


def walk_together(
    fds: Sequence[int], databases: tuple[bytes, ...], index: bytes
) -> list[Walked | ValueError | OSError]:
    """`walk` several files: while the disk fetches the next level of one, the others are worked on.

    What each gave, or raised. Memory: all tree pages of all of them.
    """
    ends: dict[int, Walked | ValueError | OSError] = {}
    under_way = deque((n, _walk(fd, databases, index)) for n, fd in enumerate(fds))
    while under_way:
        n, steps = under_way.popleft()
        try:
            next(steps)
            under_way.append((n, steps))
        except StopIteration as end:
            ends[n] = end.value
        except (ValueError, OSError) as error:
            ends[n] = error
    return [ends[n] for n in range(len(fds))]


def _walk(fd: int, databases: tuple[bytes, ...], index: bytes) -> _Steps[Walked]:
    meta = read_meta(fd)
    reader = _Reader(fd, meta)
    free_leaves = yield from reader.leaves(meta.free, "the tree of free pages", of_free=True)
    free = reader.free_pages(free_leaves, meta.txn_id)
    trees = yield from reader.trees(meta)
    for name in databases:
        if name not in trees:
            raise ValueError(f"it has no database {name.decode()}")
    values, listed = [], []
    for name, tree in trees.items():
        leaves = yield from reader.leaves(tree, f"database {name.decode(errors='replace')}")
        values.append((leaves.value_pages, leaves.value_n_pages))
        if name == index:
            listed = list(leaves.listings(0))
    reader.check_cover(free)
    pages, n_pages = (np.concatenate(column) for column in zip(*values, strict=True))
    return Walked(meta.txn_id, (pages, n_pages), meta.page_bytes, listed)


def read_index(fd: int, txn_id: int, index: bytes) -> list[Listing] | None:
    """What a database lists as of `txn_id`, while a read transaction keeps it; None when that is no longer the newest.

    ValueError when its tree is damaged.
    """
    for meta in read_metas(fd):
        if meta.txn_id == txn_id:
            return _at_once(_index_of(_Reader(fd, meta), meta, index))
    return None


def _index_of(reader: _Reader, meta: LmdbMeta, index: bytes) -> _Steps[list[Listing]]:
    trees = yield from reader.trees(meta)
    leaves = yield from reader.leaves(trees[index], "the index")
    return list(leaves.listings(0))


def _at_once(steps: _Steps[_T]) -> _T:
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: _T = end.value
            return result


def find_bad_value(fd: int, walked: Walked, until_s: float) -> str | None:
    """The first of the values' pages that does not say what it should, looked at until `until_s` (monotonic).

    LMDB believes it when a value is deleted or replaced. One small read for each value, in the order of the file; a
    disk that takes long for them is asked for many at a time.
    """
    pages, n_pages = walked.values
    order = np.argsort(pages)
    is_slow = until_s == math.inf
    for first in range(0, len(order), _VALUES_AT_ONCE):
        began_s = time.monotonic()
        if began_s > until_s:
            return None
        some = order[first : first + _VALUES_AT_ONCE]
        numbers = pages[some].tolist()
        if is_slow:
            for page in numbers:
                os.posix_fadvise(fd, page * walked.page_bytes, _VALUE_HEADER.size, os.POSIX_FADV_WILLNEED)
        for page, expected in zip(numbers, n_pages[some].tolist(), strict=True):
            header = os.pread(fd, _VALUE_HEADER.size, page * walked.page_bytes)
            if len(header) < _VALUE_HEADER.size:
                return f"page {page} is cut short"
            number, _, flags, claimed = _VALUE_HEADER.unpack(header)
            if (number, flags, claimed) != (page, _P_OVERFLOW, expected):
                return f"page {page} is not the first of a value of {expected} pages"
        is_slow = is_slow or time.monotonic() - began_s > len(numbers) * _SLOW_S
    return None


class _Leaves:
    """The leaf nodes of one tree, in the order of their keys."""

    def __init__(self, pages: _Bytes, places: _Ints, key_bytes: _Ints, sizes: _Ints, big: _Bools) -> None:
        self.sizes = sizes
        self.big = big  # whether the value has pages of its own
        self.flat = pages.reshape(-1)
        self.values_at = places + _NODE_BYTES + key_bytes
        self._keys_at = places + _NODE_BYTES
        self._key_bytes = key_bytes
        self.value_pages: _Ints = np.empty(0, np.int64)
        self.value_n_pages: _Ints = np.empty(0, np.int64)

    def __len__(self) -> int:
        return len(self.sizes)

    def nodes(self) -> Iterator[tuple[bytes, bytes]]:
        """Key, and value as far as it is in the leaf: the page number of one that has pages of its own."""
        flat = self.flat.tobytes()
        lengths = np.where(self.big, 8, self.sizes)
        for at, end, n_bytes in zip(self._keys_at.tolist(), self.values_at.tolist(), lengths.tolist(), strict=True):
            yield flat[at:end], flat[end : end + n_bytes]

    def listings(self, shard: int) -> Iterator[Listing]:
        """As the index of `shard`: entries of a length and a time, and more that is not needed here."""
        if self.big.any() or not np.isin(self.sizes, ENTRY_LENGTHS).all():
            raise ValueError("an entry of the index has no length that entries have")
        for key_bytes in np.unique(self._key_bytes).tolist():
            at = self._keys_at[self._key_bytes == key_bytes]
            keys = _gather(self.flat, at, key_bytes)
            entries = _gather(self.flat, at + key_bytes, 16).view(np.uint64)
            n_bytes, written_ns = entries[:, 0].tobytes(), entries[:, 1].tobytes()
            yield Listing(shard, key_bytes, keys.tobytes(), array("Q", n_bytes), array("Q", written_ns))


class _Reader:
    """One state of a file. Which pages it uses is counted as its trees are read."""

    def __init__(self, fd: int, meta: LmdbMeta) -> None:
        self._fd = fd
        self._page_bytes = meta.page_bytes
        self._n_pages = meta.last_page + 1
        if self._n_pages * meta.page_bytes > os.fstat(fd).st_size:
            raise ValueError(f"its meta page names page {meta.last_page}, beyond its end")
        self._used: list[tuple[_Ints, _Ints]] = []  # runs of pages: where they begin, where they have ended

    def trees(self, meta: LmdbMeta) -> _Steps[dict[bytes, Tree]]:
        """The named databases."""
        leaves = yield from self.leaves(meta.main, "the tree of databases", of_trees=True)
        if (leaves.sizes != _TREE.size).any():
            raise ValueError("the tree of databases has a node that is none")
        return {name: Tree(*_TREE.unpack(tree)) for name, tree in leaves.nodes()}

    def leaves(self, tree: Tree, name: str, *, of_trees: bool = False, of_free: bool = False) -> _Steps[_Leaves]:
        """Read and check one tree, level by level."""
        if tree.root == _NO_PAGE:
            if tree[2:] != (0, 0, 0, 0, 0, _NO_PAGE):
                raise ValueError(f"{name} is empty, but its counters are not")
            nothing = np.empty(0, np.int64)
            return _Leaves(np.empty((0, 0), np.uint8), nothing, nothing, nothing, np.empty(0, np.bool_))
        of_this_kind = tree.flags & _KEY_FLAGS == (_INTEGER_KEYS if of_free else 0)
        if not (1 <= tree.depth <= _MAX_DEPTH and of_this_kind and tree.root < self._n_pages):
            raise ValueError(f"{name} has depth {tree.depth}, flags {tree.flags:#x}, root {tree.root}")
        level, counted = np.array([tree.root], np.int64), [0, 0]
        for depth in range(1, tree.depth + 1):
            pages, kind, places, numbers = yield from self._level(level, name)
            counted[kind == _P_LEAF] += len(pages)
            if (kind == _P_LEAF) != (depth == tree.depth):
                raise ValueError(f"{name} says it is {tree.depth} levels deep")
            words = pages.reshape(-1).view(np.uint16)
            low, high, flags, key_bytes = (words[(places >> 1) + n].astype(np.int64) for n in range(4))
            if (places % self._page_bytes + _NODE_BYTES + key_bytes > self._page_bytes).any():
                raise ValueError(f"{name} has a key that runs over the end of its page")
            first = np.ones(len(numbers), np.bool_)
            first[1:] = numbers[1:] != numbers[:-1]
            if kind == _P_BRANCH:
                # The first key of a branch is never looked at.
                self._check_order(pages, places[~first], key_bytes[~first], numbers[~first], name, as_numbers=of_free)
                level = low | high << 16 | flags << 32
        self._check_order(pages, places, key_bytes, None, name, as_numbers=of_free)
        big = flags == _F_BIG
        if (flags != (_F_TREE if of_trees else 0))[~big].any() or (of_trees and big.any()):
            raise ValueError(f"{name} has a node of a kind that does not belong there")
        leaves = _Leaves(pages, places, key_bytes, low | high << 16, big)
        self._find_values(leaves, name)
        found = (tree.depth, counted[0], counted[1], int(leaves.value_n_pages.sum()), len(leaves))
        if found != tree[2:7]:
            raise ValueError(f"{name} holds {found} (depth, pages of each kind, nodes), but says {tree[2:7]}")
        return leaves

    def _level(self, numbers: _Ints, name: str) -> _Steps[tuple[_Bytes, int, _Ints, _Ints]]:
        """Pages of one level, their kind, and for each node where it is among their bytes and on which of the pages."""
        size = self._page_bytes
        if len(numbers) and (numbers.min() < META_PAGES or numbers.max() >= self._n_pages):
            raise ValueError(f"{name} leads to a page that is not in use")
        if len(np.unique(numbers)) < len(numbers):
            raise ValueError(f"two ways lead to a page of {name}")
        self._used.append((numbers, numbers + 1))
        pages = yield from self._read(numbers)
        headers = np.ascontiguousarray(pages[:, : _HEADER.size]).view(_HEADER_TYPE)[:, 0]
        if (headers["number"] != numbers).any():
            raise ValueError(f"a page of {name} has another page's number")
        kind = int(headers["flags"][0])
        if kind not in (_P_BRANCH, _P_LEAF) or (headers["flags"] != kind).any():
            raise ValueError(f"{name} has a page that is no tree page, or of another level")
        lower, upper = (headers[field].astype(np.int64) for field in ("lower", "upper"))
        if (lower < _HEADER.size).any() or (lower & 1).any() or (lower > upper).any() or (upper > size).any():
            raise ValueError(f"a page of {name} has impossible bounds")
        n_nodes = (lower - _HEADER.size) >> 1
        if kind == _P_BRANCH and (n_nodes < 1).any():
            raise ValueError(f"a page of {name} has no children")
        rows = np.repeat(np.arange(len(pages)), n_nodes)
        nth = np.arange(len(rows)) - np.repeat(np.cumsum(n_nodes) - n_nodes, n_nodes)
        at = pages.view(np.uint16)[rows, (_HEADER.size >> 1) + nth].astype(np.int64)
        if (at < upper[rows]).any() or (at + _NODE_BYTES > size).any() or (at & 1).any():
            raise ValueError(f"a page of {name} has a node that lies outside of it")
        return pages, kind, rows * size + at, rows

    def _read(self, numbers: _Ints) -> _Steps[_Bytes]:
        """Pages as rows. Those that follow each other in the file are read by one call, wherever their rows are."""
        size = self._page_bytes
        order = np.argsort(numbers)
        ordered = numbers[order]
        for number, n_pages, _ in _runs(ordered, _NEAR_PAGES):
            os.posix_fadvise(self._fd, number * size, n_pages * size, os.POSIX_FADV_WILLNEED)
        yield
        pages = np.empty((len(numbers), size), np.uint8)
        view, rows = pages.data.cast("B"), order.tolist()
        for number, n_pages, begin in _runs(ordered, 1):
            for some in range(0, n_pages, _PAGES_AT_ONCE):
                wanted = rows[begin + some : begin + min(n_pages, some + _PAGES_AT_ONCE)]
                places = [view[row * size : (row + 1) * size] for row in wanted]
                if os.preadv(self._fd, places, (number + some) * size) < len(places) * size:
                    raise ValueError(f"page {number} is cut short, or one after it")
        return pages

    def _find_values(self, leaves: _Leaves, name: str) -> None:
        size, big = self._page_bytes, leaves.big
        if (leaves.values_at % size + np.where(big, 8, leaves.sizes) > size).any():
            raise ValueError(f"{name} has a value that runs over the end of its page")
        if big.any():
            first = _gather(leaves.flat, leaves.values_at[big], 8).view(np.uint64)[:, 0]
            n_pages = (_HEADER.size - 1 + leaves.sizes[big]) // size + 1
            if (first < META_PAGES).any() or (first > self._n_pages).any():
                raise ValueError(f"{name} has a value on pages that are not in use")
            leaves.value_pages, leaves.value_n_pages = first.astype(np.int64), n_pages
            if (leaves.value_pages + n_pages > self._n_pages).any():
                raise ValueError(f"{name} has a value on pages that are not in use")
            self._used.append((leaves.value_pages, leaves.value_pages + n_pages))

    def _check_order(
        self, pages: _Bytes, places: _Ints, key_bytes: _Ints, group: _Ints | None, name: str, *, as_numbers: bool
    ) -> None:
        """Keys rise from node to node, within each group if there are any; those of free pages as numbers."""
        if len(places) < 2:
            return
        flat = pages.reshape(-1)
        length = int(key_bytes.max())
        keys = np.zeros((len(places), -(-length // 8) * 8), np.uint8)
        for n_bytes in np.unique(key_bytes).tolist():
            which = key_bytes == n_bytes
            keys[which, :n_bytes] = _gather(flat, places[which] + _NODE_BYTES, n_bytes)
        words = keys.view(np.uint64 if as_numbers else ">u8")
        rises, same = np.zeros(len(places) - 1, np.bool_), np.ones(len(places) - 1, np.bool_)
        for n in range(words.shape[1]):
            word = words[:, n].astype(np.uint64)
            rises |= same & (word[:-1] < word[1:])
            same &= word[:-1] == word[1:]
            if not same.any():
                break
        # Shorter is smaller where one key is the beginning of another, also where the other goes on with zeros.
        rises |= same & (key_bytes[1:] > key_bytes[:-1])
        if group is not None:
            rises |= group[1:] != group[:-1]
        if not rises.all():
            raise ValueError(f"{name} has keys that are out of order")

    def free_pages(self, leaves: _Leaves, txn_id: int) -> _Ints:
        """All pages that are listed as free."""
        lists = []
        values = iter(zip(leaves.value_pages.tolist(), leaves.value_n_pages.tolist(), strict=True))
        for (key, value), n_bytes, big in zip(leaves.nodes(), leaves.sizes.tolist(), leaves.big.tolist(), strict=True):
            if len(key) != 8 or not 1 <= int.from_bytes(key, sys.byteorder) <= txn_id:
                raise ValueError("the tree of free pages has a key that is no earlier transaction")
            if big:
                value = os.pread(self._fd, n_bytes, next(values)[0] * self._page_bytes + _HEADER.size)  # noqa: PLW2901
            if len(value) < 8 or len(value) & 7 or len(value) != n_bytes:
                raise ValueError("a list of free pages has an impossible length")
            numbers = np.frombuffer(value, np.uint64).astype(np.int64)
            if numbers[0] != len(numbers) - 1 or (numbers[2:] >= numbers[1:-1]).any():
                raise ValueError("a list of free pages is not in order")
            lists.append(numbers[1:])
        return np.concatenate(lists) if lists else np.empty(0, np.int64)

    def check_cover(self, free: _Ints) -> None:
        """Every page is used once, or free; call when all trees were read."""
        if len(free) and (free.min() < META_PAGES or free.max() >= self._n_pages):
            raise ValueError("a list of free pages names one that is not in use")
        metas = np.array([0]), np.array([META_PAGES])
        begun, ended = (np.concatenate(column) for column in zip(metas, *self._used, strict=True))
        length = self._n_pages + 1
        uses = np.cumsum(np.bincount(begun, minlength=length) - np.bincount(ended, minlength=length))[:-1]
        uses += np.bincount(free, minlength=self._n_pages)
        if (uses != 1).any():
            page = int(np.argmax(uses != 1))
            what = "lost: no tree leads there, and it is not free" if uses[page] == 0 else "used twice"
            raise ValueError(f"page {page} is {what}")


def _runs(ordered: _Ints, near: int) -> Iterator[tuple[int, int, int]]:
    """Pages that lie no more than `near` after the one before: where they begin, until where, the first one's place."""
    begins = np.flatnonzero(np.diff(ordered, prepend=-near - 1) > near)
    firsts, lasts = ordered[begins], ordered[np.append(begins[1:], len(ordered)) - 1]
    return zip(firsts.tolist(), (lasts + 1 - firsts).tolist(), begins.tolist(), strict=True)


def _gather(flat: _Bytes, at: _Ints, n_bytes: int) -> _Bytes:
    """`n_bytes` from each of the places, as rows."""
    if not len(at):
        return np.empty((0, n_bytes), np.uint8)
    windows = np.lib.stride_tricks.sliding_window_view(flat, n_bytes) if n_bytes else flat[:, None][:, :0]
    return np.ascontiguousarray(windows[at])
