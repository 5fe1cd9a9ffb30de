"""The structure of an LMDB data file, checked before liblmdb trusts it, and what its index lists: file -> columns.

A page is never looked at alone: a whole level of a tree is read and checked by numpy at once, so that a million index
entries take a fraction of a second. Maps nothing. Checked is what LMDB's write and read paths assume: every page is
where its number says, of one kind, reached once or listed as free; nodes lie within their pages; keys are in order;
the counters are true. lmdb.verify, of py-lmdb, checks the same a node at a time, and duplicates too, which we never
have.
"""

from __future__ import annotations

import os
import struct
import sys
import time
from array import array
from collections.abc import Iterator
from typing import Final, NamedTuple

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
_PAGES_AT_ONCE = 512  # Linux takes 1024 buffers for a read
_KEY_FLAGS, _INTEGER_KEYS = 0x7E, 0x08  # how a tree orders its keys, and whether it keeps several values of one

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
    meta = read_meta(fd)
    reader = _Reader(fd, meta)
    free_leaves = reader.leaves(meta.free, "the tree of free pages", of_free=True)
    free = reader.free_pages(free_leaves, meta.txn_id)
    trees = reader.trees(meta)
    for name in databases:
        if name not in trees:
            raise ValueError(f"it has no database {name.decode()}")
    leaves = {name: reader.leaves(tree, f"database {name.decode(errors='replace')}") for name, tree in trees.items()}
    reader.check_cover(free)
    values = [(leaf.value_pages, leaf.value_n_pages) for leaf in leaves.values()]
    pages, n_pages = (np.concatenate(column) for column in zip(*values, strict=True))
    return Walked(meta.txn_id, (pages, n_pages), meta.page_bytes, list(leaves[index].listings(0)))


def read_index(fd: int, txn_id: int, index: bytes) -> list[Listing] | None:
    """What a database lists as of `txn_id`, while a read transaction keeps it; None when that is no longer the newest.

    ValueError when its tree is damaged.
    """
    for meta in read_metas(fd):
        if meta.txn_id == txn_id:
            reader = _Reader(fd, meta)
            return list(reader.leaves(reader.trees(meta)[index], "the index").listings(0))
    return None


def find_bad_value(fd: int, walked: Walked, until_s: float) -> str | None:
    """The first of the values' pages that does not say what it should, looked at until `until_s` (monotonic).

    LMDB believes it when a value is deleted or replaced. One small read for each value.
    """
    for n, (page, n_pages) in enumerate(zip(*(column.tolist() for column in walked.values), strict=True)):
        if not n & 255 and time.monotonic() > until_s:
            return None
        header = os.pread(fd, _VALUE_HEADER.size, page * walked.page_bytes)
        if len(header) < _VALUE_HEADER.size:
            return f"page {page} is cut short"
        number, _, flags, claimed = _VALUE_HEADER.unpack(header)
        if (number, flags, claimed) != (page, _P_OVERFLOW, n_pages):
            return f"page {page} is not the first of a value of {n_pages} pages"
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

    def trees(self, meta: LmdbMeta) -> dict[bytes, Tree]:
        """The named databases."""
        leaves = self.leaves(meta.main, "the tree of databases", of_trees=True)
        if (leaves.sizes != _TREE.size).any():
            raise ValueError("the tree of databases has a node that is none")
        return {name: Tree(*_TREE.unpack(tree)) for name, tree in leaves.nodes()}

    def leaves(self, tree: Tree, name: str, *, of_trees: bool = False, of_free: bool = False) -> _Leaves:
        """Read and check one tree, level by level."""
        if tree.root == _NO_PAGE:
            if tree[2:] != (0, 0, 0, 0, 0, _NO_PAGE):
                raise ValueError(f"{name} is empty, but its counters are not")
            nothing = np.empty(0, np.int64)
            return _Leaves(np.empty((0, 0), np.uint8), nothing, nothing, nothing, np.empty(0, np.bool_))
        if not 1 <= tree.depth <= _MAX_DEPTH or tree.flags & _KEY_FLAGS != (_INTEGER_KEYS if of_free else 0):
            raise ValueError(f"{name} has depth {tree.depth} and flags {tree.flags:#x}")
        level, counted = np.array([tree.root], np.int64), [0, 0]
        for depth in range(1, tree.depth + 1):
            pages, kind, places, numbers = self._level(level, name)
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

    def _level(self, numbers: _Ints, name: str) -> tuple[_Bytes, int, _Ints, _Ints]:
        """Pages of one level, their kind, and for each node where it is among their bytes and on which of the pages."""
        size = self._page_bytes
        if len(numbers) and (numbers.min() < META_PAGES or numbers.max() >= self._n_pages):
            raise ValueError(f"{name} leads to a page that is not in use")
        if len(np.unique(numbers)) < len(numbers):
            raise ValueError(f"two ways lead to a page of {name}")
        self._used.append((numbers, numbers + 1))
        pages = self._read(numbers)
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

    def _read(self, numbers: _Ints) -> _Bytes:
        """Pages as rows. Those that follow each other in the file are read by one call, wherever their rows are."""
        size = self._page_bytes
        pages = np.empty((len(numbers), size), np.uint8)
        view = pages.data.cast("B")
        order = np.argsort(numbers)
        begins = np.flatnonzero(np.diff(numbers[order], prepend=-2) > 1)
        runs = list(zip(begins.tolist(), [*begins[1:].tolist(), len(numbers)], strict=True))
        firsts, rows = numbers[order][begins].tolist(), order.tolist()
        if len(runs) > 1:  # at once: a cold disk takes 0.1 ms for each
            for number, (begin, end) in zip(firsts, runs, strict=True):
                os.posix_fadvise(self._fd, number * size, (end - begin) * size, os.POSIX_FADV_WILLNEED)
        for number, (begin, end) in zip(firsts, runs, strict=True):
            for some in range(begin, end, _PAGES_AT_ONCE):
                places = [view[row * size : (row + 1) * size] for row in rows[some : min(end, some + _PAGES_AT_ONCE)]]
                if os.preadv(self._fd, places, (number + some - begin) * size) < len(places) * size:
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
        words = keys.view(np.uint64 if as_numbers else ">u8").astype(np.uint64)
        # Shorter is smaller where one key is the beginning of another, also where the other goes on with zeros.
        rises: _Bools = key_bytes[1:] > key_bytes[:-1]
        for n in reversed(range(words.shape[1])):
            before, after = words[:-1, n], words[1:, n]
            rises = (before < after) | ((before == after) & rises)
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


def _gather(flat: _Bytes, at: _Ints, n_bytes: int) -> _Bytes:
    """`n_bytes` from each of the places, as rows."""
    if not len(at):
        return np.empty((0, n_bytes), np.uint8)
    windows = np.lib.stride_tricks.sliding_window_view(flat, n_bytes) if n_bytes else flat[:, None][:, :0]
    return np.ascontiguousarray(windows[at])
