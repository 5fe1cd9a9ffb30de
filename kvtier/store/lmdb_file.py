"""What an LMDB data file says of itself, read with plain file reads and never mapped: file -> damage in words.

liblmdb trusts the files it maps. A file cut short ends the process with SIGBUS at the first page that is missing, and a
header that names a page beyond the end does the same, so both are found here before liblmdb sees the file.
"""

from __future__ import annotations

import os
import stat
import struct
import sys
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

# LMDB data version 1 (0.9.x) on a 64-bit machine, native byte order: a page header of 16 bytes, then MDB_meta.
_ORDER = "<" if sys.byteorder == "little" else ">"
_PAGE = struct.Struct(f"{_ORDER}QxxH")
_META = struct.Struct(f"{_ORDER}16xIIQQIHHQQQQQIHHQQQQQQQ")
_MAGIC = 0xBEEFC0DE
_DATA_VERSION = 1
_P_META = 0x08
_MIN_PAGE_BYTES, _MAX_PAGE_BYTES = 512, 0x8000

META_PAGES = 2
"""Pages at the front of every file."""

FRONT_BYTES = META_PAGES * _MAX_PAGE_BYTES
"""They lie within these."""


class Tree(NamedTuple):
    """Where a tree is and what it says of itself."""

    pad: int
    flags: int
    depth: int
    branch_pages: int
    leaf_pages: int
    overflow_pages: int
    entries: int
    root: int


class LmdbMeta(NamedTuple):
    """The newer of a file's two meta pages."""

    page_bytes: int
    last_page: int  # highest page number in use
    txn_id: int
    free: Tree  # of free pages
    main: Tree  # of databases

    @property
    def roots(self) -> tuple[int, int]:
        """The pages where both trees begin."""
        return self.free.root, self.main.root

    @property
    def used_bytes(self) -> int:
        """What the file must at least hold."""
        return (self.last_page + 1) * self.page_bytes


def read_meta(fd: int) -> LmdbMeta:
    """The meta page that liblmdb would choose. ValueError when the file is not an LMDB data file it could open."""
    return max(read_metas(fd), key=lambda meta: meta.txn_id)


def read_metas(fd: int) -> tuple[LmdbMeta, LmdbMeta]:
    """Both meta pages: of the last transaction, and of the one before. ValueError as `read_meta`."""
    first = _parse_meta(os.pread(fd, _META.size, 0), 0)
    second = _parse_meta(os.pread(fd, _META.size, first.page_bytes), 1)
    if second.page_bytes != first.page_bytes:
        raise ValueError("its two meta pages disagree on the page size")
    return first, second


def _parse_meta(page: bytes, number: int) -> LmdbMeta:
    which = ("first", "second")[number]
    if len(page) < _META.size:
        raise ValueError(f"its {which} meta page is cut short")
    magic, version, _address, _map_bytes, *trees, last_page, txn_id = _META.unpack(page)
    free, main = Tree(*trees[:8]), Tree(*trees[8:])
    page_bytes = free.pad  # has its place there
    if _PAGE.unpack_from(page) != (number, _P_META) or magic != _MAGIC:
        raise ValueError(f"its {which} page is not an LMDB meta page")
    if version != _DATA_VERSION:
        raise ValueError(f"its {which} meta page has data version {version}, expected {_DATA_VERSION}")
    if not _MIN_PAGE_BYTES <= page_bytes <= _MAX_PAGE_BYTES or page_bytes & (page_bytes - 1):
        raise ValueError(f"its {which} meta page has pages of {page_bytes} bytes")
    return LmdbMeta(page_bytes, last_page, txn_id, free, main)


def fetch(path: Path, n_bytes: int) -> None:
    """Have the kernel begin to read the front of a file; for the caller it comes too early to hear of errors."""
    with suppress(OSError):
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            os.posix_fadvise(fd, 0, n_bytes, os.POSIX_FADV_WILLNEED)
        finally:
            os.close(fd)


def cut_back(path: Path, map_bytes: int) -> None:
    """Shorten a file that is longer than `map_bytes` but uses no more: it was lengthened and never opened since."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        if os.fstat(fd).st_size > map_bytes >= read_meta(fd).used_bytes:
            os.ftruncate(fd, map_bytes)
    except ValueError:
        return  # find_damage says what is wrong with it
    finally:
        os.close(fd)


def find_damage(path: Path, map_bytes: int) -> str | None:
    """Why liblmdb must not be given `path` as a shard of `map_bytes`, or None when the file is whole from outside.

    A shard file is exactly as long as its map from birth (its unwritten parts take no disk), so a shorter one has lost
    something. Raises OSError for what is no fault of the file, like too many open files.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return "it is missing"
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            return "it is not a regular file"
        if status.st_size != map_bytes:
            return f"it is {status.st_size} bytes long, expected {map_bytes}"
        meta = read_meta(fd)
        if meta.used_bytes > map_bytes:
            return f"its meta page claims {meta.used_bytes} bytes of {map_bytes}"
    except (ValueError, OSError) as error:  # no LMDB file, or an unreadable sector
        return str(error)
    finally:
        os.close(fd)
    return None
