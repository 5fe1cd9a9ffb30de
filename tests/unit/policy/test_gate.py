"""LoadGate: lets through what is faster than recomputing, and says from which prompt on that is so."""

import itertools
import math

import pytest

from kvtier.observe.load import SAMPLE_S, WINDOW
from kvtier.observe.rate import Cost, PrefillRate
from kvtier.observe.stats import NEVER_TOKENS
from kvtier.policy.gate import (
    MARGIN_SHUT,
    MAX_WAIT_S,
    MIN_WAIT_S,
    NO_LIMIT,
    PATIENCE,
    PROBE_EVERY_S,
    PROBE_SOON_S,
    STEPS_S,
    TRIAL_SHARE,
    LoadGate,
)
from kvtier.residency import Chain, Resident, State
from kvtier.types import ChunkKey

CHUNK = 1 << 20
TOKENS = 100
FREE_COPIES = 1e15


THOUSAND_A_SECOND = Cost(1e-3, 0.0, 0.0)


def gate(prefill: Cost | None = THOUSAND_A_SECOND, copies: float = FREE_COPIES, **settings) -> LoadGate:
    """At 1,000 tokens a second a chunk takes 0.1 s to recompute: the break-even is 10 chunks a second."""
    made = LoadGate(chunk_bytes=CHUNK, tokens_per_chunk=TOKENS, prefill=PrefillRate(prefill), **settings)
    made.device.byte_s = 1 / copies
    return made


def measure(gate: LoadGate, chunk_s: float, n: int = WINDOW, begins_s: float = 0.0, *, probe: bool = False) -> None:
    """`n` chunks, one after the other, each a sample."""
    assert chunk_s >= SAMPLE_S or probe
    for i in range(n):
        gate.load_started(begins_s + i * chunk_s, probe=probe)
        gate.load_ended(begins_s + (i + 1) * chunk_s, CHUNK)


def asks(gate: LoadGate, n_chunks: int, *, now_s: float = 0.0, n_before: int = 0, promised: int = 0) -> Chain:
    """A request that could find `n_chunks` more is judged."""
    chain = Chain(n_chunks=n_chunks + promised, n_before=n_before)
    for i in range(promised):
        key = ChunkKey(b"%d" % i)
        chain.promises[key] = Resident(key, i, State.READY, 0.0)
    gate.judge(chain, now_s)
    return chain


def loads(gate: LoadGate, n_chunks: int, **of_request) -> bool:
    return bool(asks(gate, n_chunks, **of_request).may_promote)


@pytest.mark.parametrize(("chunk_s", "loaded"), [(0.05, True), (0.099, True), (0.101, False), (1.0, False)])
def test_loads_slower_than_recomputing_are_refused(chunk_s, loaded):
    g = gate()
    measure(g, chunk_s)
    assert loads(g, 10) == loaded


def test_until_both_rates_are_known_everything_is_loaded():
    assert loads(gate(), 10)
    no_prefill = gate(prefill=None)
    measure(no_prefill, 5.0)
    assert loads(no_prefill, 10)


def test_a_disk_nobody_has_measured_is_tried_with_the_same_patience():
    g = gate()
    assert asks(g, 10).patience_s == pytest.approx(PATIENCE * 1.0)


def test_what_is_under_way_already_has_to_be_waited_for():
    g = gate()
    measure(g, 0.05)
    for _ in range(20):
        g.load_started(100.0, probe=False)
    assert not loads(g, 10)  # 30 chunks at 0.05 s against 10 at 0.1 s
    assert loads(g, 40)


def test_a_request_that_waits_for_the_queue_anyway_is_not_charged_for_it():
    g = gate()
    measure(g, 0.05)
    for _ in range(20):
        g.load_started(100.0, probe=False)
    chain = Chain(n_chunks=10, pending=1)
    g.judge(chain, 100.0)
    assert chain.may_promote


def test_the_copy_to_the_device_counts():
    slow_copies = gate(copies=CHUNK / 0.06)
    measure(slow_copies, 0.05)
    assert not loads(slow_copies, 10)  # 0.05 + 0.06 s a chunk against 0.1


