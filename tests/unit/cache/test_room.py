"""Who leaves when room is needed, and who never does."""

import pytest

from kvtier.types import Miss
from tests.rigs.cache import (
    FRAME_BYTES,
    Rig,
    evicted_to_disk,
    key,
    keys,
    names,
)


def test_a_prefix_longer_than_the_pool_promotes_its_longest_head():
    rig = evicted_to_disk("abcdefghijklmnop", n_slots=8, n_frames=30)
    chain = rig.cache.open_chain()
    assert rig.walk(chain, "abcdefghijklmnop") == "PPPPPPPM"
    assert chain.miss is Miss.GATE
    rig.promote()
    assert rig.walk(chain, "abcdefghijklmnop") == "HHHHHHHM"
    assert len(rig.onload(chain, "abcdefg") or ()) == 7


def test_promotions_leave_an_eighth_of_the_pool_to_stores():
    rig = evicted_to_disk("abcdefghijklmnop", n_slots=8, n_frames=30)
    rig.walk(rig.cache.open_chain(), "abcdefghijklmnop")
    assert rig.offload(rig.cache.open_chain(), "x") == "x"
    assert rig.why("ijk") is Miss.GATE


def test_a_chain_never_loses_its_own_chunks_to_its_own_tail():
    rig = Rig(4)
    chain = rig.cache.open_chain()
    assert rig.offload(chain, "abcdef") == "abcd"
    assert rig.offload(chain, "ghi") == ""
    assert set(rig.on_host()) == set("abcd")
    assert rig.stats.store_refused_chunks == 5


def test_a_chain_that_grows_in_steps_keeps_its_head():
    rig = Rig(4)
    chain = rig.cache.open_chain()
    for name in "abcdef":
        rig.offload(chain, name)
    assert set(rig.on_host()) == set("abcd")


def test_refused_chunks_are_the_tail_and_may_be_evicted_by_the_next_request():
    rig = Rig(4)
    rig.request("abcdef")
    assert rig.request("vwxyz") == "M"
    assert set(rig.on_host()) == set("vwxy")


def test_a_clean_chunk_is_evicted_before_a_dirty_one_that_is_a_little_colder():
    rig = Rig(4, n_frames=10, write_behind_after_s=None)
    for name in "abcd":
        rig.request(name)
    resident = rig.host.get(key("b"))
    assert resident is not None
    resident.spilling = True
    rig.cache.spilled(resident, rig.cache.place(resident.key, FRAME_BYTES), ok=True)
    rig.offload(rig.cache.open_chain(), "x")
    assert set(rig.on_host()) == set("acdx")
    assert rig.stats.host_dropped_chunks == 0


def test_evicting_a_dirty_chunk_is_counted_as_dropped():
    rig = Rig(2, n_frames=10)
    rig.request("ab")
    rig.request("xy")
    assert rig.stats.host_evicted_chunks == 2
    assert rig.stats.host_dropped_chunks == 2
    assert set(rig.spill()) == set("xy")


def test_without_a_disk_tier_nothing_is_dirty_and_nothing_counts_as_dropped():
    rig = Rig(2)
    rig.request("ab")
    rig.request("xy")
    assert rig.stats.host_evicted_chunks == 2
    assert rig.stats.host_dropped_chunks == 0
    assert rig.cache.n_dirty() == 0
    assert rig.cache.next_spills(8, idle=True) == []


@pytest.mark.parametrize("n_slots", [1, 2, 3, 4])
def test_a_pool_of_a_few_slots_serves_what_fits(n_slots: int):
    rig = Rig(n_slots, n_frames=40)
    assert rig.request("abcdef") == "M"
    assert rig.request("abcdef") == "H" * n_slots + "M"
    rig.spill()
    rig.request("uvwxyz")
    rig.spill()
    chain = rig.cache.open_chain()
    n_promoted = int(n_slots * 0.875)
    assert rig.walk(chain, "abcdef") == "P" * n_promoted + "M"
    rig.promote()
    assert rig.walk(chain, "abcdef") == "H" * n_promoted + "M"
    rig.cache.check()


def test_a_chunk_offered_twice_in_one_call_takes_one_slot():
    rig = Rig(4)
    offload = rig.cache.begin_offload(rig.cache.open_chain(), keys("aba"))
    assert names(offload.keys) == "ab"
    assert rig.host.n_free == 2


def test_a_pool_that_grows_takes_what_it_had_no_room_for():
    rig = Rig(2)
    chain = rig.cache.open_chain()
    assert rig.offload(chain, "abcd") == "ab"
    rig.cache.grow_host(4)
    assert rig.offload(chain, "cd") == "cd"
    assert rig.stats.host_evicted_chunks == 0
    rig.cache.check()
