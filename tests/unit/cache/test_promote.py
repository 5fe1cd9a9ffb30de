"""Up: promotions, shared and failed, and loads to the device that fail."""

import pytest

from kvtier.types import Miss, Source
from tests.rigs.cache import (
    FRAME_BYTES,
    Rig,
    evicted_to_disk,
    key,
    keys,
)


def test_a_chunk_on_disk_is_promoted_and_its_frame_kept():
    rig = evicted_to_disk("ab")
    chain = rig.cache.open_chain()
    assert rig.walk(chain, "ab") == "PP"
    rig.promote()
    assert rig.walk(chain, "ab") == "HH"
    assert chain.sources == {key("a"): Source.DISK, key("b"): Source.DISK}
    assert set("ab") <= set(rig.on_disk())
    assert rig.stats.promoted_chunks == 2
    assert rig.stats.promote_stored_bytes == 2 * FRAME_BYTES


def test_a_promoted_chunk_is_clean_and_not_written_again():
    rig = evicted_to_disk("ab")
    assert rig.request("ab") == "HH"
    assert rig.cache.n_dirty() == 0
    written = rig.stats.spilled_chunks
    rig.request("qrstuvwx")
    assert rig.stats.host_dropped_chunks == 0
    assert rig.spill()
    assert rig.stats.spilled_chunks == written + 8
    assert rig.request("ab") == "HH"


def test_two_requests_share_one_promotion():
    rig = evicted_to_disk("ab")
    one, other = rig.cache.open_chain(), rig.cache.open_chain()
    assert rig.walk(one, "ab") == "PP"
    assert rig.walk(other, "ab") == "PP"
    assert len(rig.jobs) == 2
    rig.promote()
    assert rig.walk(one, "ab") == rig.walk(other, "ab") == "HH"
    assert other.sources[key("a")] is Source.HOST


def test_a_promotion_goes_on_when_its_request_is_gone():
    rig = evicted_to_disk("ab")
    chain = rig.cache.open_chain()
    rig.walk(chain, "ab")
    rig.cache.close_chain(chain)
    rig.promote()
    assert rig.walk(rig.cache.open_chain(), "ab") == "HH"
    rig.cache.check()


@pytest.mark.parametrize("failure", [Miss.CORRUPT, Miss.FOREIGN, Miss.LOAD_FAILED, Miss.EVICTED])
def test_a_failed_promotion_is_a_miss_with_its_reason_and_the_frame_leaves_the_disk(failure: Miss):
    rig = evicted_to_disk("abc")
    chain = rig.cache.open_chain()
    rig.walk(chain, "abc")
    job_a, job_b, job_c = rig.jobs
    rig.cache.promoted(job_a, None)
    rig.cache.promoted(job_b, failure)
    rig.cache.promoted(job_c, None)
    assert chain.pending == 0
    assert rig.walk(chain, "abc") == "HM"
    assert chain.miss is failure
    gone = failure is Miss.EVICTED  # another process deleted it, and may have written it again by now
    assert rig.deleted == ([] if gone else [(0, key("b"))])
    assert "b" not in rig.on_disk() + rig.on_host()
    rig.cache.check()


def test_failed_promotions_are_counted_by_kind():
    rig = evicted_to_disk("abc")
    rig.walk(rig.cache.open_chain(), "abc")
    for job, failure in zip(rig.jobs, (Miss.CORRUPT, Miss.FOREIGN, Miss.LOAD_FAILED), strict=True):
        rig.cache.promoted(job, failure)
    assert (rig.stats.corrupt_frames, rig.stats.foreign_frames, rig.stats.load_errors) == (1, 1, 1)
    assert rig.stats.promoted_chunks == 0


def test_all_who_waited_for_a_failed_promotion_learn_its_reason():
    rig = evicted_to_disk("a")
    one, other = rig.cache.open_chain(), rig.cache.open_chain()
    rig.walk(one, "a")
    rig.walk(other, "a")
    rig.promote(Miss.CORRUPT)
    for chain in (one, other):
        assert rig.walk(chain, "a") == "M"
        assert chain.miss is Miss.CORRUPT


