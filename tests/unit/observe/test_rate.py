import pytest

from kvtier.observe.rate import MAX_STEPS_OUT, MIN_TOKENS, WINDOW, PrefillRate


def step(rate: PrefillRate, begins_s: float, ends_s: float, n_tokens: int) -> None:
    rate.step_scheduled(begins_s, n_tokens)
    rate.step_done(ends_s)


def test_it_is_zero_until_measured():
    rate = PrefillRate()
    rate.step_scheduled(0.0, 1000)
    assert rate.tokens_per_s == 0.0


def test_one_step_gives_its_tokens_per_second():
    rate = PrefillRate()
    step(rate, 10.0, 10.5, 1000)
    assert rate.tokens_per_s == 2000.0


def test_steps_that_mostly_decode_do_not_count():
    rate = PrefillRate()
    step(rate, 0.0, 1.0, MIN_TOKENS - 1)
    assert rate.tokens_per_s == 0.0
    step(rate, 1.0, 2.0, MIN_TOKENS)
    assert rate.tokens_per_s == MIN_TOKENS


def test_an_overlapping_step_counts_from_the_end_of_the_one_before():
    rate = PrefillRate()
    rate.step_scheduled(0.0, MIN_TOKENS)
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


def test_one_stray_step_does_not_move_the_median():
    rate = PrefillRate()
    for n in range(9):
        step(rate, n, n + 0.5, 1000)
    step(rate, 100.0, 200.0, 1000)
    assert rate.tokens_per_s == 2000.0


def test_a_lasting_change_is_followed_within_the_window():
    rate = PrefillRate()
    for n in range(WINDOW):
        step(rate, n, n + 0.5, 1000)
    for n in range(WINDOW, WINDOW + WINDOW // 2 + 1):
        step(rate, n, n + 0.25, 1000)
    assert rate.tokens_per_s == 4000.0


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
