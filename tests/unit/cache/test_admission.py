"""What may go to disk: by chain, by second use, and as far as the write budget goes."""

import pytest

from kvtier.budget import WriteBudget
from tests.rigs.cache import CHUNK_BYTES, FRAME_BYTES, Rig, key


def names(n: int) -> list[str]:
    return [chr(0x4E00 + i) for i in range(n)]


def budget_of(folder, n_frames: int) -> WriteBudget:
    return WriteBudget(
        folder, per_day_bytes=10**12, burst_bytes=n_frames * FRAME_BYTES, report=lambda _: None, clock=lambda: 0.0
    )


def test_on_second_use_a_chunk_used_once_stays_in_host_only():
    rig = Rig(8, n_frames=20, admit_share=0.0)
    rig.request("abc")
    assert rig.spill() == ""
    assert rig.stats.held_back_chunks == 3
    assert rig.cache.n_dirty() == 0


def test_on_second_use_what_another_request_loads_is_written():
    rig = Rig(8, n_frames=20, admit_share=0.0)
    rig.request("abcd")
    rig.request("abxy")
    assert set(rig.spill()) == set("ab")


def test_the_same_request_does_not_use_a_chunk_twice():
    rig = Rig(8, n_frames=20, admit_share=0.0)
    chain = rig.cache.open_chain()
    rig.offload(chain, "abc")
    rig.offload(chain, "abcd")
    rig.cache.close_chain(chain)
    assert rig.spill() == ""


def test_a_chunk_that_comes_back_while_host_remembers_it_was_used_before():
    rig = Rig(2, n_frames=20, admit_share=0.0, write_behind_after_s=0.0)
    rig.request("ab")
    rig.request("cd")
    rig.request("ab")
    assert set(rig.spill()) == set("ab")


def test_nothing_is_written_behind_a_chunk_that_is_held_back():
    rig = Rig(4, n_frames=20, admit_share=0.0)
    rig.request("xbc")
    rig.request("defg")  # x, b and c leave, and are remembered
    rig.request("abc")  # b and c were used before, but stand behind a, which was not
    assert rig.spill() == ""


@pytest.mark.parametrize("share", [0.25, 0.75])
def test_a_share_of_new_chains_is_written_on_first_use(share):
    rig = Rig(4000, n_frames=4000, admit_share=share)
    for name in names(1000):
        rig.request(name)
    assert len(rig.spill(max_chunks=4000)) == pytest.approx(1000 * share, abs=60)


def test_chains_that_begin_alike_are_picked_one_by_one():
    rig = Rig(4000, n_frames=4000, admit_share=0.5)
    for name in names(1000):
        rig.request("a" + name)
    assert len(rig.spill(max_chunks=4000)) == pytest.approx(500, abs=60)


def test_a_chain_is_written_whole_or_not_at_all():
    rig = Rig(4000, n_frames=4000, admit_share=0.5)
    chains = [f"{name}{chr(0x3000 + i)}{chr(0x2000 + i)}" for i, name in enumerate(names(300))]
    for chain in chains:
        rig.request(chain)
    written = set(rig.spill(max_chunks=4000))
    assert {len(written & set(chain)) for chain in chains} == {0, 3}


def test_what_a_request_adds_later_is_judged_as_its_beginning_was():
    rig = Rig(4000, n_frames=4000, admit_share=0.5)
    for i, name in enumerate(names(300)):
        chain = rig.cache.open_chain()
        rig.offload(chain, name)
        first = bool(rig.spill())
        rig.offload(chain, chr(0x3000 + i))
        assert bool(rig.spill()) == first
        rig.cache.close_chain(chain)


def test_nothing_a_request_adds_later_is_written_behind_what_was_held_back():
    rig = Rig(4, n_frames=20, admit_share=0.0)
    rig.request("b")
    rig.request("wxyz")
    chain = rig.cache.open_chain()
    rig.offload(chain, "a")
    rig.offload(chain, "b")  # was here before, but stands behind a
    rig.cache.close_chain(chain)
    assert rig.spill() == ""


