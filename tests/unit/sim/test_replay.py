"""Replay: what each simulator counts, against traces small enough to count by hand and a brute-force optimum."""

import random
from functools import cache as memoized
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtier.sim.policies import Pair
from kvtier.sim.replay import OPTIMAL, UNBOUNDED, Result, Rules, Setup, replay
from kvtier.sim.source import open_trace
from kvtier.sim.tally import DISK, HOST, Tally
from kvtier.sim.tiered import TieredReplay
from kvtier.sim.trace import NAMESPACE, Request
from kvtier.types import ChunkKey

EXAMPLE = Path(__file__).parents[3] / "examples" / "trace.jsonl"
KEEP = Rules(keep_partial=True)
SKIP = Rules(keep_partial=False)
LRU = Pair.parse("lru")
SLRU = Pair.parse("slru-g30")

chats = st.lists(st.text("ab", min_size=1, max_size=4), max_size=9)


def request(text: str, *, tokens_per_chunk: int = 10, n_tokens: int | None = None) -> Request:
    """Every letter is a chunk, chained: its key stands for all letters before it."""
    keys = [ChunkKey(NAMESPACE + text[: i + 1].encode()) for i in range(len(text))]
    n_tokens = len(text) * tokens_per_chunk if n_tokens is None else n_tokens
    return Request(0.0, n_tokens, 0, keys, n_tokens // tokens_per_chunk)


def run(texts: list[str] | str, *setups: Setup, rules: Rules = KEEP) -> Result:
    texts = texts.split() if isinstance(texts, str) else texts
    return replay([request(text) for text in texts], 10, setups, rules)


def hits(result: Result) -> dict[str, int]:
    return {row.name: sum(row.tally.hit_blocks) for row in result.rows}


def best_possible(texts: list[str], capacity: int) -> int:
    """Hits of the best choice, trying every set of blocks to keep after every request."""

    @memoized
    def best(index: int, kept: frozenset[str]) -> int:
        if index == len(texts):
            return 0
        blocks = [texts[index][: i + 1] for i in range(len(texts[index]))]
        n_hit = next((i for i, block in enumerate(blocks) if block not in kept), len(blocks))
        choices = {kept | set(blocks)}
        while any(len(choice) > capacity for choice in choices):
            choices = {
                choice - {block} if len(choice) > capacity else choice
                for choice in choices
                for block in (choice if len(choice) > capacity else [""])
            }
        return n_hit + max(best(index + 1, frozenset(choice)) for choice in choices)

    return best(0, frozenset())


def test_a_prompt_seen_before_hits_as_far_as_it_is_the_same():
    assert hits(run("abc abd", Setup(10, 0, LRU))) == {"lru": 2, OPTIMAL: 2, UNBOUNDED: 2}


def test_of_a_chain_that_does_not_fit_the_head_stays():
    assert hits(run("abcd abcd", Setup(2, 0, LRU)))["lru"] == 2


def test_the_longest_unused_chain_leaves_first():
    result = run("ab cd ab ef ab cd", Setup(4, 0, LRU))
    assert hits(result) == {"lru": 4, OPTIMAL: 6, UNBOUNDED: 6}


def test_a_hole_ends_the_prefix():
    head, tail = request("a").keys, request("ab").keys[1:]
    asked = [Request(0.0, 10, 0, tail, 1), request("c"), request("ab")]
    assert head[0] not in tail
    assert sum(replay(asked, 10, [Setup(9, 0, LRU)], KEEP).rows[0].tally.hit_blocks) == 0


@settings(max_examples=150)
@given(chats, st.integers(1, 5))
def test_the_optimum_is_what_trying_everything_finds(texts: list[str], capacity: int):
    assert hits(run(texts, Setup(capacity, 0, LRU)))[OPTIMAL] == best_possible(texts, capacity)


@given(st.lists(st.text("abc", min_size=1, max_size=6), max_size=40), st.integers(1, 12))
def test_no_policy_beats_the_optimum_and_the_optimum_not_the_unbounded(texts: list[str], capacity: int):
    got = hits(run(texts, Setup(capacity, 0, LRU), Setup(capacity, 0, SLRU)))
    assert max(got["lru"], got["slru-g30"]) <= got[OPTIMAL] <= got[UNBOUNDED]


@given(st.lists(st.text("abc", min_size=1, max_size=6), max_size=40), st.integers(6, 16))
def test_the_fast_path_counts_as_the_production_cache_does(texts: list[str], capacity: int):
    setup = Setup(capacity, 0, LRU)
    fast, production = run(texts, setup), run(texts, setup, rules=Rules(keep_partial=True, production_cache=True))
    assert fast.rows[0].tally == production.rows[0].tally


@given(
    st.lists(st.text("abc", min_size=1, max_size=6), max_size=40),
    st.integers(1, 12),
    st.integers(0, 20),
    st.sampled_from([Rules(keep_partial=True), Rules(keep_partial=False, deployed=True, write_behind_after_s=0.0)]),
)
def test_the_production_cache_stays_consistent_and_below_the_unbounded(
    texts: list[str], n_host: int, n_disk: int, rules: Rules
):
    tally = Tally(10)
    simulator = Setup(n_host, n_disk, SLRU).make(tally, rules)
    for text in texts:
        simulator.request(request(text))
        if isinstance(simulator, TieredReplay):
            simulator.cache.check()
    assert tally.block_hit_rate <= run(texts, rules=rules).unbounded.block_hit_rate


def test_what_host_spilled_hits_on_disk_and_keeps_its_copy_there():
    tally = run("abcd efgh ijkl abcd efgh ijkl", Setup(8, 100, LRU)).rows[0].tally
    assert tally.hit_blocks == [0, 12]
    assert (tally.written_blocks, tally.rewritten_blocks, tally.dropped_blocks) == (12, 0, 0)


def test_a_partial_tail_counts_as_asked_and_hits_only_where_it_is_kept():
    requests = [request("abc", n_tokens=25), request("abc", n_tokens=25)]
    kept = replay(requests, 10, [Setup(10, 0, LRU)], KEEP).rows[0].tally
    skipped = replay(requests, 10, [Setup(10, 0, LRU)], SKIP).rows[0].tally
    assert (kept.hit_blocks[HOST], kept.hit_tokens[HOST], kept.blocks, kept.tokens) == (3, 25, 6, 50)
    assert (skipped.hit_blocks[HOST], skipped.hit_tokens[HOST], skipped.blocks, skipped.tokens) == (2, 20, 6, 50)


def test_tokens_of_a_partial_tail_are_those_of_the_tier_it_came_from():
    tally = Tally(10)
    tally.count(25, 3, 2, 1, last=DISK)
    tally.count(25, 3, 1, 2, last=HOST)
    assert tally.hit_blocks == [3, 3]
    assert tally.hit_tokens == [20 + 5, 5 + 20]


def test_rates_of_requests_are_means_over_requests():
    tally = run("ab abcd x", Setup(10, 0, LRU)).rows[0].tally
    assert tally.request_hit_rate == pytest.approx(0.5 / 3)
    assert tally.any_hit_requests == 1
    assert tally.block_hit_rate == pytest.approx(2 / 7)


def test_a_block_twice_in_one_request_is_no_trouble():
    keys = [*request("ab").keys, request("a").keys[0]]
    twice = Request(0.0, 30, 0, keys, 3)
    result = replay([twice, twice], 10, [Setup(8, 0, LRU), Setup(8, 80, LRU)], KEEP)
    assert [sum(row.tally.hit_blocks) for row in result.rows[:2]] == [3, 3]


def test_a_replay_does_not_depend_on_the_other_setups_of_its_sweep():
    with open_trace(str(EXAMPLE)) as trace:
        requests = list(trace)
    setups = [Setup(n, 0, policy) for n in (30, 100) for policy in (LRU, SLRU)] + [Setup(100, 1000, SLRU)]
    together = replay(requests, 512, setups, KEEP)
    for setup, row in zip(setups, together.rows, strict=False):
        assert replay(requests, 512, [setup], KEEP).rows[0] == row


@pytest.mark.parametrize(
    ("policy", "n_host", "rate"),
    [
        ("lru", 30, 0.3508),
        ("slru-g30", 30, 0.3890),
        ("lru", 300, 0.7494),
        (OPTIMAL, 30, 0.5211),
        (OPTIMAL, 100, 0.6890),
    ],
)
def test_the_example_trace_has_the_hit_rates_that_its_page_tells(policy: str, n_host: int, rate: float):
    with open_trace(str(EXAMPLE)) as trace:
        setups = [Setup(n, 0, pair) for n in (30, 100, 300) for pair in (LRU, SLRU)]
        result = replay(trace, trace.tokens_per_chunk, setups, KEEP)
    got = {(row.name, row.n_host): row.tally.block_hit_rate for row in result.rows}
    assert got[policy, n_host] == pytest.approx(rate, abs=0.00005)


def test_the_future_is_the_same_from_a_file_as_from_memory(monkeypatch: pytest.MonkeyPatch):
    rng = random.Random(1)
    texts = ["".join(rng.choice("abc") for _ in range(rng.randrange(1, 9))) for _ in range(200)]
    in_memory = hits(run(texts, Setup(20, 0, LRU)))
    monkeypatch.setattr("kvtier.sim.optimal._IN_MEMORY_BYTES", 100)
    assert hits(run(texts, Setup(20, 0, LRU))) == in_memory
