"""Every tier keeps the contract. A new one adds one class."""

from kvtier.policy.linked import LinkedSlru
from kvtier.policy.slru import Slru
from kvtier.residency import State
from kvtier.testing.tiers import TierContract
from kvtier.tiers.base import Tier
from kvtier.tiers.disk import DiskTier
from kvtier.tiers.host import HostTier
from kvtier.types import ChunkKey


class TestHostTier(TierContract):
    def make(self, n_chunks: int) -> Tier:
        return HostTier(n_chunks, 4096, Slru(n_chunks))

    def add(self, tier: HostTier, key: ChunkKey) -> None:
        for victim in tier.choose_victims(1 - tier.n_free, (), 100):
            tier.evict(victim)
        tier.place(key, State.READY, 0.0)


class TestDiskTier(TierContract):
    def make(self, n_chunks: int) -> Tier:
        return DiskTier(1, n_chunks * 1024, lambda n_bytes: n_bytes + 24, LinkedSlru(n_chunks))

    def add(self, tier: DiskTier, key: ChunkKey) -> None:
        placement = tier.place(key, 1000)
        assert placement is not None
        tier.committed(placement.frame)


class TestDiskTierInShards(TestDiskTier):
    def make(self, n_chunks: int) -> Tier:
        return DiskTier(n_chunks, 1024, lambda n_bytes: n_bytes + 24, LinkedSlru(n_chunks))
