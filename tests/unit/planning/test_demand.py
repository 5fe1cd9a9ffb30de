"""Described workloads: Che's approximation against an LRU cache that is really simulated, and prompt lengths."""

from __future__ import annotations

import random
from collections import OrderedDict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtier.errors import ConfigError
from kvtier.planning.demand import Lengths, SharedPrefixes, nested

BASE = SharedPrefixes(
    requests_per_s=5.0,
    lengths=Lengths(1000),
    output_tokens=100,
    n_prefixes=300,
    prefix_tokens=700,
    reuse=0.7,
    zipf=0.9,
)


def lru_hit_rate(demand: SharedPrefixes, capacity: int, n_requests: int = 40_000) -> float:
    """Share of requests that find their prefix, in an LRU cache of whole prefixes and whole one-time rests."""
    rng = random.Random(7)
    weights = [(rank + 1) ** -demand.zipf for rank in range(demand.n_prefixes)]
    picks = iter(rng.choices(range(demand.n_prefixes), weights, k=n_requests))
    cache: OrderedDict[object, int] = OrderedDict()
    used = hits = counted = 0

    def touch(item: object, size: int) -> None:
        nonlocal used
        used += size - cache.pop(item, 0)
        cache[item] = size
        while used > capacity:
            used -= cache.popitem(last=False)[1]

    for number in range(n_requests):
        known = rng.random() < demand.reuse
        prefix = next(picks) if known else ("new", number)
        if number > n_requests // 4:
            counted += 1
            hits += prefix in cache
        touch(("rest", number), int(demand.lengths.mean - demand.prefix_tokens + demand.output_tokens))
        touch(prefix, int(demand.prefix_tokens))
    return hits / counted


@pytest.mark.parametrize("capacity", [20_000, 100_000, 300_000, 1_000_000])
def test_the_hit_rate_is_that_of_an_lru_cache(capacity):
    predicted = sum(o.weight for o in BASE.outcomes(capacity, 0, 0) if o.device)
    assert predicted == pytest.approx(lru_hit_rate(BASE, capacity), abs=0.015)


def test_weights_are_shares_of_all_requests():
    demand = SharedPrefixes(2, Lengths(4000, 9000), 100, 5000, 1000, 0.6, 1.0)
    assert sum(o.weight for o in demand.outcomes(1e5, 1e6, 1e7)) == pytest.approx(1)


def test_grouping_rare_prefixes_changes_next_to_nothing(monkeypatch):
    demand = SharedPrefixes(2, Lengths(4000), 100, 20_000, 1000, 0.6, 0.8)
    grouped = sum(o.weight * o.hit for o in demand.outcomes(2e6, 0, 0))
    monkeypatch.setattr("kvtier.planning.demand._EXACT_RANKS", 20_000)
    assert grouped == pytest.approx(sum(o.weight * o.hit for o in demand.outcomes(2e6, 0, 0)), rel=1e-3)


def test_tiers_of_any_size_find_no_more_than_is_asked_again():
    hit = sum(o.weight * o.hit for o in BASE.outcomes(1e12, 0, 0))
    assert hit == pytest.approx(BASE.reuse * BASE.prefix_tokens, rel=1e-6)


def test_without_reuse_nothing_is_found():
    demand = SharedPrefixes(5, Lengths(1000), 100, 300, 700, 0.0, 0.9)
    assert all(o.hit == 0 for o in demand.outcomes(1e4, 1e5, 1e6))


def test_a_host_tier_no_larger_than_the_device_cache_adds_nothing():
    assert sum(o.weight * o.host for o in BASE.outcomes(100_000, 90_000, 0)) == 0


def test_the_disk_tier_adds_to_what_the_host_tier_holds():
    assert nested(10, 100, 1000) == (10, 100, 1100)
    assert nested(10, 100, 0) == (10, 100, 100)


@pytest.mark.parametrize("p95", [1500, 2500, 3800])
def test_lengths_have_the_mean_and_the_percentile_that_were_asked_for(p95):
    values = Lengths(1000, p95).values()
    assert sum(values) / len(values) == pytest.approx(1000)
    above = sum(value > p95 for value in values) / len(values)
    assert above == pytest.approx(0.05, abs=0.02)


@pytest.mark.parametrize("p95", [900, 1000, 4000])
def test_a_percentile_that_no_such_distribution_has_is_refused(p95):
    with pytest.raises(ConfigError, match="--prompt-tokens: a 95th percentile of"):
        Lengths(1000, p95).values()


def test_short_prompts_share_less_than_the_prefix():
    demand = SharedPrefixes(2, Lengths(1000, 3000), 100, 1, 800, 1.0, 1.0)
    assert all(o.hit <= o.n_tokens - 1 for o in demand.outcomes(1e9, 0, 0))


@settings(max_examples=60)
@given(
    st.builds(
        SharedPrefixes,
        requests_per_s=st.floats(0.01, 100),
        lengths=st.just(Lengths(5000, 9000)),
        output_tokens=st.floats(0, 3000),
        n_prefixes=st.integers(1, 10_000),
        prefix_tokens=st.floats(1, 4000),
        reuse=st.floats(0, 1),
        zipf=st.floats(0, 2.5),
    ),
    st.lists(st.floats(0, 1e9), min_size=4, max_size=4),
)
def test_more_room_never_finds_less_and_shares_stay_shares(demand, sizes):
    device, host, disk, more = sizes
    small, large = demand.outcomes(device, host, disk), demand.outcomes(device, host + more, disk)
    found = [sum(o.weight * o.hit for o in outcomes) for outcomes in (small, large)]
    assert found[1] >= found[0] - 1e-6
    assert sum(o.weight for o in small) == pytest.approx(1)
    assert all(o.weight > 0 and min(o.device, o.host, o.disk) >= 0 for o in small)
    assert found[1] <= demand.reuse * demand.prefix_tokens + 1e-6
