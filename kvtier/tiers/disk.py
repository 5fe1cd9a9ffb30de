"""DiskTier: which frame lies in which shard of the store, and who leaves when a frame needs room."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections import OrderedDict
from itertools import accumulate, islice
from typing import TYPE_CHECKING

from kvtier.keys import FAMILY_BYTES
from kvtier.policy.linked import FIRST_ROW
from kvtier.residency import Frame, Placement
from kvtier.store.base import Change
from kvtier.store.listing import coldest_first
from kvtier.types import chunk_hash_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

    from kvtier.policy.linked import LinkedSlru
    from kvtier.store.listing import Columns, Listing
    from kvtier.types import ChunkKey

FULL_PENALTY = 0.97
"""A shard that reports full below its budget gets this share of the budget from then on: fragmentation is real."""

FULL_REST = 64
"""A shard that reports full though less than half of it is used gets none of the next so many frames."""

MAX_VICTIM_SCAN = 1024
"""Frames looked at when making room for one."""

TOGETHER = 4
"""Frames that are placed in one shard at a time, for one write: half a round of the spiller, which has two threads that
write. Measured: docs/performance.md, "Churn"."""

GROUP_SHARE = 1 / 64
GROUP_SCAN = 256
"""Of a tier, and frames at most, that are looked at when making room for several: who leaves was among the coldest."""

MAX_OWN = 4096
"""Of so many frames written last it is known that this process wrote them. Others hear of a frame within seconds."""


class DiskTier:
    """Index of the store's frames with per-shard accounting; satisfies `Tier`.

    What it knows of a frame is in columns, at the row that the policy gives its key; see LinkedSlru.
    """

    def __init__(
        self,
        n_shards: int,
        shard_bytes: int,
        cost_of: Callable[[int], int],
        policy: LinkedSlru,
        *,
        first_shard: int = 0,
    ) -> None:
        """Account for `n_shards` of `shard_bytes`; `cost_of` turns a frame's length into bytes taken.

        Of shards with equal room `first_shard`, counted around, is filled first, then the next ones: processes that
        share a store and begin at different shards seldom wait for each other.
        """
        self.policy = policy
        self.frame_bytes = 0  # stored length of all ready frames
        self.cost_of = cost_of
        self._rows = policy.rows
        self._shards, self._sizes = array("H", bytes(2 * FIRST_ROW)), array("Q", bytes(8 * FIRST_ROW))
        self._held: dict[int, Frame] = {}  # by row: those not ready, and those being read
        self._writing: set[ChunkKey] = set()  # those not ready
        self.lay_out(n_shards, shard_bytes)
        self._n_placed = 0
        self._total_used = 0
        self._first_shard = first_shard
        self._twins: dict[ChunkKey, dict[int, int]] = {}  # other frames of keys that are here: shard -> length
        self._own: OrderedDict[ChunkKey, None] = OrderedDict()  # what this process wrote last
        self._surprised: set[int] = set()  # shards where others put frames since they were last found full
        self._foreign: set[bytes] = set()  # chunk hashes that are here under another family
        self.family = b""  # see `set_family`

    def lay_out(self, n_shards: int, shard_bytes: int) -> None:
        """Account for `n_shards` of `shard_bytes` from now on. There are no frames yet."""
        assert not self._rows
        self._shard_bytes = shard_bytes
        self._budget = [shard_bytes] * n_shards
        self._used = [0] * n_shards
        self._rests_until = [0] * n_shards

    @property
    def used_bytes(self) -> int:
        """Bytes of all frames, rounding included."""
        return self._total_used

    @property
    def capacity_bytes(self) -> int:
        """Bytes all shards may hold together."""
        return self._shard_bytes * len(self._budget)

    def __contains__(self, key: ChunkKey) -> bool:
        return key in self._rows

    def __len__(self) -> int:
        return len(self._rows)

    def get(self, key: ChunkKey) -> Frame | None:
        """The chunk's frame, committed or under way. While it is being read or written always the same."""
        row = self._rows.get(key)
        return None if row is None else self._held.get(row) or self._frame(key, row)

    def is_ready(self, key: ChunkKey) -> bool:
        """Whether the chunk's frame is committed."""
        return key in self._rows and key not in self._writing

    def all_ready(self, keys: Collection[ChunkKey]) -> bool:
        """`is_ready` of all `keys`. With nothing in between, the processor waits for several of them at a time."""
        return self._writing.isdisjoint(keys) and all(map(self._rows.__contains__, keys))

    def pin(self, key: ChunkKey) -> Frame:
        """The chunk, present, is going to be read: it does not make room until `unpin`."""
        row = self._rows[key]
        frame = self._held.get(row)
        if frame is None:
            frame = self._held[row] = self._frame(key, row)
        frame.pins += 1
        return frame

    def unpin(self, frame: Frame) -> None:
        """A read of `frame` has ended, whatever became of it meanwhile."""
        frame.pins -= 1
        self._let_go(frame)

    def frames(self) -> Iterator[Frame]:
        """All frames, any order."""
        return (self._held.get(row) or self._frame(key, row) for key, row in self._rows.items())

    def listed(self) -> Iterator[tuple[int, ChunkKey]]:
        """(shard, key) of every committed frame as of the call, which takes some 10 ms per million."""
        shards, unready = self._shards[:], {row for row, frame in self._held.items() if not frame.ready}
        return ((shards[row], key) for key, row in list(self._rows.items()) if row not in unready)

    def sample(self, n: int) -> list[Frame]:
        """`n` of the frames, or all, at equal distances."""
        step = max(1, len(self._rows) // max(1, n))
        chosen = islice(self._rows.items(), 0, step * n, step)
        return [self._held.get(row) or self._frame(key, row) for key, row in chosen]

    def _frame(self, key: ChunkKey, row: int) -> Frame:
        return Frame(key, self._shards[row], self._sizes[row], ready=True)

    def _let_go(self, frame: Frame) -> None:
        row = self._rows.get(frame.key)
        if row is not None and frame.ready and not frame.pins and self._held.get(row) is frame:
            del self._held[row]

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
        self.family = family
        self._foreign = {chunk_hash_of(key) for key in self._rows if key[:FAMILY_BYTES] != family}

    def load(self, listings: Iterable[Listing], *, alone: bool = True) -> list[tuple[int, ChunkKey]]:
        """Take over what a store held when it was opened, oldest coldest and foreign before own.

        Returns `(shard, key)` of what is to be deleted: the coldest of a shard that holds more than it may and, unless
        others have the store open and see to it, of two frames of a key the one in the higher shard.
        """
        stale: list[tuple[int, ChunkKey]] = []
        columns = coldest_first(listings, self.family)
        if not self._take_over(columns):
            for key, shard, n_bytes in zip(*columns, strict=True):
                if key in self._rows:
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
                shard = self._shards[self._rows[key]]
                if self._room(shard) < 0:
                    stale.append((shard, key))
                    self._remove(key, evicted=True)
        return stale

    def _take_over(self, columns: Columns) -> bool:
        """Fill a new tier; False, and nothing done, when it is not new or a key comes twice."""
        if self._rows or len(self._shards) > FIRST_ROW or not self.policy.enter_all(columns.keys):
            return False
        self._rows = self.policy.rows
        self._shards += columns.shards
        self._sizes += columns.n_bytes
        for shard, cost in zip(columns.shards, map(self.cost_of, columns.n_bytes), strict=True):
            self._used[shard] += cost
        self._total_used = sum(self._used)
        self.frame_bytes = sum(columns.n_bytes)
        for key in columns.keys:
            if key[:FAMILY_BYTES] == self.family:
                break  # from here on all are own ones
            self._foreign.add(chunk_hash_of(key))
        return True

    def place(self, key: ChunkKey, n_bytes: int) -> Placement | None:
        """`place_head` of a single frame."""
        return self.place_head([(key, n_bytes)])[0]

    def place_all(self, frames: Sequence[tuple[ChunkKey, int]]) -> list[Placement | None]:
        """`place_head` of all of `frames`."""
        placements: list[Placement | None] = []
        while len(placements) < len(frames):
            placements += self.place_head(frames[len(placements) :])
        return placements

    def place_head(self, frames: Sequence[tuple[ChunkKey, int]]) -> list[Placement | None]:
        """Reserve room for frames of absent chunks, each of so many bytes, evicting the coldest.

        Answers for the first of `frames`: for as many as one shard takes, TOGETHER at most, so that one write does for
        them. Call again for the rest. The evicted have left the index; the caller deletes them from the store before or
        with that write. None, for the first alone, when no room can be made (a frame larger than a shard, or everything
        cold is being read).

        A single frame takes the shard of the coldest. For several, GROUP_SHARE of the tier is looked at, from the
        coldest on, for the shard that first has room when its own among them leave: 0.1 ms, 0.2 ms with 256 shards.
        """
        frames = frames[:TOGETHER]
        needed = list(accumulate(self.cost_of(n_bytes) for _, n_bytes in frames))
        found = None
        if len(needed) > 1:
            found = self._find_room(needed, min(GROUP_SCAN, int(len(self._rows) * GROUP_SHARE)))
        shard, n_frames, victims = found or self._find_room(needed[:1], MAX_VICTIM_SCAN) or (0, 0, [])
        if not n_frames:
            self._n_placed += 1
            return [None]
        for victim in victims:
            self._remove(victim, evicted=True)
        evicted = tuple((shard, victim) for victim in victims)
        return [
            Placement(self._write_to(shard, key, n_bytes), evicted if n == 0 else ())
            for n, (key, n_bytes) in enumerate(frames[:n_frames])
        ]

    def _find_room(self, needed: Sequence[int], n_looked_at: int) -> tuple[int, int, list[ChunkKey]] | None:
        """The shard to have room for all of `needed`, given as running sums, when the fewest of the coldest leave.

        If there is none, the one that takes most of them. With it, how many it takes, and who leaves it for them.
        """
        shard = self._roomiest()
        room = self._room(shard)
        victims: list[tuple[int, ChunkKey, int]] = []
        if room < needed[-1]:
            rooms = [self._room(i) for i in range(len(self._budget))]
            for candidate in islice(self.policy.victims(), n_looked_at):
                row = self._rows[candidate]
                if row in self._held:
                    continue
                place, cost = self._shards[row], self.cost_of(self._sizes[row])
                victims.append((place, candidate, cost))
                rooms[place] += cost
                if rooms[place] >= needed[-1]:
                    break
            shard = max(range(len(rooms)), key=rooms.__getitem__)
            room = self._room(shard)
            n_frames = bisect_right(needed, rooms[shard])
        else:
            n_frames = len(needed)
        if not n_frames:
            return None
        # Victims elsewhere would be lost for nothing: only the chosen shard gives up frames, and only what it must.
        leaving = []
        for place, victim, cost in victims:
            if room >= needed[n_frames - 1]:
                break
            if place == shard:
                leaving.append(victim)
                room += cost
        return shard, n_frames, leaving

    def _write_to(self, shard: int, key: ChunkKey, n_bytes: int) -> Frame:
        assert key not in self._rows, f"{key.hex()} is on disk already"
        self._n_placed += 1
        frame = Frame(key, shard, n_bytes, ready=False)
        self._held[self._add(key, shard, n_bytes)] = frame
        self._writing.add(key)
        return frame

    def committed(self, frame: Frame) -> list[tuple[int, ChunkKey]]:
        """The write of a placed frame succeeded: it is readable. Returns `(shard, key)` to be deleted, as `follow`."""
        assert self.get(frame.key) is frame
        frame.ready = True
        self._writing.discard(frame.key)
        self._let_go(frame)
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
            frame = self.get(key)
            here = frame is not None and frame.ready and frame.shard == shard
            if frame is not None and here and n_bytes != frame.n_bytes:
                self._remove(key, evicted=n_bytes is None)
                here, frame = False, self.get(key)
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
        self._remove(frame.key, evicted=False)
        if own:
            return [(frame.shard, frame.key)]
        self._twins.setdefault(frame.key, {})[frame.shard] = frame.n_bytes
        return []

    def _arrive(self, key: ChunkKey, shard: int, n_bytes: int) -> None:
        self._add(key, shard, n_bytes)
        self.frame_bytes += n_bytes
        self._surprised.add(shard)

    def ready_in(self, shard: int) -> list[ChunkKey]:
        """The committed frames of a shard. Looks at all frames."""
        shards = self._shards
        return [key for key, row in self._rows.items() if shards[row] == shard and self.is_ready(key)]

    def shard_full(self, shard: int) -> None:
        """The store had no room where the accounting saw some: expect less of that shard, if it was not others'."""
        if shard in self._surprised:
            self._surprised.discard(shard)
            return
        used, half = self._used[shard], self._shard_bytes // 2
        self._budget[shard] = max(half, min(int(self._budget[shard] * FULL_PENALTY), used))
        if used < half:
            # Not fragmentation, but perhaps somebody's long read. As the roomiest it would attract every frame to come.
            self._rests_until[shard] = self._n_placed + FULL_REST
            if min(self._rests_until) > self._n_placed:
                self._rests_until = [0] * len(self._budget)  # they cannot all rest

    def drop(self, key: ChunkKey) -> None:
        """Forget the chunk's frame for good. Another process's frame of the chunk, if there is one, takes its place."""
        if key in self._rows:
            self._remove(key, evicted=False)

    def check(self) -> None:
        """Raise AssertionError if an invariant is broken."""
        self.policy.check()
        used = [0] * len(self._used)
        for frame in self.frames():
            used[frame.shard] += self.cost_of(frame.n_bytes)
        assert used == self._used
        assert sum(used) == self._total_used
        assert self._rows is self.policy.rows
        assert len(self._shards) == len(self._sizes) == self.policy.n_rows
        assert self._writing == {frame.key for frame in self._held.values() if not frame.ready}
        for row, frame in self._held.items():
            assert self._rows[frame.key] == row
            assert frame.pins or not frame.ready
            assert (frame.shard, frame.n_bytes) == (self._shards[row], self._sizes[row])
        for key, twins in self._twins.items():
            first = self.get(key)
            assert first is not None
            assert not first.ready or not twins or first.shard < min(twins)
        assert all(key in self._rows for key in self._own)
        assert self.frame_bytes == sum(frame.n_bytes for frame in self.frames() if frame.ready)

    def _room(self, shard: int) -> int:
        resting = self._n_placed < self._rests_until[shard]
        return -self._shard_bytes if resting else self._budget[shard] - self._used[shard]

    def _roomiest(self) -> int:
        n_shards = len(self._budget)
        return max(((self._first_shard + n) % n_shards for n in range(n_shards)), key=self._room)

    def _add(self, key: ChunkKey, shard: int, n_bytes: int) -> int:
        cost = self.cost_of(n_bytes)
        self._used[shard] += cost
        self._total_used += cost
        row = self.policy.enter(key)
        if row == len(self._shards):
            self._shards.append(shard)
            self._sizes.append(n_bytes)
        else:
            self._shards[row], self._sizes[row] = shard, n_bytes
        if key[:FAMILY_BYTES] != self.family:
            self._foreign.add(chunk_hash_of(key))
        return row

    def _remove(self, key: ChunkKey, *, evicted: bool) -> None:
        row = self._rows[key]
        frame = self._held.pop(row, None)
        self._writing.discard(key)
        n_bytes = self._sizes[row]
        cost = self.cost_of(n_bytes)
        self._used[self._shards[row]] -= cost
        self._total_used -= cost
        if frame is None or frame.ready:
            self.frame_bytes -= n_bytes
        self.policy.remove(key, evicted=evicted)
        if key[:FAMILY_BYTES] != self.family:
            self._foreign.discard(chunk_hash_of(key))
        self._own.pop(key, None)
        twins = self._twins.pop(key, None)
        if twins:
            shard = min(twins)
            self._arrive(key, shard, twins.pop(shard))
            if twins:
                self._twins[key] = twins

    def _follow_frame_size(self) -> None:
        """Tell the policy how many frames of the present mean size the tier holds."""
        if self._rows:
            self.policy.resize(max(1, self.capacity_bytes * len(self._rows) // max(1, self._total_used)))
