"""A trace as a workload: one pass gives what an LRU cache of any size would have had."""

from __future__ import annotations

import random
from collections import OrderedDict

import pytest

from kvtier.errors import ConfigError
from kvtier.planning.replayed import replayed
from kvtier.sim.trace import Request
from kvtier.types import ChunkKey

CHUNK = 16


def chain(ids, time_s=0.0, n_output=5):
    keys = [ChunkKey(str(i).encode()) for i in ids]
    return Request(time_s, CHUNK * len(keys) + 3, n_output, keys, len(keys))


def read(requests, rate=1.0):
    return replayed("trace", requests, lambda: CHUNK, requests_per_s=rate)


def lru_hits(requests, capacity):
    """Chunks found as a prefix by an LRU list, touched tail first, request by request."""
    cache: OrderedDict[bytes, None] = OrderedDict()
    found = []
    for request in requests:
        hits = 0
        while hits < len(request.keys) and request.keys[hits] in cache:
            hits += 1
        found.append(hits)
        for key in reversed(request.keys):
            cache.pop(key, None)
            cache[key] = None
        while len(cache) > capacity:
            cache.popitem(last=False)
    return found


@pytest.fixture(scope="module")
def conversations():
    """Chains that grow, return and branch."""
    rng, chains, requests = random.Random(3), [[i] for i in range(40)], []
    for number in range(1500):
        grown = rng.choice(chains[-60:])
        longer = grown[: rng.randint(1, len(grown))] + [1000 * number + i for i in range(rng.randint(0, 6))]
        chains.append(longer)
        requests.append(chain(longer, time_s=number / 4))
    return requests


@pytest.mark.parametrize("capacity", [1, 7, 30, 150, 600, 10_000])
def test_every_capacity_gets_what_an_lru_cache_of_that_size_finds(conversations, capacity):
    found = [o.device / CHUNK for o in read(conversations).outcomes(capacity * CHUNK, 0, 0)]
    assert found == lru_hits(conversations, capacity)


def test_tiers_split_what_a_cache_as_large_as_all_of_them_finds(conversations):
    trace = read(conversations)
    whole = trace.outcomes(600 * CHUNK, 0, 0)
    for split, one in zip(trace.outcomes(30 * CHUNK, 100 * CHUNK, 500 * CHUNK), whole, strict=True):
        assert split.hit == one.device
        assert min(split.device, split.host, split.disk) >= 0


def test_the_rate_is_the_traces_own_unless_another_is_given(conversations):
    assert read(conversations, rate=None).requests_per_s == pytest.approx(4, rel=1e-3)
    assert read(conversations, rate=9.0).requests_per_s == 9.0


def test_the_last_token_of_a_prompt_is_always_computed():
    whole = Request(0.0, 2 * CHUNK, 0, chain([1, 2]).keys, 2)
    assert read([whole, whole]).outcomes(1e9, 0, 0)[1].hit == 2 * CHUNK - 1


def test_a_partial_last_chunk_is_not_kept():
    partial = Request(0.0, 2 * CHUNK - 4, 0, chain([1, 2]).keys, 1)
    assert read([partial, partial]).outcomes(1e9, 0, 0)[1].hit == CHUNK


@pytest.mark.parametrize(
    ("requests", "complaint"), [([], "no requests in it"), ([chain([1]), chain([2])], "carry no times: say how many")]
)
def test_a_trace_that_tells_no_load_is_refused(requests, complaint):
    with pytest.raises(ConfigError, match=complaint):
        read(requests, rate=None)