def test_what_a_load_costs_beside_its_bytes_keeps_tiny_ones_from_paying():
    g = gate(prefill=Cost(1e-5, 0.0, 0.0))
    measure(g, 0.0005, probe=True)
    assert not loads(g, 1)  # 0.5 ms and STEPS_S against 1 ms
    assert loads(g, 100)
    assert STEPS_S > 0.0005


def test_behind_chunks_in_host_memory_only_the_disks_part_counts():
    g = gate(prefill=Cost(1e-5, 0.0, 0.0))
    measure(g, 0.0005, probe=True)
    assert loads(g, 1, promised=3)  # the request is loading already: one chunk more costs its bytes


def test_deep_in_a_prompt_loading_pays_where_it_does_not_at_its_start():
    g = gate(prefill=Cost(1e-4, 1e-7, 0.0))
    measure(g, 0.05)
    assert not loads(g, 10)
    assert loads(g, 10, n_before=10_000)


def test_a_refused_head_does_not_hide_a_tail_that_would_pay():
    """Scenario: cost grows with context, so a whole prompt may pay where its first chunks alone would not."""
    g = gate(prefill=Cost(1e-4, 1e-7, 0.0))
    measure(g, 0.05)
    assert not loads(g, 10)
    assert loads(g, 200)


def test_only_the_head_that_lands_before_anybody_gives_up_is_promised():
    g = gate(prefill=Cost(1.0, 0.0, 0.0))
    measure(g, 1.0)
    assert asks(g, 5).may_promote == NO_LIMIT
    assert asks(g, 500).may_promote == int(MAX_WAIT_S)


def test_a_request_waits_no_longer_than_recomputing_would_justify():
    g = gate()
    measure(g, 0.05)
    assert asks(g, 10).patience_s == pytest.approx(PATIENCE * 1.0)
    assert asks(g, 1000).patience_s == MAX_WAIT_S
    quick = gate(prefill=Cost(1e-6, 0.0, 0.0))
    measure(quick, 1e-9, probe=True)
    assert asks(quick, 100).patience_s == MIN_WAIT_S


# ---- hysteresis


def test_a_size_that_was_refused_is_loaded_again_only_when_clearly_faster():
    g = gate()
    measure(g, 0.2)
    assert not loads(g, 10)
    measure(g, 0.1 * MARGIN_SHUT * 1.05)
    assert not loads(g, 10)
    measure(g, 0.1 * MARGIN_SHUT * 0.9)
    assert loads(g, 10)
    measure(g, 0.095)
    assert loads(g, 10)  # it stays so up to the break-even


def test_requests_of_other_sizes_keep_their_own_answer():
    g = gate()
    measure(g, 0.09)
    for _ in range(3):
        g.load_started(100.0, probe=False)
    assert not loads(g, 10)  # behind the queue
    assert loads(g, 60)  # long enough not to mind it, and not held to the margin of the short one


def test_noise_around_the_break_even_changes_no_answer():
    g = gate()
    answers = []
    for i in range(40):
        measure(g, 0.1 * (0.9 if i % 2 else 1.1), n=1)
        answers.append(loads(g, 10))
    assert sum(a != b for a, b in itertools.pairwise(answers)) <= 1


# ---- probes


def probes(gate: LoadGate, now_s: float, n_chunks: int = 10) -> bool:
    return gate.judge(Chain(n_chunks=n_chunks), now_s)


def shut(**settings) -> LoadGate:
    """A gate that knows the disk is slow, and has had a probe at 100 s that agreed."""
    g = gate(**settings)
    measure(g, 1.0)
    assert probes(g, 99.0)
    measure(g, 1.0, n=1, begins_s=99.0, probe=True)
    return g


def test_a_shut_gate_probes_now_and_then():
    g = shut()
    assert not probes(g, 99.0 + PROBE_EVERY_S - 0.1)
    assert probes(g, 99.0 + PROBE_EVERY_S)


def test_an_open_gate_needs_no_probe():
    g = gate()
    measure(g, 0.05)
    assert not probes(g, 1000.0)


def test_there_is_one_probe_at_a_time():
    g = shut()
    g.load_started(200.0, probe=True)
    assert not probes(g, 300.0)


