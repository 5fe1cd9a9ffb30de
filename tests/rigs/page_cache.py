"""What of a file is in the page cache, by cachestat(2)."""

import ctypes
import os
from pathlib import Path
from typing import NamedTuple

import pytest


class Pages(NamedTuple):
    """How many pages of a file are in memory, and how many of them the disk does not have."""

    cached: int
    dirty: int


def pages_of(path: Path, offset: int = 0, n_bytes: int = 0) -> Pages:
    """Of a range, or of all that comes after `offset`; skips where the kernel has no cachestat."""
    counts = (ctypes.c_uint64 * 5)()  # cached, dirty, under writeback, evicted, recently evicted
    with path.open("rb") as opened:
        wanted = (ctypes.c_uint64 * 2)(offset, n_bytes)
        if ctypes.CDLL(None, use_errno=True).syscall(451, opened.fileno(), wanted, counts, 0):
            pytest.skip("the kernel has no cachestat")
    return Pages(counts[0], counts[1])


def drop_from_page_cache(path: Path) -> None:
    """Sync a file and have the page cache give it up."""
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)
