"""DiskTier: shards, room, who leaves, and what an opened store brings along."""

import hashlib
import tracemalloc

import pytest

from kvtier.policy.linked import LinkedSlru
from kvtier.residency import Frame
from kvtier.store.base import Change
from kvtier.store.listing import listings_of
from kvtier.tiers.disk import FULL_REST, DiskTier
from kvtier.types import ChunkKey, Record


def key(n: int, family: bytes = b"family-1") -> ChunkKey:
    return ChunkKey(family + bytes(16) + b"%d" % n)


def number(k: ChunkKey) -> int:
    return int(k[24:])


def tier(n_shards: int, shard_bytes: int = 100) -> DiskTier:
    disk = DiskTier(n_shards, shard_bytes, lambda n_bytes: n_bytes, LinkedSlru(1))
    disk.set_family(b"family-1")
    return disk


def add(disk: DiskTier, n: int, n_bytes: int = 10) -> Frame:
    placement = disk.place(key(n), n_bytes)
    assert placement is not None
    disk.committed(placement.frame)
    return placement.frame


def record(n: int, shard: int = 0, n_bytes: int = 10, written_ns: int = 0, family: bytes = b"family-1") -> Record:
    return Record(key(n, family), shard, n_bytes, written_ns)


def order(disk: DiskTier) -> list[int]:
    return [number(k) for k in disk.policy.victims()]


def test_frames_spread_over_the_shards():
    disk = tier(4)
    assert sorted(add(disk, n).shard for n in range(8)) == [0, 0, 1, 1, 2, 2, 3, 3]


def test_only_the_chosen_shard_gives_up_frames_coldest_first():
    disk = tier(2)
    shards = [add(disk, n, 25).shard for n in range(8)]
    assert shards == [0, 1, 0, 1, 0, 1, 0, 1]
    disk.policy.touch(key(0))
    placement = disk.place(key(8), 50)
    assert placement is not None
    assert placement.frame.shard == 1
    assert placement.evicted == ((1, key(1)), (1, key(3)))
    assert all(key(n) in disk for n in (0, 2, 4, 5, 6, 7))
    assert disk.remembers(key(1))
    disk.check()


def test_no_more_leave_than_the_frame_needs():
    disk = tier(1)
    for n in range(10):
        add(disk, n)
    placement = disk.place(key(10), 15)
    assert placement is not None
    assert [number(k) for _, k in placement.evicted] == [0, 1]


def test_frames_being_read_or_written_do_not_leave():
    disk = tier(1)
    add(disk, 0, 40)
    disk.pin(key(0))
    disk.place(key(1), 40)
    assert disk.place(key(2), 40) is None
    disk.check()


def test_what_is_read_twice_leaves_after_both_reads_have_ended():
    disk = tier(1)
    add(disk, 0, 40)
    frames = [disk.pin(key(0)), disk.pin(key(0))]
    assert frames[0] is frames[1] is disk.get(key(0))
    for frame in frames:
        assert disk.place(key(1), 70) is None
        disk.unpin(frame)
        disk.check()
    assert disk.place(key(1), 70) is not None


def test_a_read_that_ends_after_its_frame_was_replaced_leaves_the_new_one_alone():
    disk = tier(1)
    add(disk, 0, 40)
    old = disk.pin(key(0))
    disk.drop(key(0))
    add(disk, 0, 30)
    new = disk.pin(key(0))
    assert new is not old
    disk.unpin(old)
    assert disk.place(key(1), 80) is None
    disk.unpin(new)
    disk.check()


def test_a_sample_is_spread_over_all_frames():
    disk = tier(1, 1000)
    assert disk.sample(4) == []
    for n in range(100):
        add(disk, n)
    assert [number(frame.key) for frame in disk.sample(4)] == [0, 25, 50, 75]
    assert len(disk.sample(1000)) == 100


def test_nothing_leaves_for_a_frame_larger_than_a_shard():
    disk = tier(2)
    for n in range(20):
        add(disk, n)
    assert disk.place(key(20), 101) is None
    assert len(disk) == 20
    assert disk.used_bytes == 200


def test_a_present_chunk_is_not_placed_again():
    disk = tier(1)
    add(disk, 0)
    with pytest.raises(AssertionError):
        disk.place(key(0), 10)
    disk.check()


