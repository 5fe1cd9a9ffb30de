"""Reading frames out of shard files: page range -> borrowed bytes, by file reads and never through a memory map.

A page that the device cannot give is then an error of one read; under a map it is SIGBUS and the end of the process.
What the page cache holds is copied from there, anything else is read past it (O_DIRECT): it goes to the host pool, so a
second copy would only take memory and time. docs/performance.md has what each way of reading gave.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from kvtier.memory import page_memory

MAX_OPEN_FILES: Final = 64
"""Shard files that stay open for reading, two descriptors each: LMDB takes three more for each of up to 256 shards, and
the common limit is 1024."""

_PAGE: Final = mmap.PAGESIZE
_NO_DIRECT: Final = frozenset({errno.EINVAL, errno.EOPNOTSUPP})
_PROT_NONE: Final = 0
_MAP_FAILED: Final = ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_libc.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p)
_SYNC_FILE_RANGE_WRITE: Final = 2
_SYNC_FILE_RANGE_WRITE_AND_WAIT: Final = 7
_sync_file_range = getattr(_libc, "sync_file_range", None)  # a C library other than glibc may have none
if _sync_file_range is not None:
    _sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)

Preadv = Callable[[int, Sequence[memoryview], int], int]


def start_writeback(descriptor: int) -> None:
    """Have the kernel begin to write the dirty pages of a file, where it can be asked to."""
    if _sync_file_range is not None:
        _sync_file_range(descriptor, 0, 0, _SYNC_FILE_RANGE_WRITE)


class PageReader:
    """Reads of shard files from any thread, several at a time. `close` when no read is in flight."""

    def __init__(self, paths: Sequence[Path], map_bytes: int, *, preadv: Preadv = os.preadv) -> None:
        """Read from `paths`, each `map_bytes` long. `preadv` as in `os`: the seam at which tests break the medium."""
        self._paths = [os.fspath(path) for path in paths]
        self._map_bytes = map_bytes
        self._preadv = preadv
        self._lock = threading.Lock()
        self._open: dict[int, _OpenFile] = {}
        self._buffers: list[memoryview] = []

    def read(self, file: int, offset: int, n_bytes: int) -> PageRun:
        """Bytes `offset` to `offset + n_bytes` of `paths[file]`; the caller closes what it gets.

        `offset` is a multiple of the machine's page size. Raises OSError when the file cannot be read or ends before.
        """
        length = -(-n_bytes // _PAGE) * _PAGE
        buffer = self._take_buffer(length)
        try:
            with self._borrowed(file) as opened:
                self._fill(opened, buffer[:length], offset)
        except BaseException:
            self._buffers.append(buffer)
            raise
        return PageRun(buffer, n_bytes, self._buffers)

    @contextmanager
    def place(self, file: int, offset: int, n_bytes: int) -> Iterator[tuple[int, int, bool]]:
        """What `read` would read with, for whoever does: a descriptor, good for the block, and bytes in whole pages.

        Third, whether the page cache has them all. Raises OSError when the file cannot be opened.
        """
        length = -(-n_bytes // _PAGE) * _PAGE
        with self._borrowed(file) as opened:
            descriptor, cached = opened.descriptor_for(offset, length)
            yield descriptor, length, cached

    def peek(self, file: int, offset: int, n_bytes: int) -> bytes:
        """A few bytes of a page that is to be in the page cache anyway. OSError when they cannot be read."""
        with self._borrowed(file) as opened:
            return os.pread(opened.buffered, n_bytes, offset)

    def start_writeback(self, file: int) -> None:
        """Have the kernel begin to write what of `paths[file]` only the page cache has; does not wait for the disk.

        Left to itself it begins when a tenth of the memory is dirty, and whoever syncs then waits for all of it. An
        error is for that sync to report. Any thread, beside reads; waits only while the device's queue is full.
        """
        with contextlib.suppress(OSError), self._borrowed(file) as opened:
            start_writeback(opened.buffered)

    def drop(self, file: int, offset: int, n_bytes: int) -> None:
        """Have the disk take a range of `paths[file]`, and the page cache give it up. Blocks for as long as that takes.

        Whole pages. Nothing is lost by it, whatever is written there meanwhile. Errors as in `start_writeback`.
        """
        with contextlib.suppress(OSError), self._borrowed(file) as opened:
            if _sync_file_range is not None:
                _sync_file_range(opened.buffered, offset, n_bytes, _SYNC_FILE_RANGE_WRITE_AND_WAIT)
            os.posix_fadvise(opened.buffered, offset, n_bytes, os.POSIX_FADV_DONTNEED)

    def fetch(self, file: int, offset: int, n_bytes: int) -> None:
        """Have the kernel bring a range of `paths[file]` into the page cache. Errors as in `start_writeback`."""
        with contextlib.suppress(OSError), self._borrowed(file) as opened:
            os.posix_fadvise(opened.buffered, offset, n_bytes, os.POSIX_FADV_WILLNEED)

    def close(self) -> None:
        """Close all files."""
        for opened in self._open.values():
            opened.close()
        self._open.clear()
        self._buffers.clear()

    def _fill(self, opened: _OpenFile, out: memoryview, offset: int) -> None:
        n_read = 0
        descriptor, _ = opened.descriptor_for(offset, len(out))
        while n_read < len(out):
            try:
                n = self._preadv(descriptor, [out[n_read:]], offset + n_read)
            except OSError as error:
                if descriptor == opened.buffered or error.errno not in _NO_DIRECT:
                    raise
                descriptor = opened.buffered  # a file system that takes the flag and then refuses the read
                continue
            if n == 0:
                raise OSError(f"the file ends within a frame, at {offset + n_read}")
            n_read += n
            if n % _PAGE:
                descriptor = opened.buffered  # what remains does not begin on a boundary

    def _take_buffer(self, length: int) -> memoryview:
        try:
            buffer = self._buffers.pop()
        except IndexError:
            return page_memory(length)
        return buffer if len(buffer) >= length else page_memory(length)

    @contextmanager
    def _borrowed(self, file: int) -> Iterator[_OpenFile]:
        """Open, and not closed before the block ends."""
        with self._lock:
            opened = self._open.get(file)
            if opened is None:
                if len(self._open) >= MAX_OPEN_FILES:
                    for idle in [number for number, other in self._open.items() if not other.n_readers]:
                        self._open.pop(idle).close()
                opened = self._open[file] = _OpenFile(self._paths[file], self._map_bytes)
            opened.n_readers += 1
        try:
            yield opened
        finally:
            with self._lock:
                opened.n_readers -= 1


class PageRun:
    """What one read gave. `view` is read-only and good until `close`; without one its memory is not used again."""

    __slots__ = ("_buffer", "_spare", "view")

    def __init__(self, buffer: memoryview, n_bytes: int, spare: list[memoryview]) -> None:
        self._buffer = buffer
        self._spare = spare
        self.view = buffer[:n_bytes].toreadonly()

    def close(self) -> None:
        """Keep the memory for another read. The caller has released what it cut from `view`."""
        self.view.release()
        self._spare.append(self._buffer)


class _OpenFile:
    """Descriptors of one file, and a mapping that is only ever asked what of it is in the page cache."""

    __slots__ = ("_address", "_map_bytes", "buffered", "direct", "n_readers")

    def __init__(self, path: str, map_bytes: int) -> None:
        self.n_readers = 0
        self._map_bytes = map_bytes
        self.buffered = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            self.direct = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_DIRECT)
        except OSError as error:
            if error.errno not in _NO_DIRECT:
                os.close(self.buffered)
                raise
            self.direct = -1  # as on some overlays: then everything goes through the page cache
        address = _libc.mmap(None, map_bytes, _PROT_NONE, mmap.MAP_SHARED, self.buffered, 0)
        self._address = None if address == _MAP_FAILED else address

    def descriptor_for(self, offset: int, n_bytes: int) -> tuple[int, bool]:
        """The one to read so many bytes with, and whether the page cache has them."""
        cached = self.is_cached(offset, n_bytes)
        return self.buffered if cached or self.direct < 0 else self.direct, cached

    def is_cached(self, offset: int, n_bytes: int) -> bool:
        """Whether all of it is in the page cache. Microseconds; reads nothing."""
        if self._address is None:
            return False
        n_pages = n_bytes // _PAGE
        present = ctypes.create_string_buffer(n_pages)
        if _libc.mincore(self._address + offset, n_bytes, present):
            return False
        return present.raw.count(b"\0") == 0

    def close(self) -> None:
        if self._address is not None:
            _libc.munmap(self._address, self._map_bytes)
        if self.direct >= 0:
            os.close(self.direct)
        os.close(self.buffered)
