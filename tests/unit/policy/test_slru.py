"""Slru: against a list model, and its published hit rates on real traces."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtier.policy.slru import Slru
from kvtier.types import ChunkKey

TRACES = Path(__file__).parents[3] / ".." / "shared" / "traces"


def keys(text: str) -> list[ChunkKey]:
    return [ChunkKey(c.encode()) for c in text]


def filled(text: str, capacity: int = 10, **options: float) -> Slru:
    policy = Slru(capacity, **options)
    for key in keys(text):
        policy.insert(key)
    return policy


def order(policy: Slru) -> str:
    """Coldest first, protected after a bar."""
    return b"".join(policy._probation).decode() + "|" + b"".join(policy._protected).decode()


def touch(policy: Slru, text: str) -> None:
    for key in keys(text):
        policy.touch(key)


def test_a_second_use_promotes_to_protected():
    policy = filled("abcd")
    touch(policy, "b")
    assert order(policy) == "acd|b"


def test_protected_overflow_drops_back_to_the_hot_end_of_probation():
    policy = filled("abcdef")
    touch(policy, "abcd")
    assert order(policy) == "efa|bcd"


def test_a_use_in_protected_moves_to_its_hot_end():
    policy = filled("abc")
    touch(policy, "aba")
    assert order(policy) == "c|ba"


def test_refresh_keeps_a_key_in_its_segment():
    policy = filled("abcd")
    touch(policy, "ab")
    policy.refresh(ChunkKey(b"c"))
    policy.refresh(ChunkKey(b"a"))
    assert order(policy) == "dc|ba"


def test_a_remembered_key_re_enters_straight_into_protected_and_is_no_longer_remembered():
    policy = filled("abc")
    policy.remove(ChunkKey(b"a"), evicted=True)
    assert policy.remembers(ChunkKey(b"a"))
    policy.insert(ChunkKey(b"a"))
    assert order(policy) == "bc|a"
    assert not policy.remembers(ChunkKey(b"a"))


def test_a_dropped_key_re_enters_probation():
    policy = filled("abc")
    policy.remove(ChunkKey(b"a"), evicted=False)
    policy.insert(ChunkKey(b"a"))
    assert order(policy) == "bca|"


def test_as_many_evicted_keys_are_remembered_as_the_tier_holds_oldest_forgotten_first():
    policy = filled("abcde", capacity=3)
    for key in keys("abcde"):
        policy.remove(key, evicted=True)
    assert [policy.remembers(key) for key in keys("abcde")] == [False, False, True, True, True]


def test_with_nothing_protected_and_no_ghosts_it_is_lru():
    policy = filled("abc", protected=0, ghosts=0)
    touch(policy, "a")
    policy.remove(ChunkKey(b"b"), evicted=True)
    assert not policy.remembers(ChunkKey(b"b"))
    policy.insert(ChunkKey(b"b"))
    assert order(policy) == "cab|"


def test_shrinking_demotes_the_coldest_protected_and_forgets_the_oldest_evicted():
    policy = filled("abcdefgh", capacity=10)
    touch(policy, "abc")
    for key in keys("gh"):
        policy.remove(key, evicted=True)
    policy.resize(5)
    assert order(policy) == "defab|c"
    policy.resize(1)
    assert [policy.remembers(key) for key in keys("gh")] == [False, True]
    policy.check()


def test_growing_makes_room_for_more_protected():
    policy = filled("abcdef", capacity=1)
    touch(policy, "abc")
    assert order(policy) == "defabc|"
    policy.resize(10)
    touch(policy, "abc")
    assert order(policy) == "def|abc"


def test_a_policy_without_ghosts_stays_without_when_it_is_resized():
    policy = filled("ab", protected=0, ghosts=0)
    policy.resize(100)
    policy.remove(ChunkKey(b"a"), evicted=True)
    assert not policy.remembers(ChunkKey(b"a"))


class ListModel:
    """Slru once more, as slow lists."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.max_protected = capacity, int(capacity * 0.3)
        self.probation: list[ChunkKey] = []
        self.protected: list[ChunkKey] = []
        self.ghosts: list[ChunkKey] = []

    def protect(self, key: ChunkKey) -> None:
        self.protected.append(key)
        while len(self.protected) > self.max_protected:
            self.probation.append(self.protected.pop(0))

    def use(self, key: ChunkKey) -> None:
        if key in self.protected:
            self.protected.remove(key)
            self.protect(key)
        elif key in self.probation:
            self.probation.remove(key)
            self.protect(key)
        elif key in self.ghosts:
            self.ghosts.remove(key)
            self.protect(key)
        else:
            self.probation.append(key)

    def refresh(self, key: ChunkKey) -> None:
        segment = self.protected if key in self.protected else self.probation
        segment.append(segment.pop(segment.index(key)))

    def remove(self, key: ChunkKey, *, evicted: bool) -> None:
        (self.protected if key in self.protected else self.probation).remove(key)
        if evicted:
            self.ghosts = [*self.ghosts, key][-self.capacity :]


