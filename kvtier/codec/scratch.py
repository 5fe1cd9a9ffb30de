"""Scratch: memory of each thread's own that is kept from call to call. A length in, so many bytes out."""

from __future__ import annotations

import threading

import numpy as np
import numpy.typing as npt

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
