"""Scratch: memory of each thread's own that is kept from call to call. A length in, so many bytes out."""

from __future__ import annotations

import threading

import numpy as np
import numpy.typing as npt

from kvtier.memory import page_memory

Bytes = npt.NDArray[np.uint8]


class Scratch(threading.local):
    """Grows, never shrinks: fresh memory costs a page fault for each 4 KiB, as much as the copy into it."""

    def __init__(self) -> None:
        self._bytes: Bytes = np.empty(0, dtype=np.uint8)

    def room(self, n_bytes: int) -> Bytes:
        """`n_bytes` of the calling thread's memory, valid until its next call."""
        if len(self._bytes) < n_bytes:
            self._bytes = np.empty(n_bytes, dtype=np.uint8)
        return self._bytes[:n_bytes]


class PageScratch:
    """The same in whole pages, for the disk to read into; of one thread."""

    def __init__(self) -> None:
        self._pages = memoryview(b"")

    def room(self, n_bytes: int) -> memoryview:
        """`n_bytes` from a page's beginning, valid until the next call."""
        if len(self._pages) < n_bytes:
            self._pages = page_memory(n_bytes)
        return self._pages[:n_bytes]
