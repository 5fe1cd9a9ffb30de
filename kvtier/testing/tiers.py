"""TierContract: what every Tier must do, as tests. Subclass it; say how to make one and fill it."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from kvtier.types import ChunkKey

if TYPE_CHECKING:
    from kvtier.tiers.base import Tier


class TierContract:
    """Pytest collects the tests of a subclass whose name begins with `Test`; it overrides `make` and `add`."""

    def make(self, n_chunks: int) -> Tier:
        """An empty tier with room for `n_chunks` of equal size."""
        raise NotImplementedError

    def add(self, tier: Any, key: ChunkKey) -> None:
        """Put an absent chunk into the tier, ready for use; the coldest leaves if there is no room."""
        raise NotImplementedError

    def test_an_empty_tier_takes_no_bytes_and_contains_nothing(self) -> None:
        tier = self.make(4)
        assert tier.used_bytes == 0
        assert tier.capacity_bytes > 0
        assert _key(0) not in tier
        tier.check()

    def test_a_chunk_that_was_added_is_there_and_takes_its_share(self) -> None:
        tier = self.make(4)
        for n in range(1, 5):
            self.add(tier, _key(n))
            assert _key(n) in tier
            assert tier.used_bytes == n * tier.capacity_bytes // 4

    def test_used_bytes_never_pass_the_capacity(self) -> None:
        tier = self.make(4)
        for n in range(20):
            self.add(tier, _key(n))
            assert tier.used_bytes <= tier.capacity_bytes
            assert _key(n) in tier
            tier.check()
        assert sum(_key(n) in tier for n in range(20)) == 4

    def test_the_coldest_leaves_for_lack_of_room_and_is_remembered(self) -> None:
        tier = self.make(4)
        for n in range(5):
            self.add(tier, _key(n))
        assert _key(0) not in tier
        assert tier.remembers(_key(0))
        assert not tier.remembers(_key(1))

    def test_a_chunk_used_again_outlives_those_used_once(self) -> None:
        tier = self.make(4)
        for n in range(4):
            self.add(tier, _key(n))
        tier.touch(_key(0))
        for n in range(4, 7):
            self.add(tier, _key(n))
        assert _key(0) in tier
        assert not any(_key(n) in tier for n in (1, 2, 3))

    def test_a_dropped_chunk_is_gone_for_good_and_gives_its_room_back(self) -> None:
        tier = self.make(4)
        self.add(tier, _key(0))
        tier.drop(_key(0))
        assert _key(0) not in tier
        assert not tier.remembers(_key(0))
        assert tier.used_bytes == 0
        tier.check()

    def test_dropping_what_is_not_there_changes_nothing(self) -> None:
        tier = self.make(4)
        self.add(tier, _key(0))
        tier.drop(_key(1))
        assert _key(0) in tier
        tier.check()

    def test_a_chunk_may_leave_and_come_back_any_number_of_times(self) -> None:
        tier = self.make(4)
        rng = random.Random(3)
        present: set[ChunkKey] = set()
        for _ in range(500):
            key = _key(rng.randrange(12))
            if key not in tier:
                self.add(tier, key)
                present.add(key)
                present = {k for k in present if k in tier}
            elif rng.random() < 0.5:
                tier.touch(key)
            else:
                tier.drop(key)
                present.discard(key)
            assert tier.used_bytes == len(present) * tier.capacity_bytes // 4
            tier.check()


def _key(n: int) -> ChunkKey:
    return ChunkKey(b"family-8" + bytes(16) + b"chunk-%d" % n)
