"""DiskTier.place_head: frames of a batch go to one shard together, and nearly the coldest make room for them."""

import random

import pytest

from kvtier.policy.linked import LinkedSlru
from kvtier.residency import Placement
from kvtier.tiers.disk import GROUP_SCAN, GROUP_SHARE, TOGETHER, DiskTier
from kvtier.types import ChunkKey


def key(n: int) -> ChunkKey:
    return ChunkKey(b"family-1" + bytes(16) + b"%d" % n)


def batch(first: int, n: int = TOGETHER, n_bytes: int = 10) -> list[tuple[ChunkKey, int]]:
    return [(key(first + i), n_bytes) for i in range(n)]


def tier(n_shards: int, shard_bytes: int = 100) -> DiskTier:
    disk = DiskTier(n_shards, shard_bytes, lambda n_bytes: n_bytes, LinkedSlru(1))
    disk.set_family(b"family-1")
    return disk


def write(disk: DiskTier, frames: list[tuple[ChunkKey, int]]) -> list[Placement | None]:
    placements = disk.place_all(frames)
    for placement in placements:
        if placement is not None:
            disk.committed(placement.frame)
    return placements


def full(n_shards: int, n_frames: int) -> DiskTier:
    """Every other frame in another shard, oldest coldest."""
    disk = tier(n_shards, n_frames // n_shards * 10)
    for n in range(n_frames):
        write(disk, batch(n, 1))
    return disk


def shards(placements: list[Placement | None]) -> list[int]:
    return [placement.frame.shard for placement in placements if placement is not None]


def left(placements: list[Placement | None]) -> list[ChunkKey]:
    return [victim for placement in placements if placement is not None for _, victim in placement.evicted]


def test_frames_of_a_batch_go_to_one_shard_and_the_next_batch_to_another() -> None:
    disk = tier(2)
    first, second = write(disk, batch(0)), write(disk, batch(TOGETHER))
    assert [len(set(shards(first))), len(set(shards(second)))] == [1, 1]
    assert shards(first)[0] != shards(second)[0]


def test_no_more_than_a_write_should_take_are_placed_at_once() -> None:
    assert len(tier(2, 1000).place_head(batch(0, TOGETHER + 1))) == TOGETHER


def test_in_a_full_tier_one_shard_gives_up_as_many_frames_as_come_to_it() -> None:
    disk = full(2, 1000)
    placements = disk.place_head(batch(1000))
    assert len(set(shards(placements))) == 1
    assert left(placements) == [key(2 * n) for n in range(TOGETHER)]
    disk.check()


def test_what_leaves_for_a_batch_was_among_the_coldest_of_the_tier() -> None:
    rng = random.Random(0)
    disk = full(8, 4000)
    for n in range(400):
        for _ in range(8):
            disk.touch(rng.choice(list(disk.policy.rows)))
        coldest = list(disk.policy.victims())[: min(GROUP_SCAN, int(len(disk) * GROUP_SHARE))]
        placements = disk.place_head(batch(4000 + TOGETHER * n))
        assert set(left(placements)) <= set(coldest)
        assert len(placements) > 1
        for placement in placements:
            assert placement is not None
            disk.committed(placement.frame)
    disk.check()


def test_in_a_small_tier_exactly_the_coldest_leave_however_the_shards_lie() -> None:
    disk, one_by_one = full(2, 40), full(2, 40)
    for n in range(40, 400, TOGETHER):
        together = left(write(disk, batch(n)))
        assert together == [victim for frame in batch(n) for victim in left(write(one_by_one, [frame]))]


def test_a_batch_that_no_shard_takes_whole_is_divided() -> None:
    disk = tier(2, 25)
    assert len(disk.place_head(batch(0))) == 2
    assert sorted(shards(disk.place_all(batch(2, 2)))) == [1, 1]


def test_a_frame_larger_than_a_shard_is_refused_alone() -> None:
    disk = tier(2, 100)
    placements = disk.place_all([(key(0), 10), (key(1), 101), (key(2), 10)])
    assert [placement is None for placement in placements] == [False, True, False]


def test_what_is_being_read_makes_no_room_for_a_batch() -> None:
    disk = full(1, 1000)
    disk.pin(key(1))
    assert left(disk.place_head(batch(1000))) == [key(n) for n in (0, *range(2, TOGETHER + 1))]


def test_a_batch_that_was_placed_and_failed_leaves_its_room_behind() -> None:
    disk = full(2, 1000)
    placements = disk.place_head(batch(1000))
    for placement in placements:
        assert placement is not None
        disk.drop(placement.frame.key)
    disk.shard_full(shards(placements)[0])
    assert disk.used_bytes == 10 * (1000 - len(left(placements)))
    assert not any(victim in disk for victim in left(placements))
    disk.check()


@pytest.mark.parametrize("seed", range(3))
def test_shards_hold_no_more_than_they_may_whatever_comes(seed: int) -> None:
    rng = random.Random(seed)
    disk = tier(5, 4000)
    for n in range(0, 6000, 8):
        write(disk, [(key(n + i), rng.randint(1, 60)) for i in range(rng.randint(1, 8))])
        if rng.random() < 0.3:
            disk.touch(rng.choice(list(disk.policy.rows)))
        if rng.random() < 0.02:
            disk.shard_full(rng.randrange(5))
    disk.check()
    assert max(disk._used) <= 4000
