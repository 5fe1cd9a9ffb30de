"""Slots: the host pool's bytes, addressed by slot number. The memory is borrowed from the engine."""

from __future__ import annotations


class Slots:
    """`n` equal rows of one flat buffer."""

    sealed = False
    """Whether a slot holds a chunk's frame instead of the chunk."""

    def __init__(self, buffer: memoryview, row_bytes: int) -> None:
        """Cut `buffer`, C-contiguous and writable, into rows of `row_bytes`."""
        self._flat = buffer.cast("B")
        self._row_bytes = row_bytes
        self.n = len(self._flat) // row_bytes

    def __getitem__(self, slot: int) -> memoryview:
        start = slot * self._row_bytes
        return self._flat[start : start + self._row_bytes]


class FrameSlots(Slots):
    """Slots that hold frames, which are of any length up to a row's: what was sealed before it came here."""

    sealed = True

    def __init__(self, buffer: memoryview, row_bytes: int) -> None:
        """As Slots."""
        super().__init__(buffer, row_bytes)
        self._used_bytes = [0] * self.n

    def __getitem__(self, slot: int) -> memoryview:
        return super().__getitem__(slot)[: self._used_bytes[slot]]

    def row(self, slot: int) -> memoryview:
        """All of the slot, to seal into. Say with `holds` what came of it."""
        return super().__getitem__(slot)

    def holds(self, slot: int, n_bytes: int) -> None:
        """The slot's frame is so long."""
        self._used_bytes[slot] = n_bytes
