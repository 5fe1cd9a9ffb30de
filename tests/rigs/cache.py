"""TieredCache without bytes or threads: the test is the engine, and carries out the transfers when it says so."""

from kvtier.budget import WriteBudget
from kvtier.cache import TieredCache
from kvtier.policy.linked import LinkedSlru
from kvtier.policy.slru import Slru
from kvtier.residency import Chain, Promotion
from kvtier.tiers.disk import DiskTier
from kvtier.tiers.host import HostTier
from kvtier.types import ChunkKey, Lookup, Miss

HIT, PENDING, MISS = Lookup.HIT, Lookup.PENDING, Lookup.MISS
FAMILY = b"family-1"
CHUNK_BYTES = 100
FRAME_BYTES = 10


def key(name: str, family: bytes = FAMILY) -> ChunkKey:
    return ChunkKey(family + bytes(16) + name.encode())


def keys(names: str) -> list[ChunkKey]:
    return [key(name) for name in names]


def names(found: list[ChunkKey]) -> str:
    return "".join(k[24:].decode() for k in found)


class Rig:
    """A cache of a few slots and frames, and what an engine and the transfer threads do with it."""

    def __init__(
        self,
        n_slots: int,
        n_frames: int = 0,
        *,
        write_behind_after_s: float | None = 0.0,
        lru: bool = False,
        admit_share: float = 1.0,
        budget: WriteBudget | None = None,
        max_under_way: int = 100,
    ) -> None:
        self.now = 0.0
        self.jobs: list[Promotion] = []
        self.deleted: list[tuple[int, ChunkKey]] = []
        self.n_wakes = 0
        self.host = HostTier(n_slots, CHUNK_BYTES, Slru(n_slots, protected=0, ghosts=0) if lru else Slru(n_slots))
        self.disk = DiskTier(1, n_frames * FRAME_BYTES, lambda n: n, LinkedSlru(n_frames)) if n_frames else None
        if self.disk is not None:
            self.disk.set_family(FAMILY)
        self.cache = TieredCache(
            self.host,
            self.disk,
            clock=lambda: self.now,
            submit_promotion=self.jobs.append,
            wake_spiller=self.wake,
            delete_frame=lambda shard, k: self.deleted.append((shard, k)),
            write_behind_after_s=write_behind_after_s,
            admit_share=admit_share,
            budget=budget,
            max_under_way=max_under_way,
        )
        self.stats = self.cache.stats

    def wake(self) -> None:
        self.n_wakes += 1

    # ---- the engine

    def walk(self, chain: Chain, text: str) -> str:
        """Lookups head first until the first MISS, as letters: H, P, M."""
        assert self.cache.begin_walk(chain)
        out = ""
        for k in keys(text):
            answer = self.cache.lookup(chain, k)
            out += answer.name[0]
            if answer is MISS:
                break
        return out

    def offload(self, chain: Chain, text: str) -> str:
        """Offer `text`; the copies land at once. Returns what was taken."""
        offload = self.cache.begin_offload(chain, keys(text))
        self.cache.end_offload(offload.keys)
        return names(offload.keys)

    def onload(self, chain: Chain, text: str, *, failed: bool = False) -> list[int] | None:
        slots = self.cache.begin_onload(chain, keys(text))
        if slots is not None:
            self.cache.end_onload(keys(text), failed=failed)
        return slots

    def request(self, text: str) -> str:
        """A whole request: hits are loaded, the rest is computed and stored. Returns what the last walk answered."""
        chain = self.cache.open_chain()
        answers = self.walk(chain, text)
        while "P" in answers:
            self.promote()
            answers = self.walk(chain, text)
        if n_hits := answers.count("H"):
            self.onload(chain, text[:n_hits])
        self.offload(chain, text[n_hits:])
        self.cache.close_chain(chain)
        self.cache.check()
        return answers

    # ---- the transfer threads

    def promote(self, failure: Miss | None = None) -> None:
        while self.jobs:
            self.cache.promoted(self.jobs.pop(0), failure)

    def spill(self, *, max_chunks: int = 100, ok: bool = True) -> str:
        """One round of the spill thread."""
        batch = self.cache.next_spills(max_chunks, idle=True)
        for resident in batch:
            placement = self.cache.place(resident.key, FRAME_BYTES)
            self.cache.spilled(resident, placement, ok=ok and placement is not None)
        return names([resident.key for resident in batch])

    # ---- what is where

    def on_host(self) -> str:
        """Coldest first."""
        return names(list(self.host.policy.victims()))

    def on_disk(self) -> str:
        assert self.disk is not None
        return names(list(self.disk.policy.victims()))

    def why(self, text: str) -> Miss | None:
        """Why a new request for `text` misses."""
        chain = self.cache.open_chain()
        assert self.walk(chain, text).endswith("M")
        self.cache.close_chain(chain)
        return chain.miss


def evicted_to_disk(text: str, *, n_slots: int = 8, n_frames: int = 20, lru: bool = False) -> Rig:
    """A rig whose disk has `text` and whose host pool is full of others."""
    rig = Rig(n_slots, n_frames, lru=lru)
    for part in [text[i : i + n_slots] for i in range(0, len(text), n_slots)]:
        rig.request(part)
        rig.spill()
    filler = "0123456789"[:n_slots]
    assert rig.disk is not None
    rig.request(filler)
    for k in keys(filler):
        resident = rig.host.get(k)
        assert resident is not None
        rig.cache._backlog.remove(resident)  # never to be spilled: not what the test is about
    assert rig.host.n_free == 0
    return rig
