"""Slots: the host pool's bytes, addressed by slot number. The memory is borrowed from the engine."""

from __future__ import annotations

import ctypes


class Slots:
    """`n` equal rows of one flat buffer."""

    def __init__(self, buffer: memoryview, chunk_bytes: int) -> None:
        """Cut `buffer`, C-contiguous and writable, into rows of `chunk_bytes`."""
        self._flat = buffer.cast("B")
        self._chunk_bytes = chunk_bytes
        self.n = len(self._flat) // chunk_bytes
        self._used_bytes: dict[int, int] = {}  # of the slots whose chunk is shorter than a row

    def __getitem__(self, slot: int) -> memoryview:
        start = slot * self._chunk_bytes
        return self._flat[start : start + self._used_bytes.get(slot, self._chunk_bytes)]

    def fit(self, slot: int, n_bytes: int) -> None:
        """The chunk that comes to `slot` next is `n_bytes` long, at most a row."""
        assert 0 <= n_bytes <= self._chunk_bytes
        self._used_bytes[slot] = n_bytes

    def address(self, slot: int) -> int:
        """Where the slot begins in memory, for copies that need no view."""
        return ctypes.addressof(ctypes.c_char.from_buffer(self._flat, slot * self._chunk_bytes))
