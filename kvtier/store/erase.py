"""Erasing: what an LMDB data file holds outside its committed trees -> zeros. Deleting alone leaves the bytes there."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator

from kvtier.store.lmdb_file import read_meta
from kvtier.store.lmdb_pages import reachable_pages

_KEEP_SIZE, _PUNCH_HOLE = 0x01, 0x02  # linux/falloc.h
_UNSUPPORTED = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
_PIECE_BYTES = 1 << 20


def erase_unreachable(fd: int) -> int:
    """Turn all that no committed tree needs into zeros, on the medium when this returns; bytes that were.

    That is every page that none reaches, and what earlier nodes left in the empty middle of the others.

    The caller holds the environment's write lock and knows that no reader looks at an older snapshot. Blocks are given
    back to the file system where it can, overwritten where it cannot. ValueError when the file is damaged.
    """
    reachable, left_over = reachable_pages(fd)
    page_bytes = read_meta(fd).page_bytes
    n_bytes = 0
    for start, end in [*_gaps(reachable), (len(reachable), os.fstat(fd).st_size // page_bytes)]:
        for first, last in _written(fd, start * page_bytes, end * page_bytes):
            _zero(fd, first, last - first)
            n_bytes += last - first
    for first, last in left_over:
        os.pwrite(fd, bytes(last - first), first)
        n_bytes += last - first
    os.fsync(fd)
    return n_bytes


def _gaps(reachable: bytearray) -> Iterator[tuple[int, int]]:
    """Runs of pages that are 0, as (first, one past the last)."""
    end = 0
    while (start := reachable.find(0, end)) >= 0:
        end = reachable.find(1, start)
        if end < 0:
            yield start, len(reachable)
            return
        yield start, end


def _written(fd: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Parts of [start, end) that are no holes."""
    while start < end:
        try:
            first = os.lseek(fd, start, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole up to the end of the file
                return
            raise
        if first >= end:
            return
        last = min(end, os.lseek(fd, first, os.SEEK_HOLE))
        yield first, last
        start = last


def _zero(fd: int, start: int, n_bytes: int) -> None:
    if _fallocate(fd, start, n_bytes):
        return
    zeros = bytes(_PIECE_BYTES)
    for at in range(start, start + n_bytes, _PIECE_BYTES):
        piece = memoryview(zeros)[: start + n_bytes - at]
        while piece:
            piece = piece[os.pwrite(fd, piece, at + min(_PIECE_BYTES, start + n_bytes - at) - len(piece)) :]


def _fallocate(fd: int, start: int, n_bytes: int) -> bool:
    """Punch a hole; False where the system or the file system cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "fallocate"):
        return False
    how = ctypes.c_int(_KEEP_SIZE | _PUNCH_HOLE)
    if libc.fallocate(ctypes.c_int(fd), how, ctypes.c_int64(start), ctypes.c_int64(n_bytes)) == 0:
        return True
    code = ctypes.get_errno()
    if code in _UNSUPPORTED:
        return False
    raise OSError(code, os.strerror(code))
