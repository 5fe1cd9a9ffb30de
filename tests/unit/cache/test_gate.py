"""The load gate in the cache: what it refuses is a counted miss, and a probe makes nobody wait."""

from kvtier.cache import MAX_WAIT_S
from kvtier.policy.gate import SAMPLE_BYTES, LoadGate
from kvtier.types import Miss
from tests.rigs.cache import CHUNK_BYTES, HIT, MISS, PENDING, Rig, evicted_to_disk, key


def with_gate(rig: Rig, mode: str = "auto") -> LoadGate:
    gate = LoadGate(chunk_bytes=CHUNK_BYTES, tokens_per_chunk=16, prefill_tokens_per_s=lambda: 1000.0, mode=mode)
    rig.cache._gate = gate
    return gate


def make_slow(gate: LoadGate) -> None:
    gate.load_started(0.0)
    gate.load_ended(1e6, SAMPLE_BYTES)


def test_a_refused_load_is_a_miss_for_the_gate_and_the_frame_stays():
    rig = evicted_to_disk("ab")
    with_gate(rig, "never")
    chain = rig.cache.open_chain()
    assert rig.cache.lookup(chain, key("a")) is MISS
    assert chain.miss is Miss.GATE
    assert not rig.jobs
    assert rig.disk is not None
    assert key("a") in rig.disk


def test_a_request_gets_one_answer_for_all_its_chunks():
    rig = evicted_to_disk("ab")
    gate = with_gate(rig)
    chain = rig.cache.open_chain()
    rig.cache.lookup(chain, key("a"))
    make_slow(gate)
    rig.cache.lookup(chain, key("b"))
    assert [job.resident.key for job in rig.jobs] == [key("a"), key("b")]


def test_a_probe_is_loaded_and_nobody_waits_for_it():
    rig = evicted_to_disk("ab")
    gate = with_gate(rig)
    make_slow(gate)
    rig.now = 2e6
    chain = rig.cache.open_chain()
    assert rig.cache.lookup(chain, key("a")) is MISS
    assert (chain.miss, chain.pending, len(rig.jobs)) == (Miss.GATE, 0, 1)
    rig.now += 1e-3
    rig.cache.promoted(rig.jobs.pop(), None)
    rig.cache.check()
    other = rig.cache.open_chain()
    rig.cache.lookup(other, key("b"))
    assert rig.jobs  # one probe was enough to see that the disk is fast again


def test_chunks_in_host_memory_are_not_the_gates_business():
    rig = Rig(4, 10)
    with_gate(rig, "never")
    rig.request("a")
    assert rig.cache.lookup(rig.cache.open_chain(), key("a")) is HIT


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
