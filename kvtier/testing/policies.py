"""PolicyContract: what every EvictionPolicy must do, as tests. Subclass it in a test module and say how to make one."""

from __future__ import annotations

import random
from itertools import islice
from typing import TYPE_CHECKING

from kvtier.types import ChunkKey

if TYPE_CHECKING:
    from kvtier.policy.base import EvictionPolicy


class PolicyContract:
    """Pytest collects the tests of a subclass whose name begins with `Test`; it overrides `make`."""

    def make(self, capacity: int) -> EvictionPolicy:
        """A new policy for a tier of about `capacity` keys."""
        raise NotImplementedError

    def test_a_new_policy_has_no_victims_and_remembers_nothing(self) -> None:
        policy = self.make(8)
        assert not list(policy.victims())
        assert not policy.remembers(_key(0))

    def test_victims_are_the_keys_inserted_and_not_removed_each_once(self) -> None:
        policy = self.make(64)
        rng = random.Random(20)
        present: set[ChunkKey] = set()
        for _ in range(2000):
            key = _key(rng.randrange(100))
            if key not in present:
                policy.insert(key)
                present.add(key)
            elif rng.random() < 0.4:
                policy.touch(key)
            elif rng.random() < 0.4:
                policy.refresh(key)
            else:
                policy.remove(key, evicted=rng.random() < 0.5)
                present.discard(key)
            listed = list(policy.victims())
            assert len(listed) == len(present)
            assert set(listed) == present

    def test_the_tier_may_be_fuller_than_the_policy_was_told(self) -> None:
        policy = self.make(1)
        keys = _insert(policy, 20)
        for key in keys:
            policy.touch(key)
        assert set(policy.victims()) == set(keys)

    def test_of_keys_used_once_the_oldest_leaves_first(self) -> None:
        policy = self.make(8)
        keys = _insert(policy, 8)
        assert list(policy.victims()) == keys

    def test_a_key_used_again_outlives_those_used_once(self) -> None:
        policy = self.make(8)
        keys = _insert(policy, 8)
        policy.touch(keys[0])
        assert _evict(policy, 7) == keys[1:]
        assert list(policy.victims()) == [keys[0]]

    def test_a_refreshed_key_outlives_others_of_its_kind(self) -> None:
        policy = self.make(8)
        keys = _insert(policy, 4)
        policy.refresh(keys[0])
        assert list(policy.victims()) == [*keys[1:], keys[0]]

    def test_a_chain_refreshed_tail_first_loses_its_tail_first(self) -> None:
        policy = self.make(8)
        chain = _insert(policy, 8)
        for key in reversed(chain):
            policy.refresh(key)
        assert _evict(policy, 8) == chain[::-1]

    def test_a_key_dropped_for_good_is_not_remembered(self) -> None:
        policy = self.make(8)
        (key,) = _insert(policy, 1)
        policy.remove(key, evicted=False)
        assert not policy.remembers(key)

    def test_a_key_that_is_present_is_not_remembered(self) -> None:
        policy = self.make(8)
        (key,) = _insert(policy, 1)
        policy.remove(key, evicted=True)
        policy.insert(key)
        assert not policy.remembers(key)

    def test_an_evicted_key_is_forgotten_after_twice_the_capacity_has_been_evicted_since(self) -> None:
        policy = self.make(8)
        first, *_ = _insert(policy, 17)
        _evict(policy, 17)
        assert not policy.remembers(first)

    def test_an_evicted_key_may_come_back_and_leave_again(self) -> None:
        policy = self.make(4)
        (key,) = _insert(policy, 1)
        for _ in range(3):
            policy.remove(key, evicted=True)
            policy.insert(key)
        assert list(policy.victims()) == [key]

    def test_the_first_victims_can_be_had_without_listing_all_of_them(self) -> None:
        policy = self.make(8)
        keys = _insert(policy, 8)
        victims = policy.victims()
        assert list(islice(victims, 2)) == keys[:2]
        del victims  # the caller stops iterating, then mutates
        policy.remove(keys[0], evicted=True)
        assert next(policy.victims()) == keys[1]


def _key(n: int) -> ChunkKey:
    return ChunkKey(b"k%d" % n)


def _insert(policy: EvictionPolicy, n: int) -> list[ChunkKey]:
    keys = [_key(i) for i in range(n)]
    for key in keys:
        policy.insert(key)
    return keys


def _evict(policy: EvictionPolicy, n: int) -> list[ChunkKey]:
    out = []
    for _ in range(n):
        victim = next(policy.victims())
        policy.remove(victim, evicted=True)
        out.append(victim)
    return out