def test_a_chunk_whose_promotion_failed_is_stored_again_and_spilled():
    rig = evicted_to_disk("a")
    chain = rig.cache.open_chain()
    rig.walk(chain, "a")
    rig.promote(Miss.CORRUPT)
    assert rig.offload(chain, "a") == "a"
    assert rig.spill() == "a"
    assert "a" in rig.on_disk()


def test_a_frame_that_was_not_looked_at_stays_on_disk():
    rig = evicted_to_disk("a")
    chain = rig.cache.open_chain()
    rig.walk(chain, "a")
    rig.promote(Miss.GATE)
    assert rig.deleted == []
    assert rig.stats.load_errors == 0
    assert rig.walk(chain, "a") == "P"


def test_while_reading_is_switched_off_chunks_on_disk_are_failed_loads():
    rig = evicted_to_disk("a")
    rig.cache.disk_readable = False
    assert rig.why("a") is Miss.LOAD_FAILED
    assert "a" in rig.on_disk()


def test_a_frame_that_is_being_read_is_not_evicted():
    rig = Rig(8, n_frames=2)
    rig.request("ab")
    rig.spill()
    rig.request("01234567")
    rig.walk(rig.cache.open_chain(), "ab")
    assert rig.cache.place(key("x"), FRAME_BYTES) is None
    rig.promote()
    placement = rig.cache.place(key("x"), FRAME_BYTES)
    assert placement is not None
    assert len(placement.evicted) == 1


def test_a_failed_load_drops_its_chunks_from_all_tiers():
    rig = evicted_to_disk("ab")
    chain = rig.cache.open_chain()
    rig.walk(chain, "ab")
    rig.promote()
    rig.walk(chain, "ab")
    rig.onload(chain, "ab", failed=True)
    assert rig.walk(chain, "ab") == "M"
    assert chain.miss is Miss.LOAD_FAILED
    assert sorted(rig.deleted) == [(0, key("a")), (0, key("b"))]
    assert rig.stats.load_errors == 2
    rig.cache.check()


def test_a_slot_is_not_reused_while_another_load_from_it_is_under_way():
    rig = Rig(2)
    rig.request("ab")
    one, other = rig.cache.open_chain(), rig.cache.open_chain()
    for chain in (one, other):
        rig.walk(chain, "a")
        rig.cache.begin_onload(chain, keys("a"))
    rig.cache.end_onload(keys("a"), failed=True)
    assert rig.walk(rig.cache.open_chain(), "a") == "M"
    assert rig.offload(rig.cache.open_chain(), "axy") == "x"
    rig.cache.end_onload(keys("a"))
    assert rig.offload(rig.cache.open_chain(), "y") == "y"
    rig.cache.check()


def test_a_chunk_dropped_while_it_was_being_spilled_does_not_stay_on_disk():
    rig = Rig(4, n_frames=10)
    rig.request("a")
    (resident,) = rig.cache.next_spills(1, idle=True)
    placement = rig.cache.place(resident.key, FRAME_BYTES)
    chain = rig.cache.open_chain()
    rig.walk(chain, "a")
    rig.onload(chain, "a", failed=True)
    rig.cache.spilled(resident, placement, ok=True)
    assert rig.on_disk() == ""
    assert rig.deleted == [(0, key("a"))]
    assert rig.host.n_free == 4
    rig.cache.check()


def test_a_chunk_dropped_while_it_was_being_spilled_and_stored_again_is_spilled_again():
    rig = Rig(4, n_frames=10)
    rig.request("a")
    (resident,) = rig.cache.next_spills(1, idle=True)
    placement = rig.cache.place(resident.key, FRAME_BYTES)
    chain = rig.cache.open_chain()
    rig.walk(chain, "a")
    rig.onload(chain, "a", failed=True)
    assert rig.offload(chain, "a") == "a"
    rig.cache.spilled(resident, placement, ok=True)
    rig.cache.check()
    assert rig.spill() == "a"
    assert rig.on_disk() == "a"
    rig.cache.check()
