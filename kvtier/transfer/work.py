"""What transfer threads ask of, and report to, whoever decides. TieredCache satisfies it; transfer never imports it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from kvtier.observe.stats import Stats
from kvtier.residency import Placement, Promotion, Resident
from kvtier.types import ChunkKey, Miss


class Work(Protocol):
    """Called from transfer threads. Every call is short and takes the decider's own lock."""

    stats: Stats
    disk_readable: bool
    disk_writable: bool

    def next_spills(self, max_chunks: int, *, idle: bool) -> list[Resident]:
        """Chunks to write now; each is pinned until `spilled`."""
        ...

    def place_all(self, sealed: Sequence[tuple[Resident, int]]) -> list[Placement | None]:
        """Room for each sealed frame of so many bytes, or None. May read and write a small file."""
        ...

    def spilled(self, resident: Resident, placement: Placement | None, *, ok: bool, full: bool = False) -> None:
        """One spill ended. `full`, with the last of a write's: its shard had less room than it was thought to have."""
        ...

    def promoted(self, job: Promotion, failure: Miss | None) -> None:
        """One promotion ended; Miss.GATE means that its frame was not looked at."""
        ...

    def n_dirty(self) -> int:
        """Chunks that wait to be written."""
        ...


class ReadFrame(Protocol):
    """How others than the Mover read frames: see `Mover.read`."""

    def __call__(self, shard: int, key: ChunkKey, use: Callable[[memoryview], None], /) -> Miss | None:
        """Have a frame's bytes used; why not, if not."""
        ...
