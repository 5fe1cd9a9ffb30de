"""The load gate in the cache: what it refuses is a counted miss, and what does not come in time is not waited for."""

import pytest

from kvtier.observe.load import SAMPLE_BYTES
from kvtier.observe.rate import Cost, PrefillRate
from kvtier.policy.gate import MARGIN_SHUT, MAX_WAIT_S, LoadGate
from kvtier.residency import Chain
from kvtier.types import Miss
from tests.rigs.cache import CHUNK_BYTES, HIT, MISS, PENDING, Rig, evicted_to_disk, key

TOKENS = 16
TOKEN_S = 1e-3


def with_gate(rig: Rig, mode: str = "auto") -> LoadGate:
    gate = LoadGate(
        chunk_bytes=CHUNK_BYTES, tokens_per_chunk=TOKENS, prefill=PrefillRate(Cost(TOKEN_S, 0.0, 0.0)), mode=mode
    )
    rig.cache._gate = gate
    return gate


def make_slow(gate: LoadGate) -> None:
    for _ in range(5):
        gate.load_started(0.0, probe=False)
        gate.load_ended(1e6, SAMPLE_BYTES)


def make_fast(gate: LoadGate, chunk_s: float = 1e-4) -> None:
    gate.disk.assume(CHUNK_BYTES / chunk_s)


def asks(rig: Rig, text: str) -> tuple[Chain, str]:
    chain = rig.cache.open_chain()
    assert rig.cache.begin_walk(chain, len(text))
    answers = ""
    for name in text:
        answers += rig.cache.lookup(chain, key(name)).name[0]
        if answers.endswith("M"):
            break
    return chain, answers


def test_a_refused_load_is_a_miss_for_the_gate_and_the_frame_stays():
    rig = evicted_to_disk("ab")
    with_gate(rig, "never")
    chain, answers = asks(rig, "ab")
    assert (answers, chain.miss) == ("M", Miss.GATE)
    assert not rig.jobs
    assert rig.disk is not None
    assert key("a") in rig.disk
    assert rig.stats.gated_requests == 1


def test_a_request_gets_one_answer_for_all_its_chunks():
    rig = evicted_to_disk("ab")
    gate = with_gate(rig)
    chain = rig.cache.open_chain()
    rig.cache.lookup(chain, key("a"))
    make_slow(gate)
    rig.cache.lookup(chain, key("b"))
    assert [job.resident.key for job in rig.jobs] == [key("a"), key("b")]


def test_a_request_refused_once_is_refused_at_every_step_until_it_ends():
    rig = evicted_to_disk("ab")
    gate = with_gate(rig, "never")
    chain, _ = asks(rig, "ab")
    gate._mode = "always"
    for _ in range(3):
        assert rig.cache.begin_walk(chain, 2)
        assert rig.cache.lookup(chain, key("a")) is MISS
    assert rig.stats.gated_requests == 1


def test_a_probe_is_loaded_and_nobody_waits_for_it():
    rig = evicted_to_disk("ab")
    make_slow(with_gate(rig))
    rig.now = 2e6
    chain, answers = asks(rig, "ab")
    assert (answers, chain.miss, chain.pending) == ("M", Miss.GATE, 0)
    assert (len(rig.jobs), rig.stats.probed_chunks) == (1, 1)
    _, others = asks(rig, "ab")
    assert others == "M"  # nor does anybody else
    rig.now += 1e-3
    rig.cache.promoted(rig.jobs.pop(), None)
    rig.cache.check()
    assert asks(rig, "ab")[1] == "HM"  # what it brought is there


def test_the_head_in_host_memory_is_used_where_the_tail_on_disk_does_not_pay():
    rig = evicted_to_disk("abc")
    rig.request("ab")
    make_slow(with_gate(rig))
    chain, answers = asks(rig, "abc")
    assert (answers, chain.miss) == ("HHM", Miss.GATE)


def test_the_head_that_others_bring_up_is_used_where_the_tail_does_not_pay():
    rig = evicted_to_disk("abcdef", n_frames=40)
    gate = with_gate(rig)
    rig.cache.begin_walk(first := rig.cache.open_chain(), 2)
    assert [rig.cache.lookup(first, key(name)) for name in "ab"] == [PENDING] * 2
    make_fast(gate, (MARGIN_SHUT + 0.02) * TOKENS * TOKEN_S)
    gate._refused.add((4).bit_length())  # what is left for the next is held to the margin
    chain, answers = asks(rig, "abcdef")
    assert (answers, chain.miss, chain.pending) == ("PPM", Miss.GATE, 2)


