"""WriteBudget: what may be written in a day, whoever asks and however often they start."""

import json
from collections import deque
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtier.budget import DAY_S, FILE, HOLD_S, LOCK, MIN_GRANT_BYTES, RETRY_S, WriteBudget
from kvtier.files import only_one

GB = 10**9
MB = 10**6


class World:
    """A directory, a wall clock, and what engines were told."""

    def __init__(self, folder: Path, *, per_day: int = 100 * GB, burst: int = 20 * GB) -> None:
        self.folder = folder
        self.now = 1e9
        self.per_day, self.burst = per_day, burst
        self.reports: list[str] = []

    def open(self) -> WriteBudget:
        return WriteBudget(
            self.folder,
            per_day_bytes=self.per_day,
            burst_bytes=self.burst,
            report=self.reports.append,
            clock=lambda: self.now,
        )


def drain(budget: WriteBudget, step: int = 10 * MB) -> int:
    taken = 0
    while budget.take(step):
        taken += step
    return taken


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def test_the_burst_may_be_taken_at_once_and_no_more(world):
    assert drain(world.open()) == world.burst


def test_what_was_taken_comes_back_evenly_over_the_day(world):
    budget = world.open()
    drain(budget)
    world.now += DAY_S / 10
    assert drain(budget) == pytest.approx((world.per_day - world.burst) / 10, rel=0.01)


def test_an_idle_account_holds_no_more_than_the_burst(world):
    budget = world.open()
    world.now += 10 * DAY_S
    assert budget.left_bytes == world.burst
    assert drain(budget) == world.burst


def test_a_restart_finds_what_was_left(world):
    first = world.open()
    assert first.take(15 * GB)
    first.close()
    second = world.open()
    assert second.left_bytes == 5 * GB
    assert drain(second) == 5 * GB


def test_a_killed_engine_takes_its_unused_grant_with_it_and_nothing_is_won(world):
    first = world.open()
    assert first.take(15 * GB)
    left = drain(world.open())
    assert 5 * GB - world.burst // 16 <= left <= 5 * GB


def test_engines_of_one_directory_share_one_budget(world):
    engines = deque([world.open() for _ in range(4)])
    taken = 0
    refused = 0
    while refused < len(engines):
        engines.rotate()
        took = engines[0].take(10 * MB)
        taken += took * 10 * MB
        refused = 0 if took else refused + 1
    assert world.burst - 4 * 10 * MB <= taken <= world.burst


def test_an_engine_that_has_nothing_to_write_keeps_its_grant_from_nobody_for_long(world):
    idle, busy = world.open(), world.open()
    assert idle.take(1)
    drain(busy)
    world.now += HOLD_S + RETRY_S
    assert idle.take(1)  # and returns what it had drawn before
    idle.close()
    world.now += RETRY_S
    assert drain(busy) >= MIN_GRANT_BYTES


def test_what_was_not_written_after_all_may_be_taken_again(world):
    budget = world.open()
    drain(budget)
    budget.give_back(10 * MB)
    assert drain(budget) == 10 * MB


def test_a_clock_that_is_set_back_adds_nothing(world):
    budget = world.open()
    drain(budget)
    world.now -= DAY_S
    assert drain(budget) == 0


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"left_bytes": "x", "at_s": 1}', b'{"left_bytes": NaN, "at_s": 1}']
)
def test_an_account_that_cannot_be_read_begins_empty_and_refills(world, content):
    (world.folder / FILE).write_bytes(content)
    budget = world.open()
    assert drain(budget) == 0
    world.now += DAY_S
    assert drain(budget) > 0


def test_where_no_file_can_be_kept_the_budget_holds_for_the_process(tmp_path):
    world = World(tmp_path / "gone")
    budget = world.open()
    assert drain(budget) == world.burst
    assert len(world.reports) == 1
    assert "disk.write_budget holds for this process alone" in world.reports[0]


def test_what_was_taken_while_the_file_could_not_be_kept_is_charged_once_it_can(tmp_path):
    world = World(tmp_path / "late")
    budget = world.open()
    assert budget.take(15 * GB)
    world.folder.mkdir()
    assert drain(budget) == 5 * GB
    assert json.loads((world.folder / FILE).read_bytes())["left_bytes"] < 10 * MB


def test_a_full_account_costs_no_file_until_something_is_taken(world):
    assert world.open().left_bytes == world.burst
    assert not (world.folder / FILE).exists()


@settings(max_examples=30)
@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.sampled_from([0.5, 30.0, 3600.0, 40_000.0]), st.integers(1, 40), st.booleans()),
        min_size=1,
        max_size=60,
    )
)
def test_no_24_hours_see_more_than_the_budget(tmp_path_factory, steps):
    world = World(tmp_path_factory.mktemp("budget"))
    engines = [world.open() for _ in range(3)]
    written: list[tuple[float, int]] = []
    for engine, wait_s, n_gb, restart in steps:
        world.now += wait_s
        written += [(world.now, GB // 4) for _ in range(n_gb * 4) if engines[engine].take(GB // 4)]
        if restart:
            engines[engine].close()
            engines[engine] = world.open()
    for start, _ in written:
        assert sum(n for at, n in written if start <= at < start + DAY_S) <= world.per_day


def test_a_process_stopped_with_the_account_in_hand_is_not_waited_for_and_nothing_is_written_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("kvtier.budget.LOCK_WAIT_S", 0.02)
    world = World(tmp_path)
    with only_one(tmp_path / LOCK, 1.0):
        budget = world.open()
        assert not budget.take(1000)
    world.now += RETRY_S + 1
    assert budget.take(1000)
    assert world.reports == []
