"""LoadGate: lets through what is faster than recomputing, and says from which prompt on that is so."""

import copy
import itertools
import math

import pytest

from kvtier.observe.rate import Cost
from kvtier.observe.stats import NEVER_TOKENS
from kvtier.policy.gate import (
    MARGIN_SHUT,
    MAX_WAIT_S,
    MIN_WAIT_S,
    NO_LIMIT,
    PROBE_EVERY_S,
    PROBE_SOON_S,
    STEPS_S,
    TRIAL_SHARE,
    LoadGate,
)
from kvtier.residency import Chain
from tests.rigs.gate import CHUNK, TOKENS, asks, gate, land, loads, measure, probes, shut, waiting, waits_s


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


def test_a_disk_nobody_has_measured_is_waited_for_as_long_as_any_other():
    assert waits_s(gate(), 10) == pytest.approx(1.0, abs=1e-3)


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


@pytest.mark.parametrize("chunk_s", [0.001, 0.05, 0.095])
def test_while_nothing_lands_a_request_waits_for_as_long_as_it_would_compute(chunk_s):
    g = gate()
    measure(g, chunk_s, probe=True)
    assert waits_s(g, 10) == pytest.approx(1.0, abs=1e-3)


def test_nobody_waits_longer_than_the_longest_wait_or_gives_up_before_threads_have_run():
    g = gate()
    measure(g, 0.05)
    assert waits_s(g, 1000) == pytest.approx(MAX_WAIT_S, abs=1e-3)
    quick = gate(prefill=Cost(1e-6, 0.0, 0.0))
    measure(quick, 1e-9, probe=True)
    assert waits_s(quick, 100) == pytest.approx(MIN_WAIT_S, abs=1e-3)


# ---- giving up


def test_what_has_landed_does_not_make_a_request_wait_longer_than_it_would_compute():
    g = gate()
    measure(g, 0.001, probe=True)
    chain = waiting(g, 10)
    land(g, chain, 9, 100.9)
    assert g.waits(chain, 100.95)
    assert not g.waits(chain, 101.05)


@pytest.mark.parametrize("chunk_s", [0.001, 0.09])
@pytest.mark.parametrize("n_chunks", [1, 2, 10, 100])
def test_who_gives_up_has_found_out_for_everybody(chunk_s, n_chunks):
    g = gate()
    measure(g, chunk_s, probe=True)
    chain = waiting(g, n_chunks)
    now_s = 100.0 + chain.recompute_s + 1e-6
    assert not g.waits(chain, now_s)
    g.gave_up(chain, now_s)
    land(g, chain, n_chunks, now_s + 1e-3)  # a burst: one sample, if any
    assert not loads(g, n_chunks, now_s=now_s + 1e-3)


def test_others_who_wait_give_up_as_soon_as_one_has():
    g = gate()
    measure(g, 0.001, probe=True)
    first, second = waiting(g, 10), waiting(g, 40)
    assert g.waits(second, 101.01)
    assert not g.waits(first, 101.01)
    g.gave_up(first, 101.01)
    assert not g.waits(second, 101.01)


def test_after_somebody_gave_up_loads_that_agree_open_the_gate_again():
    g = gate()
    measure(g, 0.01, probe=True)
    chain = waiting(g, 10)
    assert not g.waits(chain, 101.0)
    g.gave_up(chain, 101.0)
    land(g, chain, 10, 101.0)
    answers = []
    for i in range(4):
        measure(g, 0.01, n=1, begins_s=200.0 + i, probe=True)
        answers.append(loads(g, 10))
    assert answers == [False, False, True, True]


def test_what_others_have_queued_before_does_not_make_the_disk_look_slow():
    """Scenario: forty chunks of others are ahead. That they took their time does not make the disk slow."""
    g = gate()
    measure(g, 0.01, probe=True)
    for _ in range(40):
        g.load_started(100.0, probe=False)
    chain = waiting(g, 10)
    for _ in range(40):
        g.load_ended(100.9, CHUNK)
    assert not g.waits(chain, 101.0)
    g.gave_up(chain, 101.0)
    assert g.disk.byte_s * CHUNK < 0.03


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


