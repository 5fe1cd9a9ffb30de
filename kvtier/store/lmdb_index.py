"""The index entry of a frame: what it says, and finding the page that it names <-> bytes in LMDB's `index` database.

The page number is what lets a frame be read from the file without touching the map: LMDB keeps a value that is too long
for a leaf on pages of its own, one after the other, and leaves them where they are until the value is replaced.
"""

from __future__ import annotations

import ctypes
import struct
from typing import Final, NamedTuple

PAGE_HEADER_BYTES: Final = 16
"""In front of the value, on the first of its pages."""

_BOTH_ENTRIES_BYTES: Final = 512  # of both B-trees per frame, when pages are as empty as LMDB lets them become
_ENTRY: Final = struct.Struct("<QQQ")
_SHORT_ENTRY: Final = struct.Struct("<QQ")
ENTRY_LENGTHS: Final = (_SHORT_ENTRY.size, _ENTRY.size)
"""Bytes of an entry; the shorter one was written before pages were noted, and is the beginning of the longer."""

_PAGE_HEADER: Final = struct.Struct("=QHHI")  # MDB_page of a 64-bit LMDB 0.9: number, -, flags, how many pages
_P_OVERFLOW: Final = 0x04
_P_DIRTY: Final = 0x10  # of the transaction under way


class Entry(NamedTuple):
    """What the index says of a frame."""

    n_bytes: int
    written_ns: int  # wall clock
    page: int  # the first of its own pages; 0 when it lies in a leaf, or was written before pages were noted

    def pack(self) -> bytes:
        """As it is stored."""
        return _ENTRY.pack(*self)


def frame_cost(n_bytes: int, page_bytes: int) -> int:
    """Bytes of a map that a frame of `n_bytes` takes: whole pages, and its share of both B-trees at their emptiest."""
    return -(-(n_bytes + PAGE_HEADER_BYTES) // page_bytes) * page_bytes + _BOTH_ENTRIES_BYTES


def unpack(entry: bytes | memoryview) -> Entry:
    """From what is stored. struct.error when it is no entry."""
    if len(entry) == _SHORT_ENTRY.size:
        n_bytes, written_ns = _SHORT_ENTRY.unpack(entry)
        return Entry(n_bytes, written_ns, 0)
    return Entry(*_ENTRY.unpack(entry))


def page_of(value: memoryview, key: bytes, page_bytes: int) -> int:
    """Number of the first page of `value`, which LMDB just put and gave back in the same transaction; 0 in a leaf."""
    if lies_in_leaf(key, len(value), page_bytes):
        return 0
    header = header_of(value)
    return _PAGE_HEADER.unpack(header)[0] if is_page_of(header, None, len(value), page_bytes) else 0


def lies_in_leaf(key: bytes, n_bytes: int, page_bytes: int) -> bool:
    """Whether a value of `n_bytes` has no page of its own.

    The arithmetic is LMDB's: a node of key and value that is longer than half a page moves out of its leaf.
    """
    return 8 + len(key) + n_bytes <= ((page_bytes - PAGE_HEADER_BYTES) // 2 & -2) - 2


def header_of(value: memoryview) -> bytes:
    """In front of a value that LMDB gave and that does not lie in a leaf. Read through the map."""
    return ctypes.string_at(_address(value) - PAGE_HEADER_BYTES, PAGE_HEADER_BYTES)


def is_page_of(header: bytes | memoryview, page: int | None, n_bytes: int, page_bytes: int) -> bool:
    """Whether a page that begins with `header` is the first of a value of `n_bytes`, and `page` its number.

    Without a `page` it may have any number, and may not have been written yet.

    LMDB believes what it says: a value that is deleted or replaced gives so many pages back, from that number on.
    """
    if len(header) < PAGE_HEADER_BYTES:
        return False
    number, _, flags, n_pages = _PAGE_HEADER.unpack_from(header)
    if page is None:
        flags &= ~_P_DIRTY
    right_length = n_pages == -(-(PAGE_HEADER_BYTES + n_bytes) // page_bytes)
    return right_length and flags == _P_OVERFLOW and page in (None, number)


class _Buffer(ctypes.Structure):
    """Py_buffer."""

    _fields_ = (
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.py_object),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    )


def _address(view: memoryview) -> int:
    """Where the bytes of a view are. ctypes' own from_buffer wants a writable one."""
    buffer = _Buffer()
    ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(view), ctypes.byref(buffer), 0)
    try:
        assert buffer.buf is not None
        return int(buffer.buf)
    finally:
        ctypes.pythonapi.PyBuffer_Release(ctypes.byref(buffer))
