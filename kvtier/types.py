"""The vocabulary: the few names every other module speaks. Imports nothing of kvtier."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import NamedTuple, NewType

ChunkKey = NewType("ChunkKey", bytes)
"""Content address of one chunk: `NAMESPACE_BYTES` of namespace digest, then the engine's chained chunk hash.

Two chunks have equal keys only if they hold the KV of the same token prefix, made by the same weights in the same
layout.
"""

NAMESPACE_BYTES = 24


def chunk_hash_of(key: ChunkKey) -> bytes:
    """The engine's part of a key: equal for equal token prefixes whatever the namespace."""
    return key[NAMESPACE_BYTES:]


class FilePages(NamedTuple):
    """Where a frame lies in a file."""

    descriptor: int
    offset: int  # in the file, of what is to be read; a whole page
    length: int  # of that; whole pages
    skip: int  # bytes in front of the frame
    n_bytes: int  # of the frame
    cached: bool  # in the page cache, all of them: to read them is not to wait


UsePages = Callable[[Sequence[FilePages | None]], list[bool]]
"""Reads the frames that lie there; which of them it did."""


class Lookup(Enum):
    """What a tier hierarchy answers when asked for a chunk."""

    MISS = "miss"
    HIT = "hit"  # in host memory, readable, pinned for the asker
    PENDING = "pending"  # on its way up; ask again


LOOKUP_HIT, LOOKUP_PENDING, LOOKUP_MISS = Lookup.HIT, Lookup.PENDING, Lookup.MISS
"""For the scheduler's thread: in Python 3.11 to find a member in its enum takes a tenth of a lookup."""


class Found(NamedTuple):
    """What a tier hierarchy answers when asked for a prefix."""

    n_chunks: int  # so many from the head, up to the first MISS
    pending: bool  # some of them are on their way up: ask again


class Miss(IntEnum):
    """Why a prefix ended where it did. Order is the order of the hit-rate log line; values index counters."""

    NEW = 0  # never stored, or forgotten so long ago that no trace is left
    EVICTED = 1  # was stored; a tier was too small to keep it
    GATE = 2  # there, but loading it was judged not worth it, or no room to load it into
    CORRUPT = 3  # there, but did not verify; dropped
    LOAD_FAILED = 4  # there, but reading it or copying it to the device failed
    FOREIGN = 5  # the same tokens are stored under another namespace (other weights, dtype, layout, parallelism, epoch)


class Source(IntEnum):
    """Where the KV of a token came from. Order is the order of the hit-rate log line; values index counters."""

    DEVICE = 0
    HOST = 1
    DISK = 2


SOURCE_HOST, SOURCE_DISK = Source.HOST, Source.DISK
"""As LOOKUP_HIT."""


class Record(NamedTuple):
    """One frame as a store lists it."""

    key: ChunkKey
    shard: int
    n_bytes: int  # stored bytes of the frame, before rounding to pages
    written_ns: int  # wall clock; orders frames by age across restarts


@dataclass(frozen=True, slots=True)
class Geometry:
    """How big the engine's chunks are. One per engine process; all tiers share it."""

    chunk_bytes: int  # bytes of one slot: a chunk, all layers, all ranks of the node, padded
    tokens_per_chunk: int
    dtype: str  # of the KV elements: "bfloat16", "float16", "fp8_e4m3", ...; chooses the codec
