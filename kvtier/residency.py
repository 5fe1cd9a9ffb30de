"""Residency: what a tier knows of one chunk, and what the cache knows of one request's chain of chunks."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvtier.types import ChunkKey, Miss, Source


class State(IntEnum):
    """What a host slot holds."""

    WRITING = 0  # the engine is copying device -> slot
    READY = 1  # readable by everyone
    PROMOTING = 2  # a transfer thread is filling it from disk


@dataclass(slots=True, eq=False)
class Resident:
    """A chunk in a host slot. Lives until its slot is free again, which may be after it has left the tier."""

    key: ChunkKey
    slot: int
    state: State
    since_s: float  # when it became READY; write-behind counts from here
    promised: int = 0  # chains that were answered HIT or PENDING and have not loaded it yet
    onloads: int = 0  # host -> device copies in flight
    dirty: bool = False  # READY and not on disk
    spilling: bool = False  # a transfer thread is reading it
    spill_failures: int = 0
    detached: bool = False  # no longer in the tier; its slot is freed when nobody uses it
    waiters: list[Chain] = field(default_factory=list)  # chains to tell when it becomes READY or fails

    @property
    def pinned(self) -> bool:
        """Whether the slot must keep its bytes."""
        return self.promised > 0 or self.onloads > 0 or self.spilling or self.state is not State.READY


@dataclass(slots=True, eq=False)
class Frame:
    """A chunk on disk."""

    key: ChunkKey
    shard: int
    cost_bytes: int  # what it takes of the shard
    n_bytes: int  # its length as stored
    ready: bool  # committed; False while the write is under way
    pins: int = 0  # promotions reading it


@dataclass(slots=True, eq=False)
class Chain:
    """One request's walk along its chain of chunks. Made, read and closed by the engine's scheduler thread."""

    promises: dict[ChunkKey, Resident] = field(default_factory=dict)
    sources: dict[ChunkKey, Source] = field(default_factory=dict)  # first answer for each key that hit
    used: dict[ChunkKey, None] = field(default_factory=dict)  # keys this request used, in the order it used them
    promoted: list[ChunkKey] = field(default_factory=list)  # keys whose promotion this chain started, head first
    failures: dict[ChunkKey, Miss] = field(default_factory=dict)  # promotions that failed while this chain waited
    pending: int = 0  # residents this chain waits for
    miss: Miss | None = None  # why the last walk ended
    seen_step: int = 0  # step of the last lookup; stale promises are taken back


@dataclass(frozen=True, slots=True)
class Promotion:
    """Work for a promote thread: read `frame` into `resident.slot`."""

    resident: Resident
    frame: Frame


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a frame goes, and which frames leave first to make room: `(shard, key)` each."""

    frame: Frame
    evicted: tuple[tuple[int, ChunkKey], ...]
