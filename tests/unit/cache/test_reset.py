"""A reset: nothing stored before is found, nothing in flight is overwritten."""

from kvtier.cache import QUARANTINE_STEPS
from kvtier.types import Miss
from tests.rigs.cache import FRAME_BYTES, MISS, Rig, evicted_to_disk, key, keys


def test_after_a_reset_nothing_stored_before_is_found():
    rig = Rig(8, n_frames=20)
    rig.request("abcd")
    rig.spill()
    rig.request("ef")
    rig.cache.reset(b"family-2")
    assert len(rig.host) == 0
    assert rig.host.n_free == 8
    assert rig.cache.n_dirty() == 0
    chain = rig.cache.open_chain()
    assert rig.cache.lookup(chain, key("a", b"family-2")) is MISS
    assert chain.miss is Miss.FOREIGN
    rig.cache.check()


def test_slots_of_copies_in_flight_are_quarantined_over_a_reset():
    rig = Rig(4)
    rig.request("a")
    chain = rig.cache.open_chain()
    rig.walk(chain, "a")
    rig.cache.begin_onload(chain, keys("a"))
    rig.cache.begin_offload(chain, keys("bc"))
    rig.cache.reset(b"family-2")
    assert rig.host.n_free == 1
    for _ in range(QUARANTINE_STEPS - 1):
        rig.cache.step_ended()
    assert rig.host.n_free == 1
    rig.cache.step_ended()
    assert rig.host.n_free == 4
    rig.cache.check()


def test_completions_that_come_after_a_reset_change_nothing():
    rig = Rig(4)
    rig.request("a")
    chain = rig.cache.open_chain()
    rig.walk(chain, "a")
    rig.cache.begin_onload(chain, keys("a"))
    rig.cache.begin_offload(chain, keys("b"))
    rig.cache.reset(b"family-2")
    rig.cache.end_onload(keys("a"), failed=True)
    rig.cache.end_offload(keys("b"))
    assert len(rig.host) == 0
    assert rig.host.n_free == 2
    rig.cache.check()


def test_promotions_under_way_over_a_reset_free_their_slots_and_nobody_waits():
    rig = evicted_to_disk("ab", n_slots=4)
    chain = rig.cache.open_chain()
    rig.walk(chain, "ab")
    rig.cache.reset(b"family-2")
    assert chain.pending == 0
    assert rig.host.n_free == 2
    good, bad = rig.jobs
    rig.cache.promoted(good, None)
    rig.cache.promoted(bad, Miss.CORRUPT)
    assert rig.host.n_free == 4
    assert chain.pending == 0
    assert not rig.cache.begin_walk(chain) or rig.cache.lookup(chain, key("a", b"family-2")) is MISS
    rig.cache.check()


def test_a_spill_under_way_over_a_reset_frees_its_slot_and_leaves_no_frame():
    rig = Rig(2, n_frames=10)
    rig.request("a")
    (resident,) = rig.cache.next_spills(1, idle=True)
    placement = rig.cache.place(resident.key, FRAME_BYTES)
    rig.cache.reset(b"family-2")
    assert rig.host.n_free == 1
    rig.cache.spilled(resident, placement, ok=True)
    assert rig.host.n_free == 2
    assert rig.on_disk() == ""
    assert rig.deleted == [(0, key("a"))]


def test_a_chunk_spilling_and_loading_over_a_reset_keeps_its_slot_until_both_have_ended():
    rig = Rig(1, n_frames=10)
    rig.request("a")
    (resident,) = rig.cache.next_spills(1, idle=True)
    chain = rig.cache.open_chain()
    rig.walk(chain, "a")
    rig.cache.begin_onload(chain, keys("a"))
    rig.cache.reset(b"family-2")
    for _ in range(QUARANTINE_STEPS):
        rig.cache.step_ended()
    assert rig.host.n_free == 0
    rig.cache.spilled(resident, None, ok=False)
    assert rig.host.n_free == 1
