"""A prefix looked up in one call is found, promised and accounted for as if each chunk had been asked for by itself."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtier.residency import Chain
from kvtier.types import Found
from tests.rigs.cache import FRAME_BYTES, MISS, PENDING, Rig, key, keys

PREFIX = "abcdefghijkl"


def rig_with(places: str, *, n_slots: int, max_under_way: int) -> Rig:
    """A rig that holds PREFIX as `places` says: in (h)ost, on (d)isk, in (b)oth, being (w)ritten to disk, (n)owhere."""
    rig = Rig(n_slots, 40, max_under_way=max_under_way)
    text = "".join(name for name, place in zip(PREFIX, places, strict=True) if place in "dbh")
    for start in range(0, len(text), n_slots):
        rig.request(text[start : start + n_slots])
        rig.spill()
    for name, place in zip(PREFIX, places, strict=True):
        if place == "d":
            rig.cache.forget_in_host([key(name)])
        elif place == "h":
            rig.cache.forget_on_disk([key(name)])
        elif place == "w":
            assert rig.disk is not None
            rig.disk.place(key(name), FRAME_BYTES)
    rig.cache.check()
    return rig


def one_by_one(rig: Rig, chain: Chain, text: str) -> Found:
    answers = []
    for k in keys(text):
        answers.append(rig.cache.lookup(chain, k))
        if answers[-1] is MISS:
            break
    return Found(len(answers) - (MISS in answers), PENDING in answers)


def outcome(rig: Rig, *chains: Chain) -> list[Any]:
    """What there is to see of a cache and its chains."""
    rig.cache.check()
    assert rig.disk is not None
    seen: list[Any] = [rig.on_host(), rig.on_disk(), [job.resident.key for job in rig.jobs], rig.stats]
    for chain in chains:
        seen += [list(chain.promises), list(chain.waiting), list(chain.sources.items()), list(chain.used)]
        seen += [chain.pending, chain.miss, chain.may_promote, chain.seen_step]
    return seen


@given(
    places=st.text("ddddhbwn", min_size=len(PREFIX), max_size=len(PREFIX)),
    n_slots=st.integers(3, 20),
    max_under_way=st.integers(1, 4),
    n_at_once=st.integers(1, 6),
    n_before=st.integers(0, 6),
    n_of_others=st.integers(0, 6),
    n_landed=st.integers(0, 4),
    readable=st.sampled_from([True, True, True, False]),
)
def test_it_comes_to_the_same_as_asking_for_each_chunk(
    places: str,
    n_slots: int,
    max_under_way: int,
    n_at_once: int,
    n_before: int,
    n_of_others: int,
    n_landed: int,
    *,
    readable: bool,
) -> None:
    outcomes = []
    for at_once in (False, True):
        rig = rig_with(places, n_slots=n_slots, max_under_way=max_under_way)
        other, chain = rig.cache.open_chain(), rig.cache.open_chain()
        one_by_one(rig, other, PREFIX[len(PREFIX) - n_of_others :])
        one_by_one(rig, chain, PREFIX[:n_before])
        for job in rig.jobs[:n_landed]:
            rig.jobs.remove(job)
            rig.cache.promoted(job, None)
        rig.cache.disk_readable = readable
        if at_once:
            found = rig.cache.lookup_prefix(chain, iter(keys(PREFIX)), n_at_once=n_at_once)
        else:
            found = one_by_one(rig, chain, PREFIX)
        first = outcome(rig, chain, other)
        rig.promote()
        outcomes.append([found, first, outcome(rig, chain, other)])
    assert outcomes[0] == outcomes[1]


def test_those_that_stand_in_line_come_up_in_the_order_of_the_prefix():
    rig = rig_with("d" * len(PREFIX), n_slots=20, max_under_way=2)
    chain = rig.cache.open_chain()
    assert rig.cache.lookup_prefix(chain, keys(PREFIX), n_at_once=3) == Found(len(PREFIX), pending=True)
    began = []
    while rig.jobs:
        began.append(rig.jobs[0].resident.key)
        rig.cache.promoted(rig.jobs.pop(0), None)
        rig.cache.check()
    assert began == keys(PREFIX)
    assert rig.cache.lookup_prefix(chain, keys(PREFIX)) == Found(len(PREFIX), pending=False)


@pytest.mark.parametrize("missing", ["nowhere", "written"])
@pytest.mark.parametrize("n_at_once", [1, 4, 64])
def test_keys_behind_the_first_that_is_missing_or_still_being_written_are_not_promised(n_at_once: int, missing: str):
    rig = rig_with(f"dddddd{missing[0]}dddhh", n_slots=20, max_under_way=2)
    chain = rig.cache.open_chain()
    assert rig.cache.lookup_prefix(chain, keys(PREFIX), n_at_once=n_at_once) == Found(6, pending=True)
    assert [*chain.promises, *chain.waiting] == keys(PREFIX[:6])


def test_a_prefix_of_nothing_is_found_whole():
    rig = rig_with("n" * len(PREFIX), n_slots=4, max_under_way=2)
    assert rig.cache.lookup_prefix(rig.cache.open_chain(), []) == Found(0, pending=False)


def test_as_many_begin_as_may_be_under_way_whoever_began_the_first():
    rig = rig_with("d" * len(PREFIX), n_slots=20, max_under_way=4)
    chain = rig.cache.open_chain()
    one_by_one(rig, chain, PREFIX[:2])
    rig.cache.lookup_prefix(chain, keys(PREFIX), n_at_once=2)
    assert [job.resident.key for job in rig.jobs] == keys(PREFIX[:4])


def test_chunks_that_the_request_waits_for_already_are_not_waited_for_twice():
    rig = rig_with("d" * len(PREFIX), n_slots=20, max_under_way=2)
    chain = rig.cache.open_chain()
    for _ in range(2):
        assert rig.cache.lookup_prefix(chain, keys(PREFIX), n_at_once=2) == Found(len(PREFIX), pending=True)
        rig.cache.check()
    assert chain.pending == len(PREFIX)


def test_nothing_stands_in_line_for_a_disk_that_was_switched_off():
    rig = rig_with("d" * len(PREFIX), n_slots=20, max_under_way=2)
    chain = rig.cache.open_chain()
    assert one_by_one(rig, chain, PREFIX[:2]) == Found(2, pending=True)
    rig.cache.disk_readable = False
    assert rig.cache.lookup_prefix(chain, keys(PREFIX), n_at_once=2) == Found(2, pending=True)
    assert not chain.waiting
