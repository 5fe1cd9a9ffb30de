"""Ceilings: what this machine does at best with nothing of ours in the way. Buffers and files in, works to time out."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from kvtier.errors import StoreError

DIRECT_BLOCK_BYTES = 4 << 20
"""Of one O_DIRECT call: large enough that the kernel keeps several requests of the disk in flight."""

_ALIGNMENT = 4096


def memcpy(n_bytes: int) -> Callable[[], None]:
    """Work: copy `n_bytes` from one touched buffer to another on this thread. A pass of reading and one of writing."""
    source = np.ones(n_bytes, dtype=np.uint8)
    target = np.zeros(n_bytes, dtype=np.uint8)
    return lambda: np.copyto(target, source)


class DirectFile:
    """A file read and written from front to back with O_DIRECT: the file system and the disk without the page cache."""

    def __init__(self, path: Path, n_bytes: int) -> None:
        """Describe a file of `n_bytes`, rounded up to whole blocks; nothing is on disk before `write`."""
        self.path = path
        self.n_bytes = -(-n_bytes // DIRECT_BLOCK_BYTES) * DIRECT_BLOCK_BYTES
        self._buffer = mmap.mmap(-1, DIRECT_BLOCK_BYTES)
        self._buffer[:] = np.random.default_rng(0).bytes(DIRECT_BLOCK_BYTES)

    def write(self) -> None:
        """Write it anew, and wait until the disk has it."""
        descriptor = self._open(os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            for at in range(0, self.n_bytes, DIRECT_BLOCK_BYTES):
                if os.pwrite(descriptor, self._buffer, at) != DIRECT_BLOCK_BYTES:
                    raise StoreError(f"{self.path}: a write came back short; is the disk full?")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def read(self) -> None:
        """Read it all on this thread."""
        self._read(0, 1, self._buffer)

    def read_with(self, n_threads: int) -> Callable[[], None]:
        """Work: read it all on `n_threads`, each taking every n-th block."""
        buffers = [mmap.mmap(-1, DIRECT_BLOCK_BYTES) for _ in range(n_threads)]

        def read() -> None:
            with ThreadPoolExecutor(n_threads) as pool:
                list(pool.map(lambda i: self._read(i, n_threads, buffers[i]), range(n_threads)))

        return read

    def _read(self, first: int, step: int, buffer: mmap.mmap) -> None:
        descriptor = self._open(os.O_RDONLY)
        try:
            for at in range(first * DIRECT_BLOCK_BYTES, self.n_bytes, step * DIRECT_BLOCK_BYTES):
                if os.preadv(descriptor, [buffer], at) != DIRECT_BLOCK_BYTES:
                    raise StoreError(f"{self.path}: a read came back short")
        finally:
            os.close(descriptor)

    def _open(self, flags: int) -> int:
        try:
            return os.open(self.path, flags | os.O_DIRECT, 0o600)
        except OSError as error:
            raise StoreError(f"{self.path}: no O_DIRECT here ({error.strerror}); name a disk with --dir") from error


def has_direct_io(folder: Path) -> bool:
    """Whether files in `folder` can be opened with O_DIRECT; not so in memory file systems and some overlays."""
    path = folder / "direct-io"
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_DIRECT, 0o600))
    except OSError:
        return False
    finally:
        path.unlink(missing_ok=True)
    return True


def aligned(n_bytes: int) -> memoryview:
    """Fresh zeroed memory at a page boundary, as O_DIRECT wants it; already touched, so that no page fault is timed."""
    memory = memoryview(mmap.mmap(-1, max(1, n_bytes)))
    np.frombuffer(memory, dtype=np.uint8)[::_ALIGNMENT] = 0
    return memory


def fsync_tree(folder: Path) -> None:
    """Wait until the disk has every file below `folder`."""
    for path in _files(folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def drop_page_cache(folder: Path) -> None:
    """Make every file below `folder` (or that one file) cold: synced, and none of it in the page cache.

    Needs no privilege. Pages that some process has mapped stay: close stores first.
    """
    for path in _files(folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def cached_share(folder: Path) -> float:
    """Share of the bytes on disk below `folder` that is in the page cache now, 0 to 1. Tells whether cold was cold."""
    held = cached = 0
    for path in _files(folder):
        status = path.stat()
        if not status.st_size or not status.st_blocks:
            continue
        n_pages = -(-status.st_size // mmap.PAGESIZE)
        held += status.st_blocks * 512 // mmap.PAGESIZE or 1
        with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as view:
            resident = np.zeros(n_pages, dtype=np.uint8)
            start = ctypes.c_char.from_buffer(view)
            libc = ctypes.CDLL(None, use_errno=True)
            libc.mincore(ctypes.byref(start), ctypes.c_size_t(status.st_size), resident.ctypes.data_as(ctypes.c_void_p))
            del start  # the view cannot be closed while it is exported
            cached += int(np.count_nonzero(resident & 1))
    return cached / held if held else 0.0


def _files(folder: Path) -> list[Path]:
    return [folder] if folder.is_file() else [path for path in folder.rglob("*") if path.is_file()]