def test_stored_bytes_count_committed_frames_only():
    disk = tier(1)
    placement = disk.place(key(0), 10)
    assert placement is not None
    assert (disk.used_bytes, disk.frame_bytes) == (10, 0)
    disk.committed(placement.frame)
    assert disk.frame_bytes == 10
    disk.drop(key(0))
    assert (disk.used_bytes, disk.frame_bytes) == (0, 0)
    disk.check()


def test_the_policy_is_as_large_as_the_tier_holds_frames_of_the_mean_size():
    disk = tier(10)
    for n in range(40):
        add(disk, n, 10)
    assert disk.policy._max_ghosts == 100
    for n in range(40, 50):
        add(disk, n, 50)
    assert disk.policy._max_ghosts == 1000 // 18  # 900 bytes in 50 frames
    disk.policy.check()


def test_the_policy_follows_from_the_first_frame():
    disk = tier(1)
    add(disk, 0)
    assert disk.policy._max_ghosts == 10


def test_a_shard_that_is_full_below_its_budget_is_expected_to_hold_less():
    disk = tier(1, 1000)
    for n in range(9):
        add(disk, n, 100)
    disk.shard_full(0)
    assert disk.place(key(9), 101) is not None
    assert disk.used_bytes <= 900


def test_a_shard_keeps_half_of_its_budget_however_often_it_is_full():
    disk = tier(1, 1000)
    for n in range(9):
        add(disk, n, 100)
    for _ in range(100):
        disk.shard_full(0)
    assert disk.place(key(9), 100) is not None
    assert disk.used_bytes == 500


def test_a_shard_that_is_full_while_it_is_nearly_empty_gets_no_frames_for_a_while():
    disk = tier(2, 1000)
    disk.shard_full(0)
    assert {add(disk, n, 10).shard for n in range(FULL_REST)} == {1}
    assert add(disk, FULL_REST, 10).shard == 0


def test_frames_in_a_resting_shard_are_not_evicted_for_room_that_is_not_there():
    disk = tier(1)
    add(disk, 0, 40)
    disk.shard_full(0)
    assert disk.place(key(1), 100) is None
    assert key(0) in disk


def test_the_capacity_is_what_the_shards_may_hold_together():
    disk = tier(4, 1000)
    disk.shard_full(2)
    assert disk.capacity_bytes == 4000


def test_an_opened_store_is_taken_over_oldest_coldest():
    disk = tier(2)
    records = [record(1, 0, written_ns=30), record(2, 1, written_ns=10), record(3, 1, written_ns=20)]
    assert disk.load(listings_of(records)) == []
    assert order(disk) == [2, 3, 1]
    frame = disk.get(key(2))
    assert frame is not None
    assert (frame.shard, frame.ready, frame.n_bytes) == (1, True, 10)
    assert disk.used_bytes == disk.frame_bytes == 30
    disk.check()


def test_frames_of_another_family_are_colder_than_all_own():
    disk = tier(1)
    disk.load(listings_of([record(1, written_ns=1), record(2, written_ns=99, family=b"family-0")]))
    assert order(disk) == [2, 1]


def test_of_a_key_found_twice_the_newer_frame_stays():
    disk = tier(2)
    assert disk.load(listings_of([record(1, 0, written_ns=20), record(1, 1, written_ns=10)])) == [(1, key(1))]
    frame = disk.get(key(1))
    assert frame is not None
    assert frame.shard == 0
    assert disk.used_bytes == 10
    disk.check()


def test_what_a_shard_holds_too_much_leaves_at_open_coldest_first():
    disk = tier(2)
    records = [record(n, 0, written_ns=n) for n in range(13)] + [record(20, 1)]
    assert disk.load(listings_of(records)) == [(0, key(n)) for n in range(3)]
    assert disk.used_bytes <= disk.capacity_bytes
    assert key(20) in disk
    assert disk.remembers(key(2))
    disk.check()


def test_the_policy_knows_the_size_of_the_tier_after_open():
    disk = tier(10)
    disk.load(listings_of([record(n) for n in range(10)]))
    assert disk.policy._max_ghosts == 100


def test_the_same_tokens_under_another_family_are_foreign():
    disk = tier(1)
    disk.load(listings_of([record(1), record(2, family=b"family-0")]))
    assert disk.has_foreign(key(2))
    assert not disk.has_foreign(key(1))
    assert not disk.has_foreign(key(3))


def test_a_new_family_makes_foreign_what_was_own():
    disk = tier(1)
    add(disk, 1)
    disk.set_family(b"family-2")
    assert disk.has_foreign(key(1, b"family-2"))
    disk.drop(key(1))
    assert not disk.has_foreign(key(1, b"family-2"))


