"""A cache and its transfer threads over a store that fails when told to. The test is the engine.

Real threads and real codecs. Time is the test's own: breakers pause and chunks rest until `rig.clock.now` moves.
"""

import random
import time
from collections.abc import Callable

from kvtier.cache import TieredCache
from kvtier.codec.base import Codec
from kvtier.codec.frame import frame_bound
from kvtier.codec.raw import Raw
from kvtier.policy.linked import LinkedSlru
from kvtier.policy.slru import Slru
from kvtier.residency import Chain, Resident
from kvtier.store.base import Store
from kvtier.store.listing import records_of
from kvtier.testing.faults import FaultyStore, cut_to, flipped
from kvtier.tiers.disk import DiskTier
from kvtier.tiers.host import HostTier
from kvtier.transfer.mover import Mover
from kvtier.transfer.slots import Slots
from kvtier.types import ChunkKey, Lookup

CHUNK_BYTES = 4096
PATIENCE_S = 20.0
FRAME_BYTES = frame_bound(CHUNK_BYTES, Raw())


def key(name: str) -> ChunkKey:
    return ChunkKey(b"family-1" + bytes(16) + name.encode())


def keys(names: str) -> list[ChunkKey]:
    return [key(name) for name in names]


def content(k: ChunkKey) -> bytes:
    """What the KV of a chunk is: half noise, half structure, so that it shrinks."""
    return random.Random(k).randbytes(CHUNK_BYTES // 2) + k[24:].ljust(CHUNK_BYTES // 2, b"\x3f")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Rig:
    """A cache and its mover; the test is the engine."""

    def __init__(
        self,
        store: Store,
        *,
        n_slots: int = 8,
        codec: Codec | None = None,
        n_promote_threads: int = 2,
        n_reads_ahead: int = 0,
    ) -> None:
        self.store = FaultyStore(store)
        self.clock = Clock()
        self.reports: list[str] = []
        self.pool = bytearray(n_slots * CHUNK_BYTES)
        self.slots = Slots(memoryview(self.pool), CHUNK_BYTES)
        self.mover = Mover(
            self.slots,
            self.store,
            codec or Raw(),
            n_promote_threads=n_promote_threads,
            n_reads_ahead=n_reads_ahead,
            poll_s=0.002,
            sync_every_s=5.0,
            report=self.reports.append,
            clock=self.clock,
        )
        self.host = HostTier(n_slots, CHUNK_BYTES, Slru(n_slots))
        self.disk = DiskTier(store.n_shards, store.shard_bytes, store.frame_cost, LinkedSlru(1))
        self.disk.set_family(b"family-1")
        self.cache = TieredCache(
            self.host,
            self.disk,
            clock=self.clock,
            submit_promotion=self.mover.submit_promotion,
            wake_spiller=self.mover.wake_spiller,
            delete_frame=self.mover.delete,
            write_behind_after_s=0.0,
        )
        self.stats = self.cache.stats
        self.n_rounds = 0
        next_spills = self.cache.next_spills

        def counted(max_chunks: int, *, idle: bool) -> list[Resident]:
            self.n_rounds += 1
            return next_spills(max_chunks, idle=idle)

        self.cache.next_spills = counted  # type: ignore[method-assign]
        self.mover.start(self.cache, lambda: float("-inf"))

    # ---- the engine

    def walk(self, chain: Chain, names: str) -> int:
        """How many chunks of the head hit, once their promotions have ended."""
        while True:
            until(lambda: self.cache.begin_walk(chain))
            answers = [self.cache.lookup(chain, k) for k in keys(names)]
            if Lookup.PENDING not in answers:
                return (*answers, Lookup.MISS).index(Lookup.MISS)

    def load(self, chain: Chain, names: str) -> None:
        """Load chunks that hit, and compare every byte."""
        slots = self.cache.begin_onload(chain, keys(names))
        assert slots is not None
        for k, slot in zip(keys(names), slots, strict=True):
            assert bytes(self.slots[slot]) == content(k)
        self.cache.end_onload(keys(names))

    def keep(self, chain: Chain, names: str) -> None:
        offload = self.cache.begin_offload(chain, keys(names))
        for k, slot in zip(offload.keys, offload.slots, strict=True):
            self.slots[slot][:] = content(k)
        self.cache.end_offload(offload.keys)

    def request(self, names: str) -> Chain:
        """A whole request. Its chain, closed, says where its hits came from and why it missed."""
        chain = self.cache.open_chain()
        n_hits = self.walk(chain, names)
        if n_hits:
            self.load(chain, names[:n_hits])
        self.keep(chain, names[n_hits:])
        self.cache.close_chain(chain)
        return chain

    def evict_all(self) -> None:
        """Fill the host pool with chunks nobody wants."""
        self.request("0123456789"[: self.host.n_slots])
        assert {k[24:] for k in self.host._residents} <= {b"%d" % n for n in range(10)}

    def stored_and_evicted(self, names: str) -> None:
        """Have `names` on disk and not in host."""
        for i in range(0, len(names), self.host.n_slots):
            self.request(names[i : i + self.host.n_slots])
            self.settle()
        self.evict_all()
        self.settle()

    # ---- waiting

    def settle(self) -> None:
        """Wait until the threads have nothing left to do."""
        until(lambda: not self.cache.n_dirty() and not self.cache._n_promoting)
        until(lambda: not self.mover._owed and self.mover._deletes.empty())

    def rounds(self, n: int) -> None:
        """Let the spill thread have `n` whole rounds."""
        until(lambda until_round=self.n_rounds + n + 1: self.n_rounds >= until_round)

    def check_all_quiet(self) -> None:
        """Nothing is pinned, nothing is lost, and the index is what the store has."""
        self.settle()
        self.cache.check()
        assert not any(resident.pinned for resident in self.host.residents())
        assert len(self.host) + self.host.n_free == self.host.n_slots
        store, disk = self.store.inner, self.disk
        until(lambda: {(f.shard, f.key) for f in disk.frames()} == {(r.shard, r.key) for r in records_of(store.scan())})
        assert all(thread.is_alive() for thread in self.mover._threads)
        for resident in self.host.residents():
            assert bytes(self.slots[resident.slot]) == content(resident.key)


def until(condition: Callable[[], object]) -> None:
    give_up_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < give_up_s, "the transfer threads did not get there"
        time.sleep(0.001)


DAMAGE = {
    "first bit": flipped(0),
    "version": flipped(8 * 4),
    "checksum": flipped(8 * 50),
    "first payload bit": flipped(8 * 64),
    "last bit": flipped(8 * 4096),
    "empty": cut_to(0),
    "half a header": cut_to(32),
    "half a frame": cut_to(2000),
    "longer": lambda frame: frame + b"\0",
}
