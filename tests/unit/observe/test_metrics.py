"""The metric table: complete, well named, and it reads what it says it reads."""

import re
from dataclasses import fields
from itertools import count

import pytest

from kvtier.observe.metrics import METRICS, Kind, Metric
from kvtier.observe.stats import Gauges, Stats
from kvtier.types import Miss, Source

COUNTERS = [metric for metric in METRICS if metric.kind is Kind.COUNTER]
GAUGES = [metric for metric in METRICS if metric.kind is Kind.GAUGE]


def numbered() -> tuple[Stats, Gauges]:
    """Another number in every place, 1 for the only flag."""
    numbers = count(2)
    stats = Stats()
    for field in fields(stats):
        value = getattr(stats, field.name)
        setattr(stats, field.name, [next(numbers) for _ in value] if isinstance(value, list) else next(numbers))
    return stats, Gauges(**{f.name: True if f.name == "disk_on" else next(numbers) for f in fields(Gauges)})


def test_every_field_of_stats_has_its_counter() -> None:
    assert [metric.name for metric in COUNTERS] == [f"kvtier_{field.name}_total" for field in fields(Stats)]


def test_every_field_of_gauges_has_its_gauge() -> None:
    assert [metric.name for metric in GAUGES] == [f"kvtier_{field.name}" for field in fields(Gauges)]


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_metric_reads_the_field_it_is_named_after(metric: Metric) -> None:
    stats, gauges = numbered()
    field = metric.name.removeprefix("kvtier_").removesuffix("_total")
    value = getattr(stats if metric.kind is Kind.COUNTER else gauges, field)
    assert [number for _, number in metric.read(stats, gauges)] == (value if isinstance(value, list) else [value])


def test_label_values_are_the_names_of_sources_and_misses() -> None:
    by_name = {metric.name: [labels for labels, _ in metric.read(*numbered())] for metric in METRICS if metric.labels}
    assert by_name == {
        "kvtier_hit_tokens_total": [(source.name.lower(),) for source in Source],
        "kvtier_miss_tokens_total": [(miss.name.lower(),) for miss in Miss],
    }


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_name_and_documentation_follow_prometheus_conventions(metric: Metric) -> None:
    assert re.fullmatch(r"kvtier_[a-z][a-z0-9_]*", metric.name)
    assert metric.name.endswith("_total") == (metric.kind is Kind.COUNTER)
    assert metric.documentation.endswith(".")


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_numbers_are_never_bool(metric: Metric) -> None:
    assert all(type(number) in (int, float) for _, number in metric.read(*numbered()))
