"""Every eviction policy keeps the contract. A new one adds one class."""

from kvtier.policy.base import EvictionPolicy
from kvtier.policy.linked import LinkedSlru
from kvtier.policy.slru import Slru
from kvtier.testing.policies import PolicyContract


class TestSlru(PolicyContract):
    def make(self, capacity: int) -> EvictionPolicy:
        return Slru(capacity)


class TestLinkedSlru(PolicyContract):
    def make(self, capacity: int) -> EvictionPolicy:
        return LinkedSlru(capacity)


class TestLru(PolicyContract):
    def make(self, capacity: int) -> EvictionPolicy:
        return Slru(capacity, protected=0, ghosts=0)
