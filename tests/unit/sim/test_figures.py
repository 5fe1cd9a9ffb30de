"""Published hit rates: the replay of two real traces gives them, to +-0.0005. docs/policies.md has the tables."""

from itertools import product
from pathlib import Path

import pytest

from kvtier.sim.policies import Pair
from kvtier.sim.replay import OPTIMAL, Result, Rules, Setup, replay
from kvtier.sim.source import open_trace
from kvtier.sim.tally import DISK, ratio

TRACES = Path(__file__).parents[3] / ".." / "shared" / "traces"
TOLERANCE = 0.0005

CAPACITIES = {
    "conversation": (1_000, 3_000, 10_000, 30_000, 50_000, 100_000),
    "synthetic": (1_000, 3_000, 10_000, 30_000),
}
PUBLISHED = {
    ("conversation", "lru"): (0.0445, 0.0653, 0.2116, 0.3257, 0.3546, 0.3637),
    ("conversation", "slru-g30"): (0.0579, 0.0931, 0.2283, 0.3277, 0.3554, 0.3631),
    ("conversation", OPTIMAL): (0.1907, 0.2945, 0.3664, 0.3664, 0.3664, 0.3664),
    ("synthetic", "lru"): (0.0841, 0.1906, 0.4239, 0.6242),
    ("synthetic", "slru-g30"): (0.0885, 0.2015, 0.4363, 0.6260),
    ("synthetic", OPTIMAL): (0.2767, 0.4467, 0.6180, 0.6396),
}
UNBOUNDED = {"conversation": 0.3664, "synthetic": 0.6396}
TOKENS_OF_LRU_AT_10K = {"conversation": 0.2157}
MEAN_OF_REQUESTS_UNBOUNDED = {"conversation": 0.3843, "synthetic": 0.4232}


def run(name: str, setups: list[Setup], rules: Rules) -> Result:
    path = TRACES / f"{name}_trace.jsonl"
    if not path.exists():
        pytest.skip(f"the {name} trace is not beside this checkout (shared/traces)")
    with open_trace(str(path)) as trace:
        return replay(trace, trace.tokens_per_chunk, setups, rules)


@pytest.fixture(scope="module", params=["conversation", "synthetic"])
def single_tier(request) -> tuple[str, Result]:
    policies = [Pair.parse("lru"), Pair.parse("slru-g30")]
    setups = [Setup(n, 0, policy) for n, policy in product(CAPACITIES[request.param], policies)]
    return request.param, run(request.param, setups, Rules(keep_partial=True))


def test_block_hit_rates_of_one_tier_are_the_published_ones(single_tier):
    name, result = single_tier
    got = {(row.name, row.n_host): row.tally.block_hit_rate for row in result.rows}
    for (trace, policy), rates in PUBLISHED.items():
        if trace == name:
            assert [got[policy, n] for n in CAPACITIES[name]] == pytest.approx(rates, abs=TOLERANCE), policy
    assert result.unbounded.block_hit_rate == pytest.approx(UNBOUNDED[name], abs=TOLERANCE)


def test_token_and_request_hit_rates_are_the_published_ones(single_tier):
    name, result = single_tier
    lru = next(row.tally for row in result.rows if (row.name, row.n_host) == ("lru", 10_000))
    if name in TOKENS_OF_LRU_AT_10K:
        assert lru.token_hit_rate == pytest.approx(TOKENS_OF_LRU_AT_10K[name], abs=TOLERANCE)
    assert result.unbounded.request_hit_rate == pytest.approx(MEAN_OF_REQUESTS_UNBOUNDED[name], abs=TOLERANCE)


@pytest.mark.parametrize(
    ("name", "n_host", "total", "writes_per_read"),
    [
        ("synthetic", 1_000, 0.4520, 1.4),
        ("conversation", 1_000, 0.2386, 4.0),
        ("conversation", 3_000, 0.3336, 2.6),
    ],
)
def test_two_tiers_give_the_published_total_and_writes(name, n_host, total, writes_per_read):
    setup = Setup(n_host, 10 * n_host, Pair.parse("slru-g30"))
    tally = run(name, [setup], Rules(keep_partial=False)).rows[0].tally
    assert tally.block_hit_rate == pytest.approx(total, abs=TOLERANCE)
    assert tally.writes_per_read == pytest.approx(writes_per_read, abs=0.05)
    assert ratio(tally.hit_blocks[DISK], tally.blocks) > 0.15


@pytest.mark.parametrize("policy", ["lru", "slru-g30"])
def test_one_tier_of_the_production_cache_does_the_same_on_a_real_trace(policy):
    setup = Setup(3_000, 0, Pair.parse(policy))
    direct = run("synthetic", [setup], Rules(keep_partial=True)).rows[0].tally
    cache = run("synthetic", [setup], Rules(keep_partial=True, production_cache=True)).rows[0].tally
    if policy == "lru":
        assert cache == direct
    else:  # it uses the blocks that hit before the others, not tail first throughout
        assert cache.block_hit_rate == pytest.approx(direct.block_hit_rate, abs=2 * TOLERANCE)
