"""HitLog: when it speaks, when it is silent, and what survives a failing snapshot or emit. No sleeping."""

import json
import queue
import threading

import pytest

from kvtier.observe.hitlog import HitLog, format_line
from kvtier.observe.stats import Gauges, Stats

GAUGES = Gauges(0, 1 << 30, 0, 0, 0, 0, 0, 0, 0.0, 0.0, 1e10, 0, disk_on=False)


class Engine:
    """Counts, a clock and a list of printed lines for one HitLog."""

    def __init__(self, *, every_s: float = 10.0, as_json: bool = False) -> None:
        self.stats = Stats()
        self.now = 0.0
        self.lines: list[str] = []
        self.emit_error: Exception | None = None
        self.snapshot_error: Exception | None = None
        self.log = HitLog(self.snapshot, every_s, as_json, self.emit, clock=lambda: self.now)

    def snapshot(self) -> tuple[Stats, Gauges]:
        if self.snapshot_error:
            raise self.snapshot_error
        return self.stats.copy(), GAUGES

    def emit(self, line: str) -> None:
        if self.emit_error:
            raise self.emit_error
        self.lines.append(line)

    def tick_after(self, seconds: float) -> None:
        self.now += seconds
        self.log.tick()


def test_line_is_about_the_interval_and_not_the_total() -> None:
    engine = Engine()
    engine.stats.requests += 3
    engine.tick_after(10)
    engine.stats.requests += 2
    engine.tick_after(11)
    assert engine.lines == [format_line(Stats(requests=3), GAUGES, 10), format_line(Stats(requests=2), GAUGES, 11)]


def test_idle_interval_is_silent() -> None:
    engine = Engine()
    engine.tick_after(10)
    assert engine.lines == []


@pytest.mark.parametrize("field", ["asked_tokens", "spill_raw_bytes", "promote_raw_bytes", "engine_errors", "tier_off"])
def test_tokens_bytes_and_errors_each_end_the_silence(field: str) -> None:
    engine = Engine()
    setattr(engine.stats, field, 1)
    engine.tick_after(10)
    assert len(engine.lines) == 1


def test_line_after_idle_time_covers_its_own_interval_only() -> None:
    engine = Engine()
    engine.tick_after(3_600)
    engine.stats.requests += 1
    engine.tick_after(10)
    assert engine.lines == [format_line(Stats(requests=1), GAUGES, 10)]


def test_json_is_one_line_that_parses() -> None:
    engine = Engine(as_json=True)
    engine.stats.requests += 1
    engine.tick_after(10)
    assert [json.loads(line)["requests"] for line in engine.lines] == [1]


@pytest.mark.parametrize("broken", ["emit_error", "snapshot_error"])
def test_failure_is_counted_and_the_next_line_covers_the_lost_interval(broken: str) -> None:
    engine = Engine()
    engine.stats.requests += 1
    setattr(engine, broken, OSError("gone"))
    engine.tick_after(10)
    setattr(engine, broken, None)
    engine.stats.requests += 1
    engine.tick_after(10)
    assert engine.lines == [format_line(Stats(requests=2), GAUGES, 20)]
    assert engine.log.failures == 1
    assert isinstance(engine.log.last_error, OSError)


def test_stop_prints_what_is_left() -> None:
    engine = Engine(every_s=3_600)
    engine.log.start()
    engine.stats.requests += 1
    engine.log.stop()
    assert engine.lines == [format_line(Stats(requests=1), GAUGES, 0)]


def test_stop_ends_the_thread_without_waiting_for_the_interval() -> None:
    engine = Engine(every_s=3_600)
    before = threading.active_count()
    engine.log.start()
    assert threading.active_count() == before + 1
    engine.log.stop()
    assert threading.active_count() == before


def test_second_start_and_second_stop_do_nothing() -> None:
    engine = Engine(every_s=3_600)
    before = threading.active_count()
    engine.log.start()
    engine.log.start()
    assert threading.active_count() == before + 1
    engine.stats.requests += 1
    engine.log.stop()
    engine.log.stop()
    assert len(engine.lines) == 1


def test_interval_zero_is_off() -> None:
    engine = Engine(every_s=0)
    before = threading.active_count()
    engine.log.start()
    assert threading.active_count() == before
    engine.stats.requests += 1
    engine.log.stop()
    assert engine.lines == []


def test_thread_goes_on_printing_after_a_failure() -> None:
    lines: queue.Queue[str] = queue.Queue()
    calls = iter(range(10_000))

    def snapshot() -> tuple[Stats, Gauges]:
        call = next(calls)
        if call == 0:
            raise RuntimeError("first one fails")
        return Stats(requests=call), GAUGES

    log = HitLog(snapshot, 0.001, json=False, emit=lines.put)
    log.start()
    first, second = lines.get(timeout=30), lines.get(timeout=30)
    log.stop()
    assert (" req 1 " in first, " req 1 " in second, log.failures) == (True, True, 1)
