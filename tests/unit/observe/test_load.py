"""LoadRate and CopyRate: what it takes to bring KV up, measured while serving."""

import pytest

from kvtier.observe.load import (
    COPY_PRIOR_BYTES_PER_S,
    MIN_COPY_BYTES,
    SAMPLE_BYTES,
    SAMPLE_S,
    WINDOW,
    CopyRate,
    LoadRate,
)

CHUNK = 1 << 20
PER_SAMPLE = SAMPLE_BYTES // CHUNK


def loads(rate: LoadRate, chunk_s: float, n: int = PER_SAMPLE, begins_s: float = 0.0) -> None:
    """`n` chunks, one after the other."""
    for i in range(n):
        rate.started(begins_s + i * chunk_s)
        rate.ended(begins_s + (i + 1) * chunk_s, CHUNK)


def test_nothing_is_known_before_the_first_load():
    assert LoadRate().bytes_per_s == 0.0


def test_parallel_loads_count_by_what_lands_per_busy_second():
    rate = LoadRate()
    for _ in range(PER_SAMPLE):
        rate.started(0.0)
    for i in range(PER_SAMPLE):
        rate.ended(0.001 * (i + 1), CHUNK)
    assert rate.bytes_per_s == pytest.approx(1000 * CHUNK)


def test_the_wait_in_the_queue_counts():
    rate = LoadRate()
    rate.started(0.0)
    rate.ended(SAMPLE_S * 2, CHUNK)  # however long of that it waited for a thread
    assert rate.bytes_per_s == pytest.approx(CHUNK / (SAMPLE_S * 2))


def test_idle_time_between_loads_does_not_count():
    rate = LoadRate()
    for i in range(PER_SAMPLE):
        loads(rate, 0.001, n=1, begins_s=i * 60.0)
    assert rate.bytes_per_s == pytest.approx(1000 * CHUNK)


def test_failed_loads_take_time_and_land_nothing():
    rate = LoadRate()
    for i in range(2 * PER_SAMPLE):
        rate.started(i * 0.001)
        rate.ended((i + 1) * 0.001, CHUNK * (i % 2))
    assert rate.bytes_per_s == pytest.approx(500 * CHUNK)


def test_a_slow_disk_is_noticed_by_the_first_chunk():
    rate = LoadRate()
    loads(rate, 1.0, n=1)
    assert rate.bytes_per_s == CHUNK


def test_a_probe_is_not_credited_with_a_burst_that_landed_before_it():
    """Scenario: after a stall all that was under way lands at once, too quickly to be a sample. The disk stays slow."""
    rate = LoadRate()
    for _ in range(10):
        rate.started(0.0)
    for _ in range(10):
        rate.ended(1.0, CHUNK)  # the first of them is a sample
    rate.started(5.0, alone=True)
    rate.ended(6.0, CHUNK, alone=True)
    assert rate.bytes_per_s == pytest.approx(CHUNK)
    assert not rate.got_faster


def test_one_stray_sample_moves_nothing():
    rate = LoadRate()
    loads(rate, 0.001, n=WINDOW * PER_SAMPLE)
    loads(rate, 5.0, n=1, begins_s=100.0)
    assert rate.bytes_per_s == pytest.approx(1000 * CHUNK)
    assert not rate.got_faster


def test_a_disk_that_is_faster_than_it_was_is_news():
    rate = LoadRate()
    loads(rate, 1.0, n=3)
    loads(rate, 0.5, n=1)
    assert rate.got_faster


def test_who_waited_in_vain_says_more_than_all_samples_before():
    rate = LoadRate()
    loads(rate, 0.001, n=WINDOW * PER_SAMPLE)
    rate.no_faster_than(2.0 / CHUNK)
    assert rate.bytes_per_s == pytest.approx(CHUNK / 2)
    rate.no_faster_than(1.0 / CHUNK)
    assert rate.bytes_per_s == pytest.approx(CHUNK / 2)
    loads(rate, 3.0, n=1, begins_s=100.0)
    assert rate.bytes_per_s == pytest.approx(CHUNK / 3)


def test_three_samples_that_agree_are_followed():
    rate = LoadRate()
    loads(rate, 0.001, n=WINDOW * PER_SAMPLE)
    loads(rate, 1.0, n=3, begins_s=100.0)
    assert rate.bytes_per_s == CHUNK


def test_a_probe_is_believed_until_loads_tell_otherwise():
    rate = LoadRate()
    rate.assume(1000.0 * CHUNK)
    assert rate.bytes_per_s == pytest.approx(1000 * CHUNK)
    loads(rate, 1.0, n=1)
    assert rate.bytes_per_s == CHUNK  # of two that differ the slower one


def test_a_probe_that_ends_after_the_first_loads_says_nothing_new():
    rate = LoadRate()
    loads(rate, 0.001)
    rate.assume(1.0)
    assert rate.bytes_per_s == pytest.approx(1000 * CHUNK)


def test_copies_have_a_prior_and_then_a_median():
    rate = CopyRate()
    assert rate.bytes_per_s == pytest.approx(COPY_PRIOR_BYTES_PER_S)
    for took_s in (0.5, 0.5, 60.0):
        rate.copied(CHUNK, took_s)
    assert rate.bytes_per_s == pytest.approx(2 * CHUNK)


def test_copies_too_small_to_tell_do_not_count():
    rate = CopyRate()
    rate.copied(MIN_COPY_BYTES - 1, 1.0)
    assert rate.bytes_per_s == pytest.approx(COPY_PRIOR_BYTES_PER_S)
