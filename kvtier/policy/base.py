"""EvictionPolicy: who stays in a tier. Keys only, no bytes, no clock; O(1) per call."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from kvtier.types import ChunkKey


class EvictionPolicy(Protocol):
    """Orders the keys of one tier from coldest to hottest. Called under the cache's lock only."""

    def insert(self, key: ChunkKey) -> None:
        """`key`, absent until now, entered the tier."""
        ...

    def touch(self, key: ChunkKey) -> None:
        """`key`, present, was used again."""
        ...

    def refresh(self, key: ChunkKey) -> None:
        """Move `key`, present, to the hot end of where it is, without counting a use.

        Callers refresh a chain tail first when its request ends, so that heads outlive tails.
        """
        ...

    def remove(self, key: ChunkKey, *, evicted: bool) -> None:
        """`key`, present, left the tier: `evicted` for lack of room (it is remembered), or dropped for good."""
        ...

    def victims(self) -> Iterator[ChunkKey]:
        """Keys from coldest to hottest. The caller takes a bounded number and mutates only after it stops iterating."""
        ...

    def remembers(self, key: ChunkKey) -> bool:
        """Whether `key` was evicted recently enough to be remembered."""
        ...
