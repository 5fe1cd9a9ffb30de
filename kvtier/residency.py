"""Residency: what a tier knows of one chunk, and what the cache knows of one request's chain of chunks."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from kvtier.types import ChunkKey, Miss, Source


class State(IntEnum):
    """What a host slot holds."""

    WRITING = 0  # the engine is copying device -> slot
    READY = 1  # readable by everyone
    PROMOTING = 2  # a transfer thread is filling it from disk


READY, PROMOTING = State.READY, State.PROMOTING
"""For what runs once a chunk: see types.LOOKUP_HIT."""


@dataclass(slots=True, eq=False)
class Resident:
    """A chunk in a host slot. Lives until its slot is free again, which may be after it has left the tier."""

    key: ChunkKey
    slot: int
    state: State
    since_s: float  # when it became READY; write-behind counts from here
    holders: set[Chain] = field(default_factory=set)  # chains that were answered HIT or PENDING and did not load it yet
    onloads: int = 0  # host -> device copies in flight
    spoilt: bool = False  # a copy to the device failed: not to be read again, forgotten when no copy is in flight
    dirty: bool = False  # READY and not on disk
    held_back: bool = False  # not to be written unless it is used again: not admitted, or the budget was spent
    spilling: bool = False  # a transfer thread is reading it
    spill_failures: int = 0
    detached: bool = False  # no longer in the tier; its slot is freed when nobody uses it

    @property
    def pinned(self) -> bool:
        """Whether the slot must keep its bytes."""
        return bool(self.holders) or self.onloads > 0 or self.spilling or self.state is not READY


@dataclass(slots=True, eq=False)
class Frame:
    """A chunk on disk. While it is read or written there is one object, else one for each who asks the tier."""

    key: ChunkKey
    shard: int
    n_bytes: int  # its length as stored
    ready: bool  # committed; False while the write is under way
    pins: int = 0  # promotions reading it


@dataclass(slots=True, eq=False)
class Chain:
    """One request's walk along its chain of chunks. Made, read and closed by the engine's scheduler thread."""

    promises: dict[ChunkKey, Resident] = field(default_factory=dict)
    sources: dict[ChunkKey, Source] = field(default_factory=dict)  # first answer for each key that hit, head first
    used: dict[ChunkKey, None] = field(default_factory=dict)  # keys this request used
    picked: bool | None = None  # whether its new chunks are written on first use, once that has been decided
    held_back: bool = False  # a chunk of it may not go to disk: nothing behind that may
    failures: dict[ChunkKey, Miss] = field(default_factory=dict)  # promotions that failed while this chain waited
    waiting: dict[ChunkKey, None] = field(default_factory=dict)  # answered PENDING, and their promotions not begun yet
    pending: int = 0  # promised residents that are not READY yet, and what is waiting
    miss: Miss | None = None  # why the last walk ended
    seen_step: int = 0  # step of the last lookup; stale promises are taken back
    n_before: int = 0  # tokens of the request that the device has
    n_chunks: int = 1  # how many chunks the request could find at most, beyond those
    waits_since_s: float | None = None  # when the engine first found its promotions under way
    n_awaited: int = 0  # how many of its own they were then,
    n_queued: int = 0  # of anybody, and how many had ever landed
    n_landed_before: int = 0
    recompute_s: float = 0.0  # how long computing them instead would take; 0 until known
    may_promote: int | None = None  # chunks it may still bring up from disk, once that has been decided
    joins: bool | None = None  # whether it waits for what others bring up, once that has been decided


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


class Offload(NamedTuple):
    """What the engine is to copy down: `keys[i]` into `slots[i]`."""

    keys: list[ChunkKey]
    slots: list[int]


class Promises:
    """Which chains count on which residents. A holder of a resident that is not READY waits for it.

    Called under the cache's lock; each call is O(1) per promise it gives or takes back.
    """

    def __init__(self, release: Callable[[Resident], None]) -> None:
        """`release` is called with every resident from which a promise was taken back."""
        self.n_residents = 0  # with at least one holder
        self.n_waiting = 0  # of all chains
        self._release = release
        self._chains: set[Chain] = set()
        self._line: deque[Chain] = deque()  # who waits, and some who no longer do

    def open(self) -> Chain:
        """A new chain."""
        chain = Chain()
        self._chains.add(chain)
        return chain

    def close(self, chain: Chain) -> None:
        """Forget a chain and take back what it was promised."""
        self.take_back(chain)
        self._chains.discard(chain)

    def give(self, chain: Chain, resident: Resident) -> None:
        """Promise `resident`, which `chain` does not hold yet."""
        self.n_residents += not resident.holders
        resident.holders.add(chain)
        chain.promises[resident.key] = resident
        chain.pending += resident.state is not READY

    def wait(self, chain: Chain, keys: Sequence[ChunkKey]) -> None:
        """Promise that promotions of `keys`, for which `chain` does not wait yet, begin after all that wait now."""
        if not chain.waiting:
            self._line.append(chain)
        chain.waiting.update(dict.fromkeys(keys))
        chain.pending += len(keys)
        self.n_waiting += len(keys)

    def next_waiting(self) -> tuple[Chain, ChunkKey]:
        """Who has waited longest, and for what; that it does not any more. There must be one."""
        while not self._line[0].waiting:
            self._line.popleft()
        chain = self._line[0]
        key = next(iter(chain.waiting))
        del chain.waiting[key]
        chain.pending -= 1
        self.n_waiting -= 1
        return chain, key

    def leave(self, chain: Chain) -> None:
        """`chain` waits for nothing any more that has not begun."""
        self.n_waiting -= len(chain.waiting)
        chain.pending -= len(chain.waiting)
        chain.waiting.clear()
        if not self.n_waiting:
            self._line.clear()

    def take_back(self, chain: Chain) -> None:
        """Take back all promises to `chain`."""
        if chain.waiting:
            self.leave(chain)
        for resident in chain.promises.values():
            resident.holders.discard(chain)
            self.n_residents -= not resident.holders
            chain.pending -= resident.state is not READY
            self._release(resident)
        chain.promises.clear()

    def take_back_unseen(self, since_step: int) -> None:
        """Take back the promises to chains that were not looked up since `since_step`."""
        for chain in self._chains:
            if (chain.promises or chain.waiting) and chain.seen_step < since_step:
                self.take_back(chain)

    def take_back_all(self) -> None:
        """Take back every promise."""
        for chain in self._chains:
            self.take_back(chain)

    @staticmethod
    def ready(resident: Resident) -> None:
        """`resident` becomes READY: nobody waits for it any more."""
        resident.state = READY
        for chain in resident.holders:
            chain.pending -= 1

    def break_off(self, resident: Resident, failure: Miss | None = None) -> None:
        """`resident`, READY, is not to be read: take it back from all its holders, and tell them why."""
        self.n_residents -= bool(resident.holders)
        for chain in resident.holders:
            del chain.promises[resident.key]
            if failure is not None:
                chain.failures[resident.key] = failure
        resident.holders.clear()
        self._release(resident)

    def blame(self, key: ChunkKey, failure: Miss) -> None:
        """Tell the chains that used `key` why they will not find it again."""
        for chain in self._chains:
            if key in chain.used:
                chain.failures[key] = failure

    def check(self, residents: Iterable[Resident]) -> None:
        """Raise AssertionError if an invariant is broken; `residents` are those of the tier."""
        held = {id(r): r for chain in self._chains for r in chain.promises.values()}
        assert self.n_residents == len(held)
        assert not any(r.detached for r in held.values())
        for resident in residents:
            assert resident.holders == {c for c in self._chains if c.promises.get(resident.key) is resident}
        for chain in self._chains:
            n_pending = sum(r.state is not READY for r in chain.promises.values())
            assert chain.pending == n_pending + len(chain.waiting)
        assert self.n_waiting == sum(len(chain.waiting) for chain in self._chains)
        assert all(chain in self._line for chain in self._chains if chain.waiting)