def test_wrong_accounting_is_noticed():
    disk = tier(1)
    add(disk, 1)
    disk._used[0] += 1
    with pytest.raises(AssertionError):
        disk.check()


def test_a_chunk_takes_less_than_250_bytes_of_the_index():
    n_chunks = 20_000
    records = (
        Record(ChunkKey(b"family-1" + bytes(16) + hashlib.sha256(b"%d" % n).digest() + bytes(4)), 0, 700_000 + n, n)
        for n in range(n_chunks)
    )
    tracemalloc.start()
    try:
        disk = tier(1, n_chunks << 20)
        disk.load(listings_of(records))
        used_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(disk) == n_chunks
    assert used_bytes < 250 * n_chunks


# Other processes


def test_another_process_s_frame_is_found_like_an_own_one():
    disk = tier(2)
    assert disk.follow(1, [Change(key(0), 10)]) == []
    frame = disk.get(key(0))
    assert frame is not None
    assert (frame.shard, frame.n_bytes, frame.ready) == (1, 10, True)
    assert (disk.used_bytes, disk.frame_bytes) == (10, 10)
    disk.check()


def test_what_another_process_deleted_counts_as_evicted():
    disk = tier(2)
    shard = add(disk, 0).shard
    disk.follow(1 - shard, [Change(key(0), None)])
    assert key(0) in disk
    disk.follow(shard, [Change(key(0), None)])
    assert key(0) not in disk
    assert disk.remembers(key(0))
    disk.check()


def test_a_replaced_frame_counts_with_its_new_length():
    disk = tier(1)
    add(disk, 0, 10)
    disk.follow(0, [Change(key(0), 30)])
    assert (disk.used_bytes, disk.frame_bytes) == (30, 30)
    disk.check()


def test_who_wrote_the_second_frame_of_a_chunk_to_the_higher_shard_deletes_it():
    low, high = tier(2), tier(2)
    high._first_shard = 1
    assert (add(low, 0).shard, add(high, 0).shard) == (0, 1)
    assert low.follow(1, [Change(key(0), 10)]) == []
    assert high.follow(0, [Change(key(0), 10)]) == [(1, key(0))]
    for disk in (low, high):
        disk.follow(1, [Change(key(0), None)])
        frame = disk.get(key(0))
        assert frame is not None
        assert frame.shard == 0
        disk.check()


def test_nobody_deletes_a_frame_because_of_another_one_that_may_be_gone_by_now():
    disk = tier(2)
    disk.follow(0, [Change(key(0), 10)])
    assert disk.follow(1, [Change(key(0), 10)]) == []  # the one in shard 0 may have been evicted a second ago
    disk.follow(0, [Change(key(0), None)])
    frame = disk.get(key(0))
    assert frame is not None
    assert frame.shard == 1
    disk.check()


@pytest.mark.parametrize("written", [True, False])
def test_a_frame_that_another_process_wrote_while_this_one_did_waits_for_the_outcome(written: bool):
    disk = tier(2)
    disk._first_shard = 1
    placement = disk.place(key(0), 10)
    assert placement is not None
    assert disk.follow(0, [Change(key(0), 20)]) == []
    assert not placement.frame.ready
    if written:
        assert disk.committed(placement.frame) == [(1, key(0))]
    else:
        disk.drop(key(0))
    frame = disk.get(key(0))
    assert frame is not None
    assert (frame.shard, frame.n_bytes, frame.ready) == (0, 20, True)
    disk.check()


def test_a_shard_that_others_filled_is_not_expected_to_hold_less():
    disk = tier(1, 1000)
    disk.follow(0, [Change(key(n), 100) for n in range(9)])
    disk.shard_full(0)
    placement = disk.place(key(9), 100)
    assert placement is not None
    assert placement.evicted == ()


def test_a_store_that_is_shared_when_it_is_opened_keeps_second_frames_for_their_writers_to_delete():
    disk = tier(2)
    assert disk.load(listings_of([record(0, shard=1), record(0, shard=0)]), alone=False) == []
    frame = disk.get(key(0))
    assert frame is not None
    assert frame.shard == 0
    disk.drop(key(0))
    assert disk.get(key(0)) is not None
    disk.check()


def test_processes_begin_to_fill_at_different_shards():
    disk = DiskTier(4, 100, lambda n_bytes: n_bytes, LinkedSlru(1), first_shard=2)
    assert [add(disk, n).shard for n in range(5)] == [2, 3, 0, 1, 2]
