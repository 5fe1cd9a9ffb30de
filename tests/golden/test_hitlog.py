"""The hit-rate log line and its JSON form, word for word. Run this file itself to write the golden files anew."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from kvtier.observe.hitlog import format_json, format_line
from kvtier.observe.stats import NEVER_TOKENS, Gauges, Stats

GOLDEN = Path(__file__).parent / "hitlog"
GIB = 1 << 30

SERVING = Stats(
    requests=12,
    asked_tokens=48_200,
    hit_tokens=[9_688, 21_690, 7_808],
    miss_tokens=[8_628, 386, 0, 0, 0, 0],
    offload_bytes=1_288_490_188,
    onload_bytes=800 << 20,
    spill_raw_bytes=512 << 20,
    spill_stored_bytes=353 << 20,
    promote_raw_bytes=300 << 20,
    promote_stored_bytes=207 << 20,
    offloaded_chunks=420,
    spilled_chunks=171,
    promoted_chunks=100,
    host_evicted_chunks=98,
    disk_evicted_chunks=3,
)
WARM = Gauges(
    host_used_bytes=3_328_599_654,
    host_capacity_bytes=4 * GIB,
    disk_used_bytes=21 * GIB,
    disk_capacity_bytes=100 * GIB,
    disk_raw_bytes=30 * GIB,
    disk_stored_bytes=22_215_807_326,
    spill_backlog=12,
    promote_backlog=2,
    prefill_tokens_per_s=1_378.04,
    load_bytes_per_s=2_040_109_465.0,
    onload_bytes_per_s=2.4e10,
    load_pays_from_tokens=256,
    disk_on=True,
)
OFF = Gauges(0, 0, 0, 0, 0, 0, 0, 0, 0.0, 0.0, 1e10, 0, disk_on=False)

CASES = {
    "serving": (SERVING, WARM, 10.004),
    "all_zero": (Stats(), OFF, 10.0),
    "bytes_moved_without_requests": (
        Stats(spill_raw_bytes=3 << 20, spill_stored_bytes=2 << 20, spilled_chunks=1),
        replace(WARM, prefill_tokens_per_s=0.0),
        10.0,
    ),
    "disk_off": (
        replace(SERVING, hit_tokens=[9_688, 29_498, 0], spill_raw_bytes=0, promote_raw_bytes=0),
        replace(WARM, disk_on=False, disk_used_bytes=0, disk_raw_bytes=0, disk_stored_bytes=0, spill_backlog=0),
        10.0,
    ),
    "every_miss_and_every_trouble": (
        Stats(
            requests=7,
            asked_tokens=10_000,
            hit_tokens=[0, 1, 0],
            miss_tokens=[1_999, 1_500, 2_500, 1_000, 2_000, 1_000],
            store_refused_chunks=2,
            host_dropped_chunks=1,
            over_budget_chunks=9,
            spill_failed_chunks=3,
            corrupt_frames=4,
            foreign_frames=5,
            load_errors=6,
            tier_off=7,
            helper_restarts=10,
            gave_up_requests=9,
            engine_errors=8,
        ),
        replace(WARM, disk_on=False),
        0.5,
    ),
    "huge": (
        Stats(
            requests=123_456_789,
            asked_tokens=987_654_321_012,
            hit_tokens=[300_000_000_000, 400_000_000_000, 200_000_000_000],
            miss_tokens=[87_654_321_012, 0, 0, 0, 0, 0],
            offload_bytes=1 << 60,
            onload_bytes=(1 << 50) - 1,
            spill_raw_bytes=(1 << 40) - 1,
            promote_raw_bytes=1023,
        ),
        Gauges(
            (1 << 40) - 1,
            1 << 40,
            20 << 40,
            30 << 40,
            30 << 40,
            20 << 40,
            999_950,
            0,
            1e6,
            1e12,
            1e12,
            NEVER_TOKENS,
            disk_on=True,
        ),
        3_600.26,
    ),
}


def written(name: str) -> str:
    case = CASES[name]
    return f"{format_line(*case)}\n{format_json(*case)}\n"


@pytest.mark.parametrize("name", CASES)
def test_line_and_json_are_as_frozen(name: str) -> None:
    assert written(name) == (GOLDEN / f"{name}.txt").read_text()


def test_every_golden_file_has_a_case() -> None:
    assert {path.stem for path in GOLDEN.iterdir()} == set(CASES)


def test_columns_stay_where_they_are_whatever_the_numbers() -> None:
    column_of = {column: word for column, word in enumerate(format_line(*CASES["serving"]).split()) if word.isalpha()}
    for name, case in CASES.items():
        words = format_line(*case).split()
        assert {column: words[column] for column in column_of} == column_of, name


def test_usual_line_is_short_enough_to_read() -> None:
    assert len(format_line(*CASES["serving"])) <= 310


def test_json_carries_every_field_of_stats_and_gauges() -> None:
    stats, gauges, seconds = CASES["serving"]
    keys = json.loads(format_json(stats, gauges, seconds)).keys()
    assert (asdict(stats).keys() | asdict(gauges).keys()) <= keys


def test_json_key_order_is_the_same_for_every_interval() -> None:
    orders = {tuple(json.loads(format_json(*case))) for case in CASES.values()}
    assert len(orders) == 1


if __name__ == "__main__":
    for case_name in CASES:
        (GOLDEN / f"{case_name}.txt").write_text(written(case_name))
