"""Tier: one level of the hierarchy as the cache sees it. Decides only; bytes move in kvtier.transfer."""

from __future__ import annotations

from typing import Protocol

from kvtier.types import ChunkKey


class Tier(Protocol):
    """Bounded residency of chunks. Called under the cache's lock; every call is dictionary work."""

    @property
    def used_bytes(self) -> int:
        """Bytes taken now, never above `capacity_bytes`."""
        ...

    @property
    def capacity_bytes(self) -> int:
        """The bound."""
        ...

    def __contains__(self, key: ChunkKey) -> bool:
        """Whether the chunk is here, in whatever state."""
        ...

    def touch(self, key: ChunkKey) -> None:
        """The chunk, present, was used again."""
        ...

    def remembers(self, key: ChunkKey) -> bool:
        """Whether the chunk was here and had to leave for lack of room, not too long ago."""
        ...

    def drop(self, key: ChunkKey) -> None:
        """Forget the chunk for good, if it is here; it is not remembered as evicted."""
        ...

    def check(self) -> None:
        """Raise AssertionError if an invariant is broken."""
        ...
