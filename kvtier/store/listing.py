"""Listing: what a store holds, in columns: its index -> whoever keeps track. A million frames are a dozen objects.

Plain buffers, so that a listing can be read from a file or sent through a socket without looking at a single frame.
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import repeat
from typing import TYPE_CHECKING, NamedTuple

from kvtier.types import ChunkKey, Record

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, slots=True)
class Listing:
    """Frames of one shard: the i-th of each column is of one frame. All keys are of one length."""

    shard: int
    key_bytes: int
    keys: bytes  # one after the other
    n_bytes: array[int]  # "Q": stored bytes of each frame, before rounding to pages
    written_ns: array[int]  # "Q": wall clock; orders frames by age across restarts

    def __len__(self) -> int:
        return len(self.n_bytes)

    def split(self) -> Iterator[ChunkKey]:
        """The keys, one by one."""
        step, keys = self.key_bytes, self.keys
        return (ChunkKey(keys[at : at + step]) for at in range(0, len(keys), step))

    def records(self) -> Iterator[Record]:
        """Frame by frame."""
        return map(Record, self.split(), repeat(self.shard), self.n_bytes, self.written_ns)


class Columns(NamedTuple):
    """Frames of all shards: the i-th of each column is of one frame."""

    keys: list[ChunkKey]
    shards: array[int]  # "H"
    n_bytes: array[int]  # "Q"


def listings_of(records: Iterable[Record]) -> Iterator[Listing]:
    """The same in columns: one listing for each shard and length of key."""
    tables: dict[tuple[int, int], tuple[list[ChunkKey], array[int], array[int]]] = {}
    for key, shard, n_bytes, written_ns in records:
        table = tables.setdefault((shard, len(key)), ([], array("Q"), array("Q")))
        table[0].append(key)
        table[1].append(n_bytes)
        table[2].append(written_ns)
    for (shard, key_bytes), (keys, sizes, ages) in tables.items():
        yield Listing(shard, key_bytes, b"".join(keys), sizes, ages)


def records_of(listings: Iterable[Listing]) -> Iterator[Record]:
    """The same frame by frame."""
    for listing in listings:
        yield from listing.records()


def coldest_first(listings: Iterable[Listing], family: bytes) -> Columns:
    """All frames, those written longest ago first, but those whose key does not begin with `family` before all others.

    0.3 s per million frames; a frame at a time would take several times as long.
    """
    import numpy as np  # noqa: PLC0415 - tools that open no store start without it

    kept = [listing for listing in listings if len(listing)]
    if not kept:
        return Columns([], array("H"), array("Q"))

    def own(listing: Listing) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
        if listing.key_bytes < len(family):
            return np.zeros(len(listing), np.bool_)
        begins = np.frombuffer(listing.keys, f"V{listing.key_bytes}").view(np.uint8)
        same = begins.reshape(len(listing), -1)[:, : len(family)] == np.frombuffer(family, np.uint8)
        return np.asarray(np.logical_and.reduce(same, axis=1), np.bool_)

    ages = np.concatenate([np.frombuffer(listing.written_ns, np.uint64) for listing in kept])
    order = np.lexsort((ages, np.concatenate([own(listing) for listing in kept])))
    shards = np.repeat(np.array([listing.shard for listing in kept], np.uint16), [len(listing) for listing in kept])
    sizes = np.concatenate([np.frombuffer(listing.n_bytes, np.uint64) for listing in kept])
    return Columns(
        _keys_in(order, kept),
        array("H", shards[order].tobytes()),
        array("Q", sizes[order].tobytes()),
    )


def _keys_in(order: np.ndarray[tuple[int, ...], np.dtype[np.int64]], listings: list[Listing]) -> list[ChunkKey]:
    """Made one after the other as they will lie in the index: chunks that came together are then near each other."""
    import numpy as np  # noqa: PLC0415 - as above

    (step, *others) = {listing.key_bytes for listing in listings}
    if others:
        keys = [key for listing in listings for key in listing.split()]
        return [keys[n] for n in order.tolist()]
    made: list[ChunkKey] = np.frombuffer(b"".join(listing.keys for listing in listings), f"V{step}")[order].tolist()
    return made


def give_back_memory() -> None:
    """Return memory that was freed to the system, where the C library has a way; some ms, after much was freed at once.

    glibc keeps what lies below anything still in use: of the columns that an index of a million chunks is made from,
    80 MB stayed.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
