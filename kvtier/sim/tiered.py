"""TieredReplay: the production TieredCache on a trace's clock, no bytes. Plays the engine and the transfer threads.

Transfers take no time: a promotion is there before the engine asks again, a spill as soon as the cache wants it. So no
slots need to be kept clean in advance, and nothing on disk serves a restart only; `deployed` gives up both freedoms.
"""

from __future__ import annotations

from kvtier.backlog import CLEAN_SHARE
from kvtier.cache import TieredCache
from kvtier.keys import FAMILY_BYTES
from kvtier.policy.linked import LinkedSlru
from kvtier.policy.slru import Slru
from kvtier.residency import Chain, Promotion
from kvtier.sim.tally import DISK, HOST, Tally
from kvtier.sim.trace import NAMESPACE, Request
from kvtier.tiers.disk import DiskTier
from kvtier.tiers.host import HostTier
from kvtier.types import ChunkKey, Lookup, Source

STEP_CHUNKS = 16
"""Chunks that move between two spills when spills need a reserve: vLLM's usual step, 8,192 tokens, of 512 each."""


class TieredReplay:
    """A host tier of `n_host` blocks, and a disk tier of `n_disk` unless that is 0; satisfies `Simulator`."""

    def __init__(
        self,
        n_host: int,
        n_disk: int,
        host_policy: Slru,
        disk_policy: LinkedSlru,
        tally: Tally,
        *,
        keep_partial: bool,
        deployed: bool = False,
        write_behind_after_s: float | None = None,
        admit_share: float = 1.0,
    ) -> None:
        """Count into `tally`. Without `keep_partial` the partial tail of a prompt is never offered.

        `deployed`: keep the reserve of clean slots and the fresh disk copies that a real server keeps.
        `write_behind_after_s` and `admit_share` are as in Backlog.
        """
        self.tally = tally
        self._keep_partial = keep_partial
        self._now_s = 0.0
        self._submitted: list[Promotion] = []
        self._written: set[ChunkKey] = set()
        self._n_unspilled = 0
        clean_share = CLEAN_SHARE if deployed else 0.0
        self._step_chunks = max(1, min(STEP_CHUNKS, int(n_host * clean_share)))
        disk = DiskTier(1, n_disk, lambda n_bytes: n_bytes, disk_policy) if n_disk else None
        if disk is not None:
            disk.set_family(NAMESPACE[:FAMILY_BYTES])
        self.cache = TieredCache(
            HostTier(n_host, 1, host_policy),
            disk,
            clock=lambda: self._now_s,
            submit_promotion=self._submitted.append,
            wake_spiller=lambda: None,
            delete_frame=lambda _shard, _key: None,
            write_behind_after_s=write_behind_after_s,
            clean_share=clean_share,
            ready_for_restart=deployed,
            admit_share=admit_share,
        )

    def request(self, request: Request) -> None:
        """Replay one request: look up, load what hits, offload the rest step by step, end."""
        self._now_s = max(self._now_s, request.time_s)
        cache = self.cache
        keys = request.keys if self._keep_partial else request.keys[: request.n_whole]
        chain = cache.open_chain()
        hits = self._walk(chain, keys)
        sources = [DISK if chain.sources[key] is Source.DISK else HOST for key in hits]
        n_disk = sum(sources)
        self.tally.count(
            request.n_tokens, len(request.keys), len(hits) - n_disk, n_disk, last=sources[-1] if sources else HOST
        )
        if hits:
            slots = cache.begin_onload(chain, hits)
            assert slots is not None
            cache.end_onload(hits)
        for first in range(len(hits), len(keys), self._step_chunks):
            offload = cache.begin_offload(chain, keys[first : first + self._step_chunks])
            cache.end_offload(offload.keys)
            cache.step_ended()
            self._spill()
        cache.close_chain(chain)
        self.tally.dropped_blocks = cache.stats.host_dropped_chunks if cache.disk is not None else 0

    def _walk(self, chain: Chain, keys: list[ChunkKey]) -> list[ChunkKey]:
        cache = self.cache
        for i, key in enumerate(keys):
            answer = cache.lookup(chain, key)
            if answer is Lookup.MISS:
                return keys[:i]
            if answer is Lookup.PENDING:
                while self._submitted:
                    cache.promoted(self._submitted.pop(), None)
                self._n_unspilled += 1
                if self._n_unspilled >= self._step_chunks:
                    self._spill()
        return keys

    def _spill(self) -> None:
        """Write what the cache wants written."""
        self._n_unspilled = 0
        cache, tally, written = self.cache, self.tally, self._written
        while spills := cache.next_spills(1 << 20, idle=True):
            for resident in spills:
                placement = cache.place(resident.key, 1)
                cache.spilled(resident, placement, ok=placement is not None)
                tally.written_blocks += placement is not None
                tally.rewritten_blocks += resident.key in written
                written.add(resident.key)
