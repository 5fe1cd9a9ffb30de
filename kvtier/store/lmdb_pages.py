"""Which pages of an LMDB data file its committed trees reach: file -> bitmap. Maps nothing, trusts nothing in it.

What the trees do not reach may still hold the bytes of frames that were deleted or replaced long ago; whoever wants
those gone overwrites everything outside the bitmap, holding the environment's write lock.
"""

from __future__ import annotations

import os
import struct
import sys

from kvtier.store.lmdb_file import META_PAGES, read_meta

# LMDB data version 1 (0.9.x) on a 64-bit machine, native byte order.
_ORDER = "<" if sys.byteorder == "little" else ">"
_HEADER = struct.Struct(f"{_ORDER}QxxHHH")  # page number, flags, lower, upper
_OVERFLOW_PAGES = struct.Struct(f"{_ORDER}I")  # in an overflow page, in the place of lower and upper
_NODE = struct.Struct(f"{_ORDER}HHHH")  # low and high half of a size or page number, flags, key bytes
_OFFSET = struct.Struct(f"{_ORDER}H")
_DATABASE = struct.Struct(f"{_ORDER}IHHQQQQQ")  # ..., root page
_PAGE_NUMBER = struct.Struct(f"{_ORDER}Q")
_P_BRANCH, _P_LEAF, _P_OVERFLOW = 0x01, 0x02, 0x04
_F_BIG, _F_DATABASE = 0x01, 0x02
_NO_PAGE = 2**64 - 1


def reachable_pages(fd: int) -> tuple[bytearray, list[tuple[int, int]]]:
    """What the committed trees hold, and what they leave empty within their pages.

    First one byte for each page up to the last one in use: 1 if a tree, its values or a meta page are on it. Then where
    in the file a tree page has room for more, or the last page of a value, as (first byte, one past the last), unless
    all of that is zero: LMDB leaves there what the page, or another one, held before.

    ValueError when the file is damaged or changes meanwhile. Takes time with the tree pages (1 % of a store's) and the
    number of values, not with their length.
    """
    meta = read_meta(fd)
    walk = _Walk(fd, meta.page_bytes, meta.last_page)
    return walk.run(meta.roots), walk.left_over


class _Walk:
    def __init__(self, fd: int, page_bytes: int, last_page: int) -> None:
        self._fd = fd
        self._page_bytes = page_bytes
        if (last_page + 1) * page_bytes > os.fstat(fd).st_size:
            raise ValueError(f"its meta page names page {last_page}, beyond its end")
        self._seen = bytearray(last_page + 1)
        self.left_over: list[tuple[int, int]] = []

    def run(self, roots: tuple[int, ...]) -> bytearray:
        for page in range(META_PAGES):
            self._mark(page, 1)
        todo = [root for root in roots if root != _NO_PAGE]
        while todo:
            todo += self._children(todo.pop())
        return self._seen

    def _mark(self, first: int, n_pages: int) -> None:
        if first + n_pages > len(self._seen) or n_pages < 1:
            raise ValueError(f"a tree leads to page {first}, beyond the last one")
        if any(self._seen[first : first + n_pages]):
            raise ValueError(f"two ways lead to page {first}")
        self._seen[first : first + n_pages] = b"\1" * n_pages

    def _children(self, number: int) -> list[int]:
        """Tree pages below page `number`; values too large for their leaf are marked on the way."""
        self._mark(number, 1)
        page = os.pread(self._fd, self._page_bytes, number * self._page_bytes)
        try:
            own_number, flags, lower, upper = _HEADER.unpack_from(page)
            if own_number != number or not flags & (_P_BRANCH | _P_LEAF):
                raise ValueError(f"page {number} is no tree page")
            if any(page[lower:upper]):
                self.left_over.append((number * self._page_bytes + lower, number * self._page_bytes + upper))
            nodes = range(_HEADER.size, lower, _OFFSET.size)
            below = (self._below(page, _OFFSET.unpack_from(page, at)[0], flags) for at in nodes)
            return [child for child in below if child != _NO_PAGE]
        except struct.error as error:
            raise ValueError(f"page {number} is cut short") from error

    def _below(self, page: bytes, at: int, flags: int) -> int:
        low, high, kind, n_key = _NODE.unpack_from(page, at)
        if flags & _P_BRANCH:
            return int(low | high << 16 | kind << 32)
        value = at + _NODE.size + n_key
        if kind & _F_DATABASE:
            return int(_DATABASE.unpack_from(page, value)[-1])
        if kind & _F_BIG:
            self._mark_value(_PAGE_NUMBER.unpack_from(page, value)[0], low | high << 16)
        return _NO_PAGE

    def _mark_value(self, number: int, n_bytes: int) -> None:
        start = number * self._page_bytes
        header = os.pread(self._fd, _HEADER.size, start)
        own_number, flags, _, _ = _HEADER.unpack(header)
        if own_number != number or not flags & _P_OVERFLOW:
            raise ValueError(f"page {number} is not the first of a value")
        n_pages = _OVERFLOW_PAGES.unpack_from(header, _HEADER.size - _OVERFLOW_PAGES.size)[0]
        self._mark(number, n_pages)
        first, last = start + _HEADER.size + n_bytes, start + n_pages * self._page_bytes
        if any(os.pread(self._fd, last - first, first)):
            self.left_over.append((first, last))