def test_a_use_is_remembered_for_longer_than_host_remembers():
    rig = Rig(2, n_frames=200, admit_share=0.0)
    rig.request("ab")
    for name in names(50):
        rig.request(name)
    assert not rig.host.remembers(key("a"))
    rig.request("ab")
    assert set(rig.spill()) == set("ab")


def test_a_held_back_chunk_that_is_on_disk_already_is_clean_and_stays_so():
    rig = Rig(2, n_frames=20, admit_share=0.0)
    rig.request("ab")
    rig.request("ab")
    rig.spill()
    rig.request("cd")
    chain = rig.cache.open_chain()
    rig.offload(chain, "ab")
    rig.cache.close_chain(chain)
    rig.cache.check()
    assert rig.cache.n_dirty() == 0


def test_a_spent_budget_drops_spills_and_counts_them(tmp_path):
    rig = Rig(16, n_frames=50, budget=budget_of(tmp_path, 3))
    rig.stats.spilled_chunks, rig.stats.spill_stored_bytes = 1, FRAME_BYTES  # what a frame takes is known
    rig.request("abcdef")
    rig.spill()
    assert set(rig.on_disk()) == set("abc")
    assert rig.stats.over_budget_chunks == 3
    assert rig.stats.spill_failed_chunks == 0
    assert rig.cache.n_dirty() == 0
    rig.request("ghi")
    assert rig.spill() == ""
    assert rig.stats.over_budget_chunks == 6


def test_the_budget_goes_to_heads_though_tails_are_written_first(tmp_path):
    rig = Rig(8, n_frames=50, budget=budget_of(tmp_path, 4), write_behind_after_s=None)
    rig.stats.spilled_chunks, rig.stats.spill_stored_bytes = 1, FRAME_BYTES
    rig.request("abcdefgh")
    while rig.spill():
        pass
    rig.request("xy")
    while rig.spill():
        pass
    assert set(rig.on_disk()) <= set("abcd")


def test_a_frame_larger_than_what_is_left_is_dropped_when_it_is_sealed(tmp_path):
    rig = Rig(8, n_frames=50, budget=budget_of(tmp_path, 2))
    rig.stats.spilled_chunks, rig.stats.spill_stored_bytes = 1, 1  # frames turn out larger than they were
    rig.request("abcd")
    rig.spill()
    assert len(rig.on_disk()) == 2
    assert rig.stats.over_budget_chunks == 2
    assert rig.stats.spill_failed_chunks == 0
    assert rig.cache.n_dirty() == 0
    rig.cache.check()


def test_what_was_over_budget_is_written_when_it_is_used_again_and_there_is_budget(tmp_path):
    budget = budget_of(tmp_path, 2)
    rig = Rig(8, n_frames=50, budget=budget)
    rig.stats.spilled_chunks, rig.stats.spill_stored_bytes = 1, FRAME_BYTES
    rig.request("ab")
    rig.spill()
    rig.request("cd")
    rig.spill()
    budget.give_back(2 * FRAME_BYTES)
    rig.request("cd")
    assert set(rig.spill()) == set("cd")


def test_a_frame_that_found_no_room_costs_no_budget(tmp_path):
    budget = budget_of(tmp_path, 5)
    rig = Rig(8, n_frames=1, budget=budget)
    rig.stats.spilled_chunks, rig.stats.spill_stored_bytes = 1, FRAME_BYTES
    rig.request("a")
    (resident,) = rig.cache.next_spills(1, idle=True)
    before = budget.left_bytes
    assert rig.cache.place(resident.key, 2 * FRAME_BYTES) is None
    assert budget.left_bytes == before


def test_without_a_disk_nothing_is_held_back():
    rig = Rig(8, admit_share=0.0)
    rig.request("abc")
    assert rig.stats.held_back_chunks == 0


def test_what_is_left_of_the_budget_is_told(tmp_path):
    rig = Rig(8, n_frames=50, budget=budget_of(tmp_path, 5))
    assert rig.cache.snapshot(0.0)[1].write_budget_bytes == 5 * FRAME_BYTES
    assert Rig(8, n_frames=50).cache.snapshot(0.0)[1].write_budget_bytes == 0
    assert CHUNK_BYTES > FRAME_BYTES
