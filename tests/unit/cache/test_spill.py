"""Down: which chunks are written, when, and what a failed write costs."""

from tests.rigs.cache import CHUNK_BYTES, FRAME_BYTES, Rig, evicted_to_disk, keys, names


def test_a_stored_chunk_is_dirty_until_it_is_on_disk():
    rig = Rig(4, n_frames=10)
    rig.request("ab")
    assert rig.cache.n_dirty() == 2
    assert rig.n_wakes
    assert set(rig.spill()) == set("ab")
    assert rig.cache.n_dirty() == 0
    assert rig.stats.spilled_chunks == 2
    assert rig.stats.spill_raw_bytes == 2 * CHUNK_BYTES
    assert rig.stats.spill_stored_bytes == 2 * FRAME_BYTES
    assert rig.spill() == ""


def test_without_write_behind_only_the_cold_end_is_spilled():
    rig = Rig(16, n_frames=50, write_behind_after_s=None)
    rig.request("abcdefghijklmnop")
    assert rig.spill() == "po"


def test_the_cold_end_is_spilled_before_there_is_an_eviction():
    rig = Rig(16, n_frames=50, write_behind_after_s=None)
    rig.request("abcdefghijklmno")
    assert rig.spill() == "o"  # one slot is free: two of sixteen are to be free or clean
    rig.request("xy")
    assert rig.stats.host_dropped_chunks == 0


def test_a_chunk_that_has_rested_is_written_behind():
    rig = Rig(16, n_frames=50, write_behind_after_s=2.0)
    rig.request("ab")
    rig.now = 1.0
    rig.request("cd")
    assert rig.spill() == ""
    rig.now = 2.0
    assert set(rig.spill()) == set("ab")
    rig.now = 3.0
    assert set(rig.spill()) == set("cd")


def test_chunks_of_a_busy_engine_rest_ten_times_as_long():
    rig = Rig(16, n_frames=50, write_behind_after_s=2.0)
    rig.request("ab")
    rig.now = 19.9
    assert rig.cache.next_spills(8, idle=False) == []
    rig.now = 20.0
    assert len(rig.cache.next_spills(8, idle=False)) == 2


def test_a_round_takes_no_more_chunks_than_asked_for_and_none_twice():
    rig = Rig(16, n_frames=50)
    rig.request("abcdef")
    first, second = rig.cache.next_spills(4, idle=True), rig.cache.next_spills(4, idle=True)
    assert len(first) == 4
    assert {r.key for r in first} | {r.key for r in second} == set(keys("abcdef"))
    assert len(second) == 2


def test_a_chunk_that_is_being_spilled_is_not_evicted():
    rig = Rig(2, n_frames=10)
    rig.request("ab")
    (resident,) = rig.cache.next_spills(1, idle=True)
    assert len(rig.offload(rig.cache.open_chain(), "xyz")) == 1
    assert names([resident.key]) in rig.on_host()
    rig.cache.spilled(resident, rig.cache.place(resident.key, FRAME_BYTES), ok=True)
    assert rig.offload(rig.cache.open_chain(), "y") == "y"


def test_a_spill_that_failed_is_tried_again_three_times_in_all():
    rig = Rig(4, n_frames=10)
    rig.request("a")
    for _ in range(3):
        assert rig.spill(ok=False) == "a"
    assert rig.spill() == ""
    assert rig.stats.spill_failed_chunks == 3
    assert rig.on_disk() == ""
    assert rig.request("a") == "H"


def test_nothing_is_spilled_while_writing_is_switched_off():
    rig = Rig(4, n_frames=10)
    rig.request("a")
    rig.cache.disk_writable = False
    assert rig.spill() == ""
    rig.cache.disk_writable = True
    assert rig.spill() == "a"


def test_evictions_from_disk_are_counted():
    rig = Rig(4, n_frames=3)
    for name in "abcde":
        rig.request(name)
        rig.spill()
    assert rig.stats.disk_evicted_chunks == 2
    assert rig.on_disk() == "cde"


def test_a_chunk_stored_again_while_it_is_on_disk_is_clean():
    rig = evicted_to_disk("ab", n_slots=2)
    chain = rig.cache.open_chain()
    rig.offload(chain, "ab")
    assert rig.cache.n_dirty() == 0
    rig.cache.check()
