"""Follower.catch_up: who waits knows, after the call, what was new before it, whoever was telling it meanwhile."""

import threading
from collections.abc import Sequence

import pytest

from kvtier.errors import StoreError
from kvtier.policy.linked import LinkedSlru
from kvtier.store.base import Change
from kvtier.store.listing import listings_of
from kvtier.store.memory import MemoryStore
from kvtier.testing.contracts import frame_of, key_of, put
from kvtier.tiers.disk import DiskTier
from kvtier.tiers.follow import Follower, SharedIndex
from kvtier.types import ChunkKey, Record


class SlowIndex:
    """Takes news when it is let."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.may_take = threading.Event()
        self.known: list[ChunkKey] = []

    def follow_disk(self, shard: int, changes: Sequence[Change]) -> None:
        del shard
        self.asked.set()
        assert self.may_take.wait(20)
        self.known += [change.key for change in changes]

    def disk_keys(self, shard: int) -> list[ChunkKey]:
        del shard
        return list(self.known)


@pytest.fixture
def index() -> SlowIndex:
    return SlowIndex()


@pytest.fixture
def follower(index: SlowIndex) -> Follower:
    """Of a store to which somebody else has written one frame, while a thread is telling the index of it."""
    mine = MemoryStore(1, 1000)
    follower = Follower(mine, report=print, every_s=1000.0)
    list(follower.scan())
    follower.start(index)
    put(mine.peer(), 0, {key_of(1): frame_of(1, 10)})
    threading.Thread(target=follower.catch_up, daemon=True).start()
    assert index.asked.wait(20)
    return follower


def test_who_waits_knows_what_another_thread_was_telling(follower: Follower, index: SlowIndex) -> None:
    threading.Timer(0.05, index.may_take.set).start()
    follower.catch_up(wait_s=20.0)
    assert index.known == [key_of(1)]
    assert follower.stop()


def test_who_does_not_wait_leaves_it_to_the_other(follower: Follower, index: SlowIndex) -> None:
    follower.catch_up()
    assert index.known == []
    index.may_take.set()
    assert follower.stop()


def test_a_shard_that_is_held_for_too_long_is_an_error(follower: Follower, index: SlowIndex) -> None:
    with pytest.raises(StoreError, match="shard 0 is being written"):
        follower.catch_up(wait_s=0.05)
    index.may_take.set()
    assert follower.stop()


def test_an_index_that_is_to_agree_with_a_store_lists_what_it_holds_and_no_more_oldest_coldest() -> None:
    disk = DiskTier(1, 1, lambda n_bytes: n_bytes, LinkedSlru(1))
    disk.lay_out(2, 1000)
    index = SharedIndex(disk, threading.Lock(), lambda shard, key: pytest.fail(f"{key!r} in {shard} is to be deleted"))
    index.follow_disk(1, [Change(key_of(n), 10) for n in range(4)])
    written = [(5, 0, 300), (1, 1, 400), (6, 0, 100), (3, 1, 200)]
    listings = listings_of(Record(key_of(n), shard, 10 + n, written_ns) for n, shard, written_ns in written)
    index.agree_with(listings)
    disk.check()
    assert {(frame.key, frame.shard, frame.n_bytes) for frame in disk.frames()} == {
        (key_of(n), shard, 10 + n) for n, shard, _ in written
    }
    assert [key for key in disk.policy.victims() if disk.pin(key).shard == 0] == [key_of(6), key_of(5)]
