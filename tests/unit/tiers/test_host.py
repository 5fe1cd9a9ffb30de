"""HostTier: slots, victims, and slots that outlive their chunk's stay in the tier."""

from kvtier.policy.slru import Slru
from kvtier.residency import Chain, Resident, State
from kvtier.tiers.host import MAX_CLEAN_SCAN, HostTier
from kvtier.types import ChunkKey


def key(n: int) -> ChunkKey:
    return ChunkKey(b"%d" % n)


def full(n_slots: int) -> HostTier:
    """Chunk 0 is the coldest."""
    host = HostTier(n_slots, 100, Slru(n_slots))
    for n in range(n_slots):
        host.place(key(n), State.READY, 0.0)
    return host


def resident(host: HostTier, n: int) -> Resident:
    found = host.get(key(n))
    assert found is not None
    return found


def numbers(victims: list[Resident]) -> list[int]:
    return [int(victim.key) for victim in victims]


def test_every_slot_is_handed_out_once():
    host = full(5)
    assert sorted(r.slot for r in host.residents()) == [0, 1, 2, 3, 4]
    assert host.n_free == 0
    host.check()


def test_victims_come_coldest_first():
    assert numbers(full(5).choose_victims(2, (), 100)) == [0, 1]


def test_chunks_in_use_and_chunks_to_keep_are_no_victims():
    host = full(8)
    resident(host, 0).holders.add(Chain())
    resident(host, 1).onloads = 1
    resident(host, 2).spilling = True
    resident(host, 3).state = State.WRITING
    resident(host, 4).state = State.PROMOTING
    assert numbers(host.choose_victims(8, {key(5)}, 100)) == [6, 7]


def test_clean_victims_are_preferred_only_if_they_are_close_by():
    host = full(100)
    for n in range(MAX_CLEAN_SCAN + 1):
        resident(host, n).dirty = True
    assert numbers(host.choose_victims(1, (), 100)) == [0]
    resident(host, MAX_CLEAN_SCAN).dirty = False
    assert numbers(host.choose_victims(1, (), 100)) == [MAX_CLEAN_SCAN]


def test_as_many_victims_as_there_are_when_there_are_too_few():
    host = full(3)
    resident(host, 1).onloads = 1
    assert numbers(host.choose_victims(3, (), 100)) == [0, 2]


def test_no_more_chunks_are_looked_at_than_asked_for():
    host = full(10)
    for n in range(5):
        resident(host, n).onloads = 1
    assert host.choose_victims(1, (), 4) == []
    assert numbers(host.choose_victims(1, (), 5)) == [5]


def test_no_victims_are_chosen_when_none_are_wanted():
    assert full(3).choose_victims(0, (), 100) == []
    assert full(3).choose_victims(-2, (), 100) == []


def test_the_slot_of_a_dropped_chunk_in_use_comes_free_with_its_last_use():
    host = full(2)
    busy = resident(host, 0)
    busy.onloads, busy.spilling = 1, True
    host.drop(key(0))
    assert key(0) not in host
    assert host.n_free == 0
    busy.onloads = 0
    host.release(busy)
    assert host.n_free == 0
    busy.spilling = False
    host.release(busy)
    host.release(busy)
    assert host.n_free == 1
    host.check()


def test_releasing_a_chunk_that_is_still_in_the_tier_keeps_its_slot():
    host = full(1)
    host.release(resident(host, 0))
    assert host.n_free == 0


def test_a_pool_that_grows_hands_out_its_new_slots_last():
    host = full(3)
    host.evict(resident(host, 0))
    host.grow(5)
    assert [host.place(key(n), State.READY, 0.0).slot for n in range(10, 13)] == [0, 3, 4]
    assert host.n_free == 0
    assert host.capacity_bytes == 500
    host.check()


def test_a_pool_never_shrinks():
    host = full(3)
    host.grow(2)
    assert host.n_slots == 3
    host.check()
