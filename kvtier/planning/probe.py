"""Probe: a directory and this machine's memory -> GB/s, measured. The only module of planning that does I/O.

The file it writes has no name, so that nothing is left behind whatever happens; it is read and written past the page
cache (O_DIRECT), by several threads at once, as a drive wants it.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kvtier.errors import ConfigError
from kvtier.machine import DiskSpace

FILE_BYTES: Final = 512 << 20
BLOCK_BYTES: Final = 4 << 20
_THREADS: Final = 4
_COPY_BYTES: Final = 256 << 20
_COPIES: Final = 4

Progress = Callable[[str, float], None]  # what is measured, and which part of it is done (0 to 1)


@dataclass(frozen=True, slots=True)
class Probed:
    """GB (10^9 bytes) a second."""

    disk_write_gbps: float
    disk_read_gbps: float
    copy_gbps: float  # memory to memory, one thread


def probe(folder: Path, progress: Progress, *, file_bytes: int = FILE_BYTES) -> Probed:
    """Measure the disk under `folder` and memory. Writes `file_bytes` there for a moment, a multiple of BLOCK_BYTES.

    Raises ConfigError when the folder is not there, has too little room, or its file system has no direct I/O.
    """
    write_gbps, read_gbps = probe_disk(folder, progress, file_bytes=file_bytes)
    return Probed(write_gbps, read_gbps, probe_copy(progress))


def probe_disk(folder: Path, progress: Progress, *, file_bytes: int = FILE_BYTES) -> tuple[float, float]:
    """(write, read) in GB/s. See `probe`."""
    space = DiskSpace.at(folder)
    if space.is_memory:
        raise ConfigError(f"--probe {folder}: that is memory ({space.fs_type}), not a disk: name another directory")
    if folder.is_dir() and space.free_bytes < 2 * file_bytes:
        raise ConfigError(f"--probe {folder}: less than {2 * file_bytes >> 20} MiB free there: name another directory")
    try:
        file = os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_DIRECT, 0o600)
    except OSError as error:
        raise _refused(folder, error) from error
    try:
        buffers = [mmap.mmap(-1, BLOCK_BYTES) for _ in range(_THREADS)]  # direct I/O needs whole pages
        noise = os.urandom(1 << 20)  # some drives compress, and KV hardly does
        for buffer in buffers:
            buffer.write(noise * (BLOCK_BYTES >> 20))
        write_s = _timed(file, buffers, file_bytes, "writing", progress)
        read_s = _timed(file, buffers, file_bytes, "reading", progress)
    except OSError as error:
        raise _refused(folder, error) from error
    finally:
        os.close(file)
    return file_bytes / write_s / 1e9, file_bytes / read_s / 1e9


def probe_copy(progress: Progress) -> float:
    """GB/s of copying memory on one thread: the best of a few, larger than any processor cache."""
    source, target = bytearray(_COPY_BYTES), bytearray(_COPY_BYTES)
    from_, to = ((ctypes.c_char * _COPY_BYTES).from_buffer(part) for part in (source, target))
    best_s = float("inf")
    for i in range(_COPIES):
        start = time.perf_counter()
        ctypes.memmove(to, from_, _COPY_BYTES)
        best_s = min(best_s, time.perf_counter() - start)
        progress("copying", (i + 1) / _COPIES)
    return _COPY_BYTES / best_s / 1e9


def _timed(file: int, buffers: list[mmap.mmap], file_bytes: int, what: str, progress: Progress) -> float:
    """Seconds to move the whole file, each thread every so many-th block."""
    n_blocks = file_bytes // BLOCK_BYTES

    def move(thread: int) -> None:
        for block in range(thread, n_blocks, len(buffers)):
            call = os.pwritev if what == "writing" else os.preadv
            moved = call(file, [buffers[thread]], block * BLOCK_BYTES)
            if moved != BLOCK_BYTES:
                raise OSError(0, f"{what} moved {moved} of {BLOCK_BYTES} bytes")
            if thread == 0:
                progress(what, block / n_blocks)

    start = time.perf_counter()
    with ThreadPoolExecutor(len(buffers)) as pool:
        list(pool.map(move, range(len(buffers))))
    if what == "writing":
        os.fdatasync(file)
    seconds = time.perf_counter() - start
    progress(what, 1.0)
    return seconds


def _refused(folder: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"--probe {folder}: cannot measure there: {error.strerror or error}; name an existing directory on a "
        "local disk that you may write, or give --disk-read and --disk-write"
    )
