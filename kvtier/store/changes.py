"""The log of a shard: what each transaction put and deleted <-> one small value, for other processes to follow."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet

from kvtier.store.base import Change
from kvtier.types import ChunkKey

LOG_TRANSACTIONS = 256
"""Transactions a shard's log goes back. Who is further behind reads the whole index instead."""

LOG_MOST_CHANGES = 1024
"""A transaction of more is left out of the log: who misses it reads the whole index instead."""

_ENTRY = struct.Struct("<HQ")  # length of the key, then of the frame, and then the key
_DELETED = (1 << 64) - 1


def pack(changes: Iterable[Change]) -> bytes:
    """The log's value for one transaction."""
    return b"".join(_ENTRY.pack(len(key), _DELETED if n_bytes is None else n_bytes) + key for key, n_bytes in changes)


def unpack(value: bytes) -> list[Change]:
    """The changes of one transaction, in order. ValueError when the bytes are not what `pack` makes."""
    changes, at = [], 0
    while at < len(value):
        try:
            key_length, n_bytes = _ENTRY.unpack_from(value, at)
        except struct.error as error:
            raise ValueError("a log entry is cut short") from error
        at += _ENTRY.size + key_length
        if at > len(value):
            raise ValueError("a log entry is cut short")
        changes.append(Change(ChunkKey(value[at - key_length : at]), None if n_bytes == _DELETED else n_bytes))
    return changes


def from_others(log: Mapping[int, bytes], own: AbstractSet[int], after: int, last: int) -> list[Change] | None:
    """What transactions that are not in `own` did to each key after transaction `after` up to `last`.

    A key whose last change was our own is left out. None when the log has a gap or is damaged.
    """
    final: dict[ChunkKey, tuple[bool, Change]] = {}
    for number in range(after + 1, last + 1):
        if number not in log:
            return None
        try:
            changes = unpack(log[number])
        except ValueError:
            return None
        for change in changes:
            final[change.key] = number in own, change
    return [change for is_own, change in final.values() if not is_own]
