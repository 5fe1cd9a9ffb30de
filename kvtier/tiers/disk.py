"""DiskTier: which frame lies in which shard of the store, and who leaves when a frame needs room."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from kvtier.keys import FAMILY_BYTES
from kvtier.residency import Frame, Placement
from kvtier.store.base import Change
from kvtier.store.listing import coldest_first
from kvtier.types import chunk_hash_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from kvtier.policy.linked import LinkedSlru
    from kvtier.store.listing import Listing
    from kvtier.types import ChunkKey

FULL_PENALTY = 0.97
"""A shard that reports full below its budget gets this share of the budget from then on: fragmentation is real."""

FULL_REST = 64
"""A shard that reports full though less than half of it is used gets none of the next so many frames."""

MAX_VICTIM_SCAN = 1024
"""Frames looked at when making room for one."""

MAX_OWN = 4096
"""Of so many frames written last it is known that this process wrote them. Others hear of a frame within seconds."""


class DiskTier:
    """Index of the store's frames with per-shard accounting; satisfies `Tier`."""

    def __init__(
        self,
        n_shards: int,
        shard_bytes: int,
        cost_of: Callable[[int], int],
        policy: LinkedSlru[Frame],
        *,
        first_shard: int = 0,
    ) -> None:
        """Account for `n_shards` of `shard_bytes`; `cost_of` turns a frame's length into bytes taken.

        Of shards with equal room `first_shard` is filled first, then the next ones: processes that share a store and
        begin at different shards seldom wait for each other.
        """
        self.policy = policy
        self.frame_bytes = 0  # stored length of all ready frames
        self.cost_of = cost_of
        self._frames = policy.entries
        self._shard_bytes = shard_bytes
        self._budget = [shard_bytes] * n_shards
        self._used = [0] * n_shards
        self._rests_until = [0] * n_shards
        self._n_placed = 0
        self._total_used = 0
        self._first_shard = first_shard
        self._twins: dict[ChunkKey, dict[int, int]] = {}  # other frames of keys that are here: shard -> length
        self._own: OrderedDict[ChunkKey, None] = OrderedDict()  # what this process wrote last
        self._surprised: set[int] = set()  # shards where others put frames since they were last found full
        self._foreign: set[bytes] = set()  # chunk hashes that are here under another family
        self._family = b""

    @property
    def used_bytes(self) -> int:
        """Bytes of all frames, rounding included."""
        return self._total_used

    @property
    def capacity_bytes(self) -> int:
        """Bytes all shards may hold together."""
        return self._shard_bytes * len(self._budget)

    def __contains__(self, key: ChunkKey) -> bool:
        return key in self._frames

    def __len__(self) -> int:
        return len(self._frames)

    def get(self, key: ChunkKey) -> Frame | None:
        """The chunk's frame, committed or under way."""
        return self._frames.get(key)

    def frames(self) -> Iterator[Frame]:
        """All frames, any order."""
        return iter(self._frames.values())

    def touch(self, key: ChunkKey) -> None:
        """The chunk, present, was used again."""
        self.policy.touch(key)

    def remembers(self, key: ChunkKey) -> bool:
        """Whether the chunk was evicted from here not too long ago."""
        return self.policy.remembers(key)

    def has_foreign(self, key: ChunkKey) -> bool:
        """Whether the same tokens are here under a family that may not be reused."""
        return chunk_hash_of(key) in self._foreign

    def set_family(self, family: bytes) -> None:
        """Reuse only keys that begin with `family` from now on; the others stay until room is needed."""
        self._family = family
        self._foreign = {chunk_hash_of(key) for key in self._frames if key[:FAMILY_BYTES] != family}

    def load(self, listings: Iterable[Listing], *, alone: bool = True) -> list[tuple[int, ChunkKey]]:
        """Take over what a store held when it was opened, oldest coldest and foreign before own.

        Returns `(shard, key)` of what is to be deleted: the coldest of a shard that holds more than it may and, unless
        others have the store open and see to it, of two frames of a key the one in the higher shard.
        """
        stale: list[tuple[int, ChunkKey]] = []
        for key, shard, n_bytes in zip(*coldest_first(listings, self._family), strict=True):
            if key in self._frames:
                self.follow(shard, [Change(key, n_bytes)])
            else:
                self._arrive(key, shard, n_bytes)
        self._follow_frame_size()
        self._surprised.clear()
        if alone:
            stale += [(shard, key) for key, twins in self._twins.items() for shard in twins]
            self._twins.clear()
        if any(self._room(shard) < 0 for shard in range(len(self._budget))):
            for key in list(self.policy.victims()):
                frame = self._frames[key]
                if self._room(frame.shard) < 0:
                    stale.append((frame.shard, key))
                    self._remove(frame, evicted=True)
        return stale

    def place(self, key: ChunkKey, n_bytes: int) -> Placement | None:
        """Reserve room for an absent chunk's frame of `n_bytes`, evicting the coldest until one shard has it.

        The evicted have left the index; the caller deletes them from the store before or with the write. None when no
        room can be made (a frame larger than a shard, or everything cold is being read).
        """
        assert key not in self._frames, f"{key.hex()} is on disk already"
        self._n_placed += 1
        cost = self.cost_of(n_bytes)
        shard = self._roomiest()
        evicted: list[tuple[int, ChunkKey]] = []
        if self._room(shard) < cost:
            room = [self._room(i) for i in range(len(self._budget))]
            victims: list[Frame] = []
            for scanned, candidate in enumerate(self.policy.victims()):
                if scanned == MAX_VICTIM_SCAN:
                    break
                frame = self._frames[candidate]
                if frame.pins or not frame.ready:
                    continue
                victims.append(frame)
                room[frame.shard] += self.cost_of(frame.n_bytes)
                if room[frame.shard] >= cost:
                    shard = frame.shard
                    break
            if room[shard] < cost:
                return None
            # Victims elsewhere would be lost for nothing: only the chosen shard gives up frames.
            for frame in victims:
                if frame.shard == shard:
                    evicted.append((shard, frame.key))
                    self._remove(frame, evicted=True)
        placed = Frame(key, shard, n_bytes, ready=False)
        self._add(placed)
        return Placement(placed, tuple(evicted))

    def committed(self, frame: Frame) -> list[tuple[int, ChunkKey]]:
        """The write of a placed frame succeeded: it is readable. Returns `(shard, key)` to be deleted, as `follow`."""
        assert self._frames.get(frame.key) is frame
        frame.ready = True
        self.frame_bytes += frame.n_bytes
        self._own[frame.key] = None
        if len(self._own) > MAX_OWN:
            self._own.popitem(last=False)
        self._twins.get(frame.key, {}).pop(frame.shard, None)  # ours replaced it
        self._follow_frame_size()
        return self._choose(frame)

    def follow(self, shard: int, changes: Iterable[Change]) -> list[tuple[int, ChunkKey]]:
        """Another process changed `shard`: take its frames in as if just used, and forget what it deleted.

        Two processes may have written the same chunk to different shards. The frame in the lower one stays, and who
        wrote the other deletes it: never is a frame deleted because of one that may be gone by now. Returns
        `(shard, key)` of what is to be deleted here.
        """
        stale: list[tuple[int, ChunkKey]] = []
        for key, n_bytes in changes:
            frame = self._frames.get(key)
            here = frame is not None and frame.ready and frame.shard == shard
            if frame is not None and here and n_bytes != frame.n_bytes:
                self._remove(frame, evicted=n_bytes is None)
                here, frame = False, self._frames.get(key)
            if n_bytes is None:
                self._twins.get(key, {}).pop(shard, None)
            elif frame is None:
                self._arrive(key, shard, n_bytes)
            elif not here:
                self._twins.setdefault(key, {})[shard] = n_bytes
                stale += self._choose(frame)
        self._follow_frame_size()
        return stale

    def _choose(self, frame: Frame) -> list[tuple[int, ChunkKey]]:
        """Of several frames of a key count on the one in the lowest shard; which of them is to be deleted here."""
        twins = self._twins.get(frame.key)
        if not frame.ready or not twins or min(twins) > frame.shard:
            return []
        own = frame.key in self._own
        self._remove(frame, evicted=False)
        if own:
            return [(frame.shard, frame.key)]
        self._twins.setdefault(frame.key, {})[frame.shard] = frame.n_bytes
        return []

    def _arrive(self, key: ChunkKey, shard: int, n_bytes: int) -> None:
        self._add(Frame(key, shard, n_bytes, ready=True))
        self.frame_bytes += n_bytes
        self._surprised.add(shard)

    def ready_in(self, shard: int) -> list[ChunkKey]:
        """The committed frames of a shard. Looks at all frames."""
        return [frame.key for frame in self._frames.values() if frame.shard == shard and frame.ready]

    def shard_full(self, shard: int) -> None:
        """The store had no room where the accounting saw some: expect less of that shard, if it was not others'."""
        if shard in self._surprised:
            self._surprised.discard(shard)
            return
        used, half = self._used[shard], self._shard_bytes // 2
        self._budget[shard] = max(half, min(int(self._budget[shard] * FULL_PENALTY), used))
        if used < half:
            # Not fragmentation, but perhaps somebody's long read. As the roomiest it would attract every frame to come.
            self._rests_until[shard] = self._n_placed + FULL_REST + 1
            if min(self._rests_until) > self._n_placed + 1:
                self._rests_until = [0] * len(self._budget)  # they cannot all rest

    def drop(self, key: ChunkKey) -> None:
        """Forget the chunk's frame for good. Another process's frame of the chunk, if there is one, takes its place."""
        frame = self._frames.get(key)
        if frame is not None:
            self._remove(frame, evicted=False)

    def check(self) -> None:
        """Raise AssertionError if an invariant is broken."""
        self.policy.check()
        used = [0] * len(self._used)
        for frame in self._frames.values():
            used[frame.shard] += self.cost_of(frame.n_bytes)
        assert used == self._used
        assert sum(used) == self._total_used
        assert len(self.policy) == len(self._frames)
        for key, twins in self._twins.items():
            frame = self._frames[key]
            assert not frame.ready or not twins or frame.shard < min(twins)
        assert all(key in self._frames for key in self._own)
        assert self.frame_bytes == sum(f.n_bytes for f in self._frames.values() if f.ready)

    def _room(self, shard: int) -> int:
        resting = self._n_placed < self._rests_until[shard]
        return -self._shard_bytes if resting else self._budget[shard] - self._used[shard]

    def _roomiest(self) -> int:
        n_shards = len(self._budget)
        return max(((self._first_shard + n) % n_shards for n in range(n_shards)), key=self._room)

    def _add(self, frame: Frame) -> None:
        cost = self.cost_of(frame.n_bytes)
        self._used[frame.shard] += cost
        self._total_used += cost
        self.policy.enter(frame)
        if frame.key[:FAMILY_BYTES] != self._family:
            self._foreign.add(chunk_hash_of(frame.key))

    def _remove(self, frame: Frame, *, evicted: bool) -> None:
        cost = self.cost_of(frame.n_bytes)
        self._used[frame.shard] -= cost
        self._total_used -= cost
        if frame.ready:
            self.frame_bytes -= frame.n_bytes
        self.policy.remove(frame.key, evicted=evicted)
        if frame.key[:FAMILY_BYTES] != self._family:
            self._foreign.discard(chunk_hash_of(frame.key))
        self._own.pop(frame.key, None)
        twins = self._twins.pop(frame.key, None)
        if twins:
            shard = min(twins)
            self._arrive(frame.key, shard, twins.pop(shard))
            if twins:
                self._twins[frame.key] = twins

    def _follow_frame_size(self) -> None:
        """Tell the policy how many frames of the present mean size the tier holds."""
        if self._frames:
            self.policy.resize(max(1, self.capacity_bytes * len(self._frames) // max(1, self._total_used)))