def test_a_disk_that_has_recovered_is_believed_after_three_probes_in_quick_succession():
    g = shut()
    now_s, n_probes = 99.0, 0
    while not loads(g, 10, now_s=now_s):
        if probes(g, now_s):
            measure(g, 0.01, n=1, begins_s=now_s, probe=True)
            n_probes += 1
        now_s += 0.5
    assert n_probes == 3
    assert now_s < 99.0 + PROBE_EVERY_S + 4 * PROBE_SOON_S + 2


def test_one_lucky_probe_does_not_open_the_gate():
    g = shut()
    measure(g, 0.01, n=1, begins_s=200.0, probe=True)
    assert not loads(g, 10, now_s=201.0)


def test_a_whole_request_tries_what_single_chunks_cannot_tell():
    """Scenario: one thread alone is too slow, four together would not be. Probes read one chunk at a time."""
    g = shut(n_lanes=4)
    measure(g, 0.2, begins_s=200.0, probe=True)
    allowed = [loads(g, 10, now_s=300.0 + i / 100) for i in range(3 * TRIAL_SHARE)]
    assert allowed.count(True) == 1


def test_no_request_tries_what_not_even_all_threads_together_could_bring_in_time():
    g = shut(n_lanes=4)
    assert not any(loads(g, 10, now_s=300.0 + i) for i in range(10 * TRIAL_SHARE))


# ---- joining


def joins(gate: LoadGate, n_under_way: int, n_chunks: int) -> bool:
    for _ in range(n_under_way):
        gate.load_started(100.0, probe=False)
    return gate.joins(Chain(n_chunks=n_chunks))


def test_promotions_that_others_have_begun_are_waited_for_while_that_is_faster():
    quick, slow = gate(), gate()
    measure(quick, 0.05)
    measure(slow, 1.0)
    assert joins(quick, 10, 10)
    assert not joins(slow, 10, 10)


def test_they_are_waited_for_until_it_is_known_what_recomputing_takes():
    g = gate(prefill=None)
    measure(g, 1.0)
    assert joins(g, 10, 10)


def test_a_probe_on_a_slow_disk_makes_nobody_wait():
    g = shut()
    assert not joins(g, 1, 1000)


def test_a_request_that_loads_waits_for_the_chunks_of_others_among_its_own():
    g = gate()
    measure(g, 0.05)
    chain = asks(g, 10)
    measure(g, 1.0)
    assert g.joins(chain)


# ---- what the operator decides


@pytest.mark.parametrize(("mode", "loaded"), [("always", True), ("never", False)])
def test_the_operator_may_decide_instead(mode, loaded):
    g = gate(mode=mode)
    measure(g, 1.0 if loaded else 0.05)
    assert loads(g, 10) == loaded
    assert not probes(g, 1000.0)


def test_the_operator_may_set_the_break_even():
    g = gate(mode="min_tokens", min_tokens=10 * TOKENS)
    measure(g, 1.0)
    assert loads(g, 10)
    assert not loads(g, 9)
    assert not loads(g, 9, promised=5)  # what host RAM has is not what is loaded from disk


# ---- what is shown


def test_nothing_is_shown_that_is_not_known():
    rates = gate(prefill=None).rates()
    assert (rates.load_bytes_per_s, rates.load_pays_from_tokens) == (0.0, 0)


def test_the_break_even_shown_is_the_shortest_prompt_that_is_loaded():
    g = gate(prefill=Cost(1e-4, 1e-7, 0.0))
    measure(g, 0.05)
    n_chunks = g.rates().load_pays_from_tokens // TOKENS
    assert loads(g, n_chunks)
    assert not loads(g, n_chunks - 1)


@pytest.mark.parametrize(("chunk_s", "tokens"), [(0.05, TOKENS), (0.2, NEVER_TOKENS)])
def test_where_context_costs_nothing_it_pays_from_the_first_chunk_or_never(chunk_s, tokens):
    g = gate()
    measure(g, chunk_s)
    assert g.rates().load_pays_from_tokens == tokens


def test_rates_are_shown_as_bytes_a_second():
    g = gate(copies=5e9)
    measure(g, 0.05)
    rates = g.rates()
    assert rates.load_bytes_per_s == pytest.approx(20 * CHUNK)
    assert rates.onload_bytes_per_s == pytest.approx(5e9)
    assert math.isfinite(rates.load_pays_from_tokens)