def test_only_as_much_is_promised_as_can_land_in_time():
    rig = evicted_to_disk("abcdef", n_slots=10, n_frames=60)
    gate = with_gate(rig)
    gate._prefill.cost = Cost(1.0, 0.0, 0.0)
    make_fast(gate, MAX_WAIT_S / 3)
    chain, answers = asks(rig, "abcdef")
    assert (answers, chain.miss) == ("PPPM", Miss.GATE)


def test_chunks_in_host_memory_are_not_the_gates_business():
    rig = Rig(4, 10)
    with_gate(rig, "never")
    rig.request("a")
    assert rig.cache.lookup(rig.cache.open_chain(), key("a")) is HIT


def test_without_a_gate_whatever_is_on_disk_is_loaded():
    rig = evicted_to_disk("abcdef", n_slots=10, n_frames=60)
    assert asks(rig, "abcdef")[1] == "PPPPPP"


def test_a_disk_slower_than_it_was_is_not_waited_for_longer_than_recomputing_takes():
    rig = evicted_to_disk("ab")
    gate = with_gate(rig)
    gate._prefill.cost = Cost(1.0, 0.0, 0.0)
    make_fast(gate)
    chain, answers = asks(rig, "ab")
    assert answers == "PP"
    assert not rig.cache.begin_walk(chain)
    rig.cache.promoted(rig.jobs.pop(0), None)
    rig.now += MAX_WAIT_S * 0.99
    assert not rig.cache.begin_walk(chain)
    rig.now += MAX_WAIT_S * 0.02
    assert rig.cache.begin_walk(chain)
    assert [rig.cache.lookup(chain, key(name)) for name in "ab"] == [HIT, MISS]  # what came is used
    assert (chain.miss, rig.stats.gave_up_requests) == (Miss.GATE, 1)
    rig.cache.check()


@pytest.mark.parametrize("landed_meanwhile", [True, False])
def test_who_gives_up_tells_the_others_only_if_nothing_at_all_came(landed_meanwhile):
    rig = evicted_to_disk("abc")
    make_fast(with_gate(rig))
    chain, _ = asks(rig, "ab")
    assert not rig.cache.begin_walk(chain)
    rig.now += MAX_WAIT_S
    if landed_meanwhile:
        rig.cache.promoted(rig.jobs.pop(0), None)
    assert rig.cache.begin_walk(chain)
    assert rig.cache._gate._hangs is not landed_meanwhile


def test_a_store_that_does_not_end_does_not_switch_the_disk_off():
    """Scenario: a request waits for chunks that another is still storing. No promotion is under way to hang."""
    rig = evicted_to_disk("c")
    storing, waiting = rig.cache.open_chain(), rig.cache.open_chain()
    offload = rig.cache.begin_offload(storing, [key("a")])
    assert rig.cache.begin_walk(waiting)
    assert rig.cache.lookup(waiting, key("a")) is PENDING
    assert not rig.cache.begin_walk(waiting)
    rig.now += MAX_WAIT_S + 0.1
    assert rig.cache.begin_walk(waiting)
    rig.cache.end_offload(offload.keys)
    assert asks(rig, "c")[1] == "P"


def test_a_request_whose_promotion_hangs_goes_on_without_it():
    rig = evicted_to_disk("ab")
    chain = rig.cache.open_chain()
    rig.cache.begin_walk(chain)
    rig.cache.lookup(chain, key("a"))
    assert not rig.cache.begin_walk(chain)
    rig.now += MAX_WAIT_S - 0.1
    assert not rig.cache.begin_walk(chain)
    rig.now += 0.2
    assert rig.cache.begin_walk(chain)
    assert rig.cache.lookup(chain, key("a")) is MISS
    assert (chain.pending, chain.miss) == (0, Miss.GATE)
    rig.cache.check()
    rig.cache.promoted(rig.jobs.pop(), None)
    assert rig.cache.lookup(chain, key("a")) is HIT  # it came after all, before the request was admitted
    rig.cache.check()


def test_while_reads_hang_no_other_request_waits_for_the_disk():
    rig = evicted_to_disk("ab")
    first = rig.cache.open_chain()
    rig.cache.lookup(first, key("a"))
    assert not rig.cache.begin_walk(first)
    rig.now += MAX_WAIT_S + 0.1
    assert rig.cache.begin_walk(first)
    second = rig.cache.open_chain()
    assert rig.cache.lookup(second, key("a")) is MISS
    assert rig.cache.lookup(second, key("b")) is MISS
    assert (second.pending, len(rig.jobs)) == (0, 1)
    rig.cache.promoted(rig.jobs.pop(), None)
    assert rig.cache.lookup(second, key("b")) is PENDING
    rig.cache.check()