@given(
    st.integers(1, 12),
    st.lists(st.tuples(st.sampled_from("uuurde"), st.integers(0, 15).map(lambda n: ChunkKey(b"%d" % n))), max_size=120),
)
def test_any_run_of_calls_orders_as_the_list_model_does(capacity: int, calls: list[tuple[str, ChunkKey]]):
    policy, model = Slru(capacity), ListModel(capacity)
    for call, key in calls:
        present = key in model.probation or key in model.protected
        if call == "u":
            (policy.touch if present else policy.insert)(key)
            model.use(key)
        elif present and call == "r":
            policy.refresh(key)
            model.refresh(key)
        elif present:
            policy.remove(key, evicted=call == "e")
            model.remove(key, evicted=call == "e")
        policy.check()
        assert list(policy.victims()) == model.probation + model.protected
        assert policy.remembers(key) == (key in model.ghosts)
        assert len(policy) == len(model.probation) + len(model.protected)


def block_hit_rate(trace: str, capacity: int, policy: Slru) -> float:
    """Requests one by one, each atomically: longest resident prefix, then every block used, tail first."""
    path = TRACES / f"{trace}_trace.jsonl"
    if not path.exists():
        pytest.skip(f"the {trace} trace is not beside this checkout (shared/traces)")
    resident: set[ChunkKey] = set()
    hits = asked = 0
    with path.open() as lines:
        for line in lines:
            blocks = [ChunkKey(b"%d" % n) for n in json.loads(line)["hash_ids"]]
            asked += len(blocks)
            hits += next((i for i, block in enumerate(blocks) if block not in resident), len(blocks))
            for block in reversed(blocks):
                if block in resident:
                    policy.touch(block)
                    continue
                if len(resident) == capacity:
                    victim = next(policy.victims())
                    policy.remove(victim, evicted=True)
                    resident.discard(victim)
                policy.insert(block)
                resident.add(block)
    return hits / asked


@pytest.mark.parametrize(
    ("trace", "capacity", "published"),
    [
        ("conversation", 1_000, 0.0579),
        ("conversation", 3_000, 0.0931),
        ("conversation", 10_000, 0.2283),
        ("synthetic", 1_000, 0.0885),
        ("synthetic", 3_000, 0.2015),
        ("synthetic", 10_000, 0.4363),
    ],
)
def test_the_hit_rate_on_a_real_trace_is_the_published_one(trace: str, capacity: int, published: float):
    assert block_hit_rate(trace, capacity, Slru(capacity)) == pytest.approx(published, abs=0.00005)


@pytest.mark.parametrize(
    ("trace", "published"), [("conversation", 0.0653), ("synthetic", 0.1906)], ids=["conversation", "synthetic"]
)
def test_without_protection_and_ghosts_the_hit_rate_is_that_of_lru(trace: str, published: float):
    rate = block_hit_rate(trace, 3_000, Slru(3_000, protected=0, ghosts=0))
    assert rate == pytest.approx(published, abs=0.00005)
