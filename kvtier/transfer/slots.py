"""Slots: the host pool's bytes, addressed by slot number. The memory is borrowed from the engine."""

from __future__ import annotations


class Slots:
    """`n` equal rows of one flat buffer."""

    def __init__(self, buffer: memoryview, chunk_bytes: int) -> None:
        """Cut `buffer`, C-contiguous and writable, into rows of `chunk_bytes`."""
        self._flat = buffer.cast("B")
        self._chunk_bytes = chunk_bytes
        self.n = len(self._flat) // chunk_bytes

    def __getitem__(self, slot: int) -> memoryview:
        start = slot * self._chunk_bytes
        return self._flat[start : start + self._chunk_bytes]
