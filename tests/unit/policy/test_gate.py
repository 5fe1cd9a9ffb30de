"""LoadGate: measures while it serves, and lets through what is faster than recomputing."""

import pytest

from kvtier.policy.gate import MARGIN_SHUT, PROBE_EVERY_S, SAMPLE_BYTES, LoadGate

CHUNK = 1 << 20
TOKENS = 100
PER_SAMPLE = SAMPLE_BYTES // CHUNK


def gate(prefill: float = 1000.0, mode: str = "auto") -> LoadGate:
    """At 1,000 tokens a second a chunk takes 0.1 s to recompute: the break-even is 10 MiB/s."""
    return LoadGate(chunk_bytes=CHUNK, tokens_per_chunk=TOKENS, prefill_tokens_per_s=lambda: prefill, mode=mode)


def measure(gate: LoadGate, chunk_s: float, n: int = PER_SAMPLE, begins_s: float = 0.0) -> None:
    """`n` chunks, one after the other, `chunk_s` each."""
    for i in range(n):
        gate.load_started(begins_s + i * chunk_s)
        gate.load_ended(begins_s + (i + 1) * chunk_s, CHUNK)


def test_the_break_even_is_the_rate_at_which_chunks_would_be_recomputed():
    assert gate().break_even_bytes_per_s == 10 * CHUNK


@pytest.mark.parametrize(("chunk_s", "allowed"), [(0.05, True), (0.099, True), (0.101, False), (1.0, False)])
def test_loads_slower_than_recomputing_are_refused(chunk_s, allowed):
    g = gate()
    measure(g, chunk_s)
    assert g.allows(10) == allowed


def test_until_both_rates_are_known_everything_is_loaded():
    unmeasured = gate()
    assert unmeasured.allows(10)
    no_prefill = gate(prefill=0.0)
    measure(no_prefill, 5.0)
    assert no_prefill.allows(10)


def test_what_is_under_way_already_has_to_be_waited_for():
    g = gate()
    measure(g, 0.05)
    for _ in range(20):
        g.load_started(100.0)
    assert not g.allows(10)  # 30 chunks at 0.05 s against 10 at 0.1 s
    assert g.allows(40)


def test_parallel_loads_count_by_what_lands_per_busy_second():
    g = gate()
    for _ in range(PER_SAMPLE):
        g.load_started(0.0)
    for i in range(PER_SAMPLE):
        g.load_ended(0.05 * (i + 1), CHUNK)
    assert g.load_bytes_per_s == pytest.approx(20 * CHUNK)


def test_idle_time_between_loads_does_not_count():
    g = gate()
    for i in range(PER_SAMPLE):
        g.load_started(i * 60.0)
        g.load_ended(i * 60.0 + 0.05, CHUNK)
    assert g.load_bytes_per_s == pytest.approx(20 * CHUNK)


def test_failed_loads_take_time_and_land_nothing():
    g = gate()
    for i in range(2 * PER_SAMPLE):
        g.load_started(i * 0.05)
        g.load_ended((i + 1) * 0.05, CHUNK * (i % 2))
    assert g.load_bytes_per_s == pytest.approx(10 * CHUNK)


def test_a_shut_gate_opens_only_when_loading_is_clearly_faster():
    g = gate()
    measure(g, 0.2)
    assert not g.allows(10)
    measure(g, 0.1 * MARGIN_SHUT * 1.05, n=1)
    assert not g.allows(10)
    measure(g, 0.1 * MARGIN_SHUT * 0.9, n=1)
    assert g.allows(10)
    measure(g, 0.095, n=PER_SAMPLE * 8)
    assert g.allows(10)  # open now: it stays so up to the break-even


def test_a_shut_gate_asks_for_a_probe_now_and_then():
    g = gate()
    measure(g, 1.0)
    assert not g.allows(10)
    assert g.wants_probe(100.0)
    assert not g.wants_probe(100.0 + PROBE_EVERY_S - 0.1)
    assert g.wants_probe(100.0 + PROBE_EVERY_S)


def test_one_probe_is_enough_to_see_that_the_disk_has_recovered():
    g = gate()
    measure(g, 1.0)
    assert not g.allows(10)
    measure(g, 0.01, n=1, begins_s=200.0)
    assert g.allows(10)


@pytest.mark.parametrize(("mode", "allowed"), [("always", True), ("never", False)])
def test_the_operator_may_decide_instead(mode, allowed):
    g = gate(mode=mode)
    measure(g, 1.0 if allowed else 0.001)
    assert g.allows(10) == allowed
    assert not g.wants_probe(1000.0)
