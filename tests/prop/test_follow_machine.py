"""Three processes' indexes of one store, in any order of decisions, writes, commits and looks at each other's news."""

from collections.abc import Callable, Sequence

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kvtier.errors import StoreFullError
from kvtier.policy.linked import LinkedSlru
from kvtier.residency import Frame
from kvtier.store.base import Change
from kvtier.store.listing import records_of
from kvtier.store.memory import MemoryStore
from kvtier.testing.contracts import read
from kvtier.tiers.disk import DiskTier
from kvtier.tiers.follow import Follower
from kvtier.types import ChunkKey

N_SHARDS = 3
SHARD_BYTES = 100
KEYS = [ChunkKey(b"family-1" + bytes(8) + b"%d" % n) for n in range(12)]


def content(key: ChunkKey, n_bytes: int) -> bytes:
    return (key[16:] * n_bytes)[:n_bytes]


class Process:
    """An index, what it decided and has not written yet, and its view of the store. The machine is its threads."""

    def __init__(self, store: MemoryStore, first_shard: int, given_up: Callable[[ChunkKey], None]) -> None:
        self.store = store
        self.given_up = given_up
        self.disk = DiskTier(N_SHARDS, SHARD_BYTES, store.frame_cost, LinkedSlru(1), first_shard=first_shard)
        self.disk.set_family(b"family-1")
        self.owed = self.disk.load(store.scan(), alone=False)
        for _, key in self.owed:
            given_up(key)
        self.placed: list[Frame] = []
        self.follower = Follower(store, report=pytest.fail)
        self.follower._index = self

    def follow_disk(self, shard: int, changes: Sequence[Change]) -> None:
        self.owed += self.disk.follow(shard, changes)

    def disk_keys(self, shard: int) -> list[ChunkKey]:
        return self.disk.ready_in(shard)

    def place(self, key: ChunkKey, n_bytes: int) -> None:
        placement = self.disk.place(key, n_bytes) if key not in self.disk else None
        if placement is not None:
            self.owed += placement.evicted
            for _, evicted in placement.evicted:
                self.given_up(evicted)
            self.placed.append(placement.frame)

    def write(self, frame: Frame | None, shard: int) -> bool:
        """Put `frame`, or only delete what is owed to `shard`, as the spill thread would."""
        deletes = [key for owed_to, key in self.owed if owed_to == shard]
        self.owed = [(owed_to, key) for owed_to, key in self.owed if owed_to != shard]
        puts = [(frame.key, memoryview(content(frame.key, frame.n_bytes)))] if frame is not None else []
        try:
            self.follower.write(shard, puts, deletes)
        except StoreFullError:
            assert frame is not None
            self.disk.drop(frame.key)
            self.disk.shard_full(shard)
            self.placed.remove(frame)
            return False
        if frame is not None:
            self.owed += self.disk.committed(frame)
            self.placed.remove(frame)
        return True

    def known(self) -> set[tuple[int, ChunkKey]]:
        twins = {(shard, key) for key, twins in self.disk._twins.items() for shard in twins}
        return {(frame.shard, frame.key) for frame in self.disk.frames()} | twins


class Sharing(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        store = MemoryStore(N_SHARDS, int(SHARD_BYTES * 1.2))
        stores = (store, store.peer(), store.peer())
        self.kept: set[ChunkKey] = set()  # written, and nobody has decided since to delete it
        self.n_deaths = 0
        self.processes = [Process(peer, n, self.kept.discard) for n, peer in enumerate(stores)]

    which = st.integers(0, 2)

    @rule(which=which, key=st.sampled_from(KEYS), n_bytes=st.integers(1, 60))
    def decide(self, which: int, key: ChunkKey, n_bytes: int) -> None:
        self.processes[which].place(key, n_bytes)

    @rule(which=which, data=st.data())
    def write(self, which: int, data: st.DataObject) -> None:
        process = self.processes[which]
        if process.placed:
            frame = process.placed[data.draw(st.integers(0, len(process.placed) - 1))]
            self.put(process, frame)
        elif process.owed:
            process.write(None, process.owed[0][0])

    def put(self, process: Process, frame: Frame) -> None:
        """A delete that somebody else decided upon before may hit the new frame: such a chunk is not counted upon."""
        others_delete = any(
            key == frame.key for other in self.processes if other is not process for _, key in other.owed
        )
        if process.write(frame, frame.shard) and not others_delete:
            self.kept.add(frame.key)

    @rule(which=which)
    def look(self, which: int) -> None:
        self.processes[which].follower.catch_up()

    @rule(which=which, key=st.sampled_from(KEYS))
    def find_it_damaged(self, which: int, key: ChunkKey) -> None:
        frame = self.processes[which].disk.get(key)
        if frame is not None and frame.ready:
            self.processes[which].disk.drop(key)
            self.processes[which].owed.append((frame.shard, key))
            self.kept.discard(key)

    @rule(which=which)
    def die_and_start_again(self, which: int) -> None:
        self.n_deaths += 1
        self.processes[which] = Process(self.processes[which].store.peer(), which, self.kept.discard)

    @rule()
    def all_finish(self) -> None:
        """When everybody has written and looked, all know exactly what is there, and no kept chunk is lost."""
        for process in self.processes:
            while process.placed:
                self.put(process, process.placed[0])
        for _ in range(3):
            for process in self.processes:
                process.follower.catch_up()
                while process.owed:
                    process.write(None, process.owed[0][0])
        store = self.processes[0].store
        there = {(record.shard, record.key) for record in records_of(store.scan())}
        assert self.kept <= {key for _, key in there}
        # A second frame whose writer died is deleted by the next process that opens the store alone.
        assert self.n_deaths or len({key for _, key in there}) == len(there)
        for process in self.processes:
            process.follower.catch_up()
            assert process.known() == there
            for frame in process.disk.frames():
                assert read(process.store, frame.shard, frame.key) == content(frame.key, frame.n_bytes)

    def teardown(self) -> None:
        self.all_finish()

    @invariant()
    def accounts_agree(self) -> None:
        for process in self.processes:
            process.disk.check()


TestSharing = Sharing.TestCase
TestSharing.settings = settings(max_examples=150, stateful_step_count=40)
