"""Timing in turns: rounds that begin with another work each, and ratios that a slow spell does not bend."""

import pytest

from kvtier.bench.base import Timings, Work, time_in_turns


def test_every_round_runs_every_work_and_begins_with_another():
    ran = []
    timings = time_in_turns({name: lambda name=name: ran.append(name) for name in "abc"}, 3)
    assert "".join(ran) == "cab" + "abc" + "bca" + "cab"  # the first is off the clock
    assert {name: len(seconds) for name, seconds in timings.seconds.items()} == {"a": 3, "b": 3, "c": 3}


def test_preparing_is_off_the_clock_and_what_comes_after_happens_even_after_an_error():
    order = []

    def fail():
        order.append("run")
        raise ValueError("the disk is gone")

    with pytest.raises(ValueError, match="the disk is gone"):
        time_in_turns(
            {"a": Work(fail, prepare=lambda: order.append("prepare"), after=lambda: order.append("after"))}, 1
        )
    assert order == ["prepare", "run", "after"]


def test_a_slow_round_that_hits_both_arms_leaves_their_ratio_alone():
    timings = Timings({"ours": [1.0, 9.0, 1.0], "peer": [2.0, 18.0, 2.0]})
    assert timings.speedup("ours", "peer") == 2
    assert timings.rate("ours", 3_000_000_000) == 3
