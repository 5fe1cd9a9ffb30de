"""PrefillRate: what a token costs to prefill, by how many came before it."""

import pytest

from kvtier.observe.rate import MAX_STEPS_OUT, MIN_TOKENS, SETTLED, WINDOW, Cost, PrefillRate


def step(rate: PrefillRate, begins_s: float, ends_s: float, n_tokens: int, context: float = 0.0) -> None:
    rate.step_scheduled(begins_s, n_tokens, context)
    rate.step_done(ends_s)


def steps(rate: PrefillRate, n: int, token_s: float, n_tokens: int, context: float) -> None:
    """One after the other, idle between them, after whatever came before."""
    for _ in range(n):
        begins_s = rate._last_output_s + 10.0
        step(rate, begins_s, begins_s + token_s * n_tokens, n_tokens, context)


def test_it_is_zero_until_measured():
    rate = PrefillRate()
    rate.step_scheduled(0.0, 1000)
    assert rate.tokens_per_s == 0.0
    assert rate.seconds(0, 1000) == 0.0


def test_one_step_gives_its_tokens_per_second():
    rate = PrefillRate()
    step(rate, 10.0, 10.5, 1000)
    assert rate.tokens_per_s == 2000.0
    assert rate.seconds(0, 4000) == 2.0


def test_steps_that_mostly_decode_do_not_count():
    rate = PrefillRate()
    step(rate, 0.0, 1.0, MIN_TOKENS - 1)
    assert rate.tokens_per_s == 0.0
    step(rate, 1.0, 2.0, MIN_TOKENS)
    assert rate.tokens_per_s == MIN_TOKENS


def test_an_overlapping_step_counts_from_the_end_of_the_one_before():
    rate = PrefillRate()
    rate.step_scheduled(0.0, MIN_TOKENS - 1)
    rate.step_scheduled(0.1, 1000)
    rate.step_done(1.0)
    rate.step_done(1.5)
    assert rate.tokens_per_s == pytest.approx(1000 / 0.5)


def test_many_small_steps_do_not_outweigh_a_large_one():
    rate = PrefillRate()
    step(rate, 0.0, 1.0, 8 * MIN_TOKENS)
    for n in range(1, 7):
        step(rate, n, n + 1, MIN_TOKENS)
    assert rate.tokens_per_s == 8 * MIN_TOKENS


@pytest.mark.parametrize("stray_context", [0.0, 20_000.0])
def test_one_stray_step_of_whatever_length_moves_nothing(stray_context):
    rate = PrefillRate()
    steps(rate, WINDOW, 0.0005, 1000, 0.0)
    step(rate, 1e6, 1e6 + 100.0, 1000, stray_context)
    assert rate.tokens_per_s == 2000.0
    assert rate.seconds(0, 30_000) == pytest.approx(15.0)


def test_a_lasting_change_is_followed_within_the_window():
    rate = PrefillRate()
    steps(rate, WINDOW, 0.0005, 1000, 500.0)
    steps(rate, WINDOW // 2 + 1, 0.00025, 1000, 500.0)
    assert rate.tokens_per_s == pytest.approx(4000.0)


def test_tokens_cost_more_the_more_context_they_have():
    rate = PrefillRate()
    for context in (500.0, 3000.0, 12_000.0):
        steps(rate, SETTLED, 1e-4 + 1e-8 * context, 4096, context)
    assert rate.seconds(0, 1000) == pytest.approx(0.1 + 1e-8 * 1000 * 500)
    assert rate.seconds(30_000, 1000) == pytest.approx(0.1 + 1e-8 * 1000 * 30_500)  # longer than any it has seen


def test_a_prompt_costs_what_its_parts_cost():
    rate = PrefillRate(Cost(1e-4, 1e-8, 1000.0))
    parts = rate.seconds(0, 3000) + rate.seconds(3000, 5000)
    assert rate.seconds(0, 8000) == pytest.approx(parts)


def test_a_cost_that_seems_to_fall_with_context_is_taken_as_flat():
    rate = PrefillRate()
    steps(rate, SETTLED, 3e-4, 300, 150.0)  # small steps pay what every step costs
    steps(rate, SETTLED, 1e-4, 4096, 2048.0)
    assert rate.cost is not None
    assert rate.cost.per_context_s == 0.0
    assert rate.tokens_per_s == pytest.approx(10_000, rel=0.15)


def test_no_measurement_makes_a_cost_negative():
    rate = PrefillRate()
    steps(rate, SETTLED, 1e-6, 4096, 1000.0)
    steps(rate, SETTLED, 1e-2, 4096, 1200.0)
    assert rate.cost is not None
    assert min(rate.cost) >= 0.0
    assert rate.seconds(0, 1) >= 0.0


def test_what_an_earlier_engine_measured_stands_until_steps_agree():
    prior = Cost(1e-4, 1e-8, 4000.0)
    rate = PrefillRate(prior)
    steps(rate, SETTLED - 1, 1e-2, 1000, 500.0)  # warming up
    assert rate.cost == prior
    steps(rate, SETTLED, 2e-4, 1000, 500.0)
    assert rate.seconds(0, 1000) == pytest.approx(0.2)


def test_prompts_of_one_length_do_not_make_it_forget_what_context_costs():
    rate = PrefillRate(Cost(1e-4, 1e-8, 4000.0))
    steps(rate, SETTLED, 1.1e-4, 1000, 500.0)
    assert rate.cost is not None
    assert rate.cost.per_context_s == 1e-8


def test_output_without_a_step_out_is_ignored():
    rate = PrefillRate()
    rate.step_done(1.0)
    step(rate, 2.0, 3.0, 500)
    assert rate.tokens_per_s == 500.0


def test_a_clock_that_does_not_move_measures_nothing():
    rate = PrefillRate()
    step(rate, 1.0, 1.0, 500)
    assert rate.tokens_per_s == 0.0


def test_steps_that_never_come_back_are_not_collected():
    rate = PrefillRate()
    for n in range(10 * MAX_STEPS_OUT):
        rate.step_scheduled(float(n), 100)
    assert len(rate._scheduled) == MAX_STEPS_OUT