def test_after_a_stall_that_was_waited_for_in_vain_probes_come_soon_and_then_less_and_less_often():
    """Scenario: the gate was shut before, so probes had become rare. Most stalls are over in a second or two."""
    g = shut()
    measure(g, 0.01, begins_s=150.0, probe=True)
    chain = waiting(g, 10, now_s=200.0)
    g.gave_up(chain, 201.1)
    land(g, chain, 10, 202.0)
    probed_s = []
    for i in range(600):
        now_s = 202.0 + i / 10
        if probes(g, now_s):
            measure(g, 3.0, n=1, begins_s=now_s, probe=True)
            probed_s.append(now_s)
    pauses_s = [b - a for a, b in itertools.pairwise([202.0, *probed_s])]
    assert pauses_s == pytest.approx([0, PROBE_SOON_S, 2, 4, 8, 16, PROBE_EVERY_S], abs=0.15)


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


def test_trials_in_vain_become_rare():
    g = shut(n_lanes=4)
    measure(g, 0.2, begins_s=200.0, probe=True)
    n_trials, now_s = 0, 300.0
    for _ in range(1000):
        if loads(g, 10, now_s=now_s):
            n_trials += 1
            chain = Chain(n_chunks=10, pending=10)
            g.waits(chain, now_s)
            g.gave_up(chain, now_s + 0.5)
        now_s += PROBE_EVERY_S
    assert n_trials == 5  # after 20, 40, 80, 160 and 320 refusals


def test_who_has_waited_in_vain_is_not_followed_by_a_trial_right_away():
    g = gate(n_lanes=8)
    measure(g, 0.05)
    chain = waiting(g, 2)
    g.gave_up(chain, 100.3)
    land(g, chain, 2, 100.4)
    assert not any(loads(g, 2, now_s=100.5 + i / 100) for i in range(10 * TRIAL_SHARE))
    assert any(loads(g, 2, now_s=100.3 + PROBE_EVERY_S + i / 100) for i in range(3 * TRIAL_SHARE))


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


@pytest.mark.parametrize("mode", ["auto", "always", "min_tokens"])
def test_while_reads_hang_no_prompt_is_shown_to_be_loaded(mode):
    g = gate(mode=mode)
    measure(g, 0.05)
    chain = waiting(g, 10)
    g.gave_up(chain, 100.0 + MAX_WAIT_S)
    assert not loads(g, 1000, now_s=200.0)
    assert g.rates().load_pays_from_tokens == NEVER_TOKENS
    land(g, chain, 10, 200.0)
    assert loads(g, 1000, now_s=201.0) == (g.rates().load_pays_from_tokens <= 1000 * TOKENS)


COSTS = [
    Cost(1e-3, 0.0, 0.0),
    Cost(1e-4, 1e-7, 0.0),
    Cost(1e-5, 1e-8, 0.0),
    Cost(0.0, 1e-6, 0.0),
]


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("chunk_s", [0.0005, 0.02, 0.05, 0.09, 0.11, 0.2])
@pytest.mark.parametrize("refused", [(), (1,), (4,), (5, 40, 300), (2000,)])
def test_what_is_shown_is_what_is_done(cost, chunk_s, refused):
    """Scenario: some sizes were refused on a disk that was slower, and are held to the margin since."""
    g = gate(prefill=cost)
    measure(g, 1.0)
    for n_chunks in refused:
        loads(g, n_chunks)
    measure(g, chunk_s, probe=True)
    shown = g.rates().load_pays_from_tokens
    for n_chunks in {1, 2, *refused, shown // TOKENS - 1, shown // TOKENS, shown // TOKENS + 1, 5000}:
        if 0 < n_chunks < NEVER_TOKENS // TOKENS - 1:
            again = copy.deepcopy(g)
            if n_chunks * TOKENS >= shown:
                assert loads(again, n_chunks)
            elif n_chunks == shown // TOKENS - 1 or shown == NEVER_TOKENS:
                assert not loads(again, n_chunks)


@pytest.mark.parametrize(("mode", "tokens"), [("always", TOKENS), ("never", NEVER_TOKENS), ("min_tokens", 4 * TOKENS)])
def test_where_the_operator_decides_that_is_shown(mode, tokens):
    g = gate(mode=mode, min_tokens=4 * TOKENS - 1 if mode == "min_tokens" else 0)
    measure(g, 0.05)
    assert g.rates().load_pays_from_tokens == tokens


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
