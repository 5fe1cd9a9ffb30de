"""SingleTier: one tier of blocks under an eviction policy, without the machinery of a cache. The fast path of replay.

A request is atomic: the longest resident prefix hits, then every block is used, tail first, absent ones entering as
they are used. This is the definition behind the published single-tier tables (docs/policies.md).
"""

from __future__ import annotations

from kvtier.policy.slru import Slru
from kvtier.sim.tally import Tally
from kvtier.sim.trace import Request
from kvtier.types import ChunkKey


class SingleTier:
    """`capacity` blocks under `policy`; satisfies `Simulator`."""

    def __init__(self, capacity: int, policy: Slru, tally: Tally, *, keep_partial: bool) -> None:
        """Count into `tally`. Without `keep_partial` the partial tail of a prompt is never kept."""
        self.tally = tally
        self._capacity = capacity
        self._policy = policy
        self._keep_partial = keep_partial
        self._resident: set[ChunkKey] = set()

    def request(self, request: Request) -> None:
        """Replay one request."""
        keys = request.keys if self._keep_partial else request.keys[: request.n_whole]
        resident, policy, capacity = self._resident, self._policy, self._capacity
        n_hit = len(keys)
        for i, key in enumerate(keys):
            if key not in resident:
                n_hit = i
                break
        self.tally.count(request.n_tokens, len(request.keys), n_hit, 0)
        touch, insert, remove, victims = policy.touch, policy.insert, policy.remove, policy.victims
        for key in reversed(keys):
            if key in resident:
                touch(key)
                continue
            if len(resident) == capacity:
                victim = next(victims())
                remove(victim, evicted=True)
                resident.remove(victim)
            insert(key)
            resident.add(key)
