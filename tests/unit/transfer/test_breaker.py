from kvtier.transfer.breaker import FIRST_PAUSE_S, LONGEST_PAUSE_S, TRIP_AFTER, Breaker


def tripped(now_s: float = 0.0) -> Breaker:
    breaker = Breaker()
    for _ in range(TRIP_AFTER - 1):
        assert not breaker.failed(now_s)
    assert breaker.failed(now_s)
    return breaker


def test_a_new_breaker_allows():
    assert Breaker().allows(0.0)


def test_failures_in_a_row_switch_off_for_the_first_pause():
    breaker = tripped(100.0)
    assert not breaker.allows(100.0 + FIRST_PAUSE_S * 0.99)
    assert breaker.allows(100.0 + FIRST_PAUSE_S)


def test_a_success_forgives_the_failures_before():
    breaker = Breaker()
    for _ in range(10):
        breaker.failed(0.0)
        breaker.succeeded()
    assert breaker.allows(0.0)


def test_one_more_failure_after_the_pause_switches_off_for_twice_as_long():
    breaker = tripped(0.0)
    now = FIRST_PAUSE_S
    assert breaker.failed(now)
    assert not breaker.allows(now + FIRST_PAUSE_S * 1.99)
    assert breaker.allows(now + FIRST_PAUSE_S * 2)


def test_calls_that_fail_while_it_is_off_do_not_make_the_pause_longer():
    breaker = tripped(0.0)
    for _ in range(20):
        assert not breaker.failed(0.5)
    assert breaker.allows(FIRST_PAUSE_S)
    assert breaker.failed(FIRST_PAUSE_S)
    assert breaker.allows(FIRST_PAUSE_S * 3)


def test_pauses_grow_to_the_longest_and_no_further():
    breaker, now = tripped(0.0), 0.0
    for _ in range(20):
        now += LONGEST_PAUSE_S
        assert breaker.failed(now)
    assert not breaker.allows(now + LONGEST_PAUSE_S * 0.99)
    assert breaker.allows(now + LONGEST_PAUSE_S)


def test_after_a_success_the_pause_is_short_again():
    breaker = tripped(0.0)
    breaker.failed(FIRST_PAUSE_S)
    breaker.succeeded()
    for _ in range(TRIP_AFTER):
        breaker.failed(100.0)
    assert breaker.allows(100.0 + FIRST_PAUSE_S)
