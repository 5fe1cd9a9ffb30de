"""Promotions stand in line behind those under way: every chunk comes up, in order, and nobody waits for nothing."""

import pytest

from kvtier.types import Miss
from tests.rigs.cache import Rig, key, keys


def on_disk(text: str, *, n_slots: int = 20, max_under_way: int = 2) -> Rig:
    """A rig whose disk has `text`, and whose host pool is empty."""
    rig = Rig(n_slots, 40, max_under_way=max_under_way)
    rig.request(text)
    rig.spill()
    assert rig.cache.forget_in_host(keys(text)) == []
    return rig


def under_way(rig: Rig) -> str:
    return "".join(job.resident.key[24:].decode() for job in rig.jobs)


def end_one(rig: Rig, failure: Miss | None = None) -> None:
    rig.cache.promoted(rig.jobs.pop(0), failure)
    rig.cache.check()


def test_a_walk_begins_a_few_promotions_and_promises_them_all():
    rig = on_disk("abcdefgh")
    chain = rig.cache.open_chain()
    assert rig.walk(chain, "abcdefgh") == "PPPPPPPP"
    assert (under_way(rig), chain.pending) == ("ab", 8)
    rig.cache.check()


def test_each_that_ends_begins_the_next_in_the_order_asked_for():
    rig = on_disk("abcde")
    chain = rig.cache.open_chain()
    rig.walk(chain, "abcde")
    began = ""
    while rig.jobs:
        began += under_way(rig)[0]
        end_one(rig)
    assert began == "abcde"
    assert rig.walk(chain, "abcde") == "HHHHH"


def test_the_request_is_not_looked_up_again_until_the_last_has_landed():
    rig = on_disk("abcd")
    chain = rig.cache.open_chain()
    rig.walk(chain, "abcd")
    for _ in range(4):
        assert not rig.cache.begin_walk(chain)
        end_one(rig)
    assert rig.cache.begin_walk(chain)


def test_who_came_first_is_served_first():
    rig = on_disk("abcdexyz")
    first, second = rig.cache.open_chain(), rig.cache.open_chain()
    rig.walk(first, "abcde")
    rig.cache.begin_walk(second)
    for k in keys("xyz"):
        rig.cache.lookup(second, k)
    began = ""
    while rig.jobs:
        began += under_way(rig)[0]
        end_one(rig)
    assert began == "abcdexyz"


def test_a_chunk_that_two_requests_wait_for_comes_up_once():
    rig = on_disk("abcd")
    first, second = rig.cache.open_chain(), rig.cache.open_chain()
    rig.walk(first, "abcd")
    rig.walk(second, "abcd")
    rig.promote()
    assert rig.stats.promoted_chunks == 4
    assert rig.walk(first, "abcd") == rig.walk(second, "abcd") == "HHHH"


@pytest.mark.parametrize("how", ["closed", "reset"])
def test_a_request_that_has_ended_leaves_the_line(how: str):
    rig = on_disk("abcdef")
    chain = rig.cache.open_chain()
    rig.walk(chain, "abcdef")
    if how == "closed":
        rig.cache.close_chain(chain)
    else:
        rig.cache.reset(b"family-2")
    rig.promote()
    assert rig.stats.promoted_chunks == 2
    assert chain.pending == 0
    rig.cache.check()


def test_a_request_that_is_not_looked_up_any_more_leaves_the_line():
    rig = on_disk("abcdef")
    chain = rig.cache.open_chain()
    rig.walk(chain, "abcdef")
    for _ in range(400):
        rig.cache.step_ended()
    rig.promote()
    assert rig.stats.promoted_chunks == 2


def test_what_left_the_disk_meanwhile_ends_the_line_of_its_request_and_nobody_else_s():
    rig = on_disk("abcdexy")
    chain, other = rig.cache.open_chain(), rig.cache.open_chain()
    rig.walk(chain, "abcde")
    rig.walk(other, "xy")
    rig.cache.forget_on_disk([key("c")])
    rig.promote()
    assert chain.pending == 0
    assert rig.walk(chain, "abcde") == "HHM"
    assert rig.walk(other, "xy") == "HH"


def test_a_disk_that_was_switched_off_empties_the_line():
    rig = on_disk("abcdef")
    chain = rig.cache.open_chain()
    rig.walk(chain, "abcdef")
    rig.cache.disk_readable = False
    end_one(rig, Miss.LOAD_FAILED)
    assert (under_way(rig), chain.pending) == ("b", 1)
    rig.promote()
    assert rig.walk(chain, "abcdef") == "M"


def test_no_more_stand_in_line_than_have_a_slot():
    rig = on_disk("abcdefghij", n_slots=8)
    chain = rig.cache.open_chain()
    assert rig.walk(chain, "abcdefghij") == "PPPPPPPM"
    assert chain.miss is Miss.GATE
    rig.promote()
    assert rig.walk(chain, "abcdefghij") == "HHHHHHHM"


def test_slots_that_stores_took_meanwhile_cut_the_prefix_short():
    rig = on_disk("abcdef", n_slots=8)
    chain, other = rig.cache.open_chain(), rig.cache.open_chain()
    rig.walk(chain, "abcdef")
    rig.cache.begin_offload(other, keys("stuvwx"))  # copies under way: six of eight slots pinned
    rig.promote()
    assert rig.walk(chain, "abcdef") == "HHM"
    rig.cache.check()
