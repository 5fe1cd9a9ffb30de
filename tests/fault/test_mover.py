"""The transfer threads over stores that fail: no wrong byte, no exception, no slot left pinned, no thread left behind.

Real threads and real codecs. Time is the test's own: breakers pause and chunks rest until `rig.clock.now` moves.
"""

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from kvtier.cache import TieredCache
from kvtier.codec.base import Codec
from kvtier.codec.frame import frame_bound, seal_into
from kvtier.codec.planes import BytePlanes
from kvtier.codec.raw import Raw
from kvtier.errors import StoreError, StoreFullError
from kvtier.policy.slru import Slru
from kvtier.residency import Chain, Resident
from kvtier.store.base import Store
from kvtier.store.lmdb import LmdbStore
from kvtier.store.memory import MemoryStore
from kvtier.testing.faults import Fault, FaultyStore, cut_to, flipped
from kvtier.tiers.disk import DiskTier
from kvtier.tiers.host import HostTier
from kvtier.transfer import mover as mover_module
from kvtier.transfer.breaker import FIRST_PAUSE_S, TRIP_AFTER
from kvtier.transfer.mover import SPILL_BATCH, SPILL_BUFFER_BYTES, Mover
from kvtier.transfer.slots import Slots
from kvtier.types import ChunkKey, Lookup, Miss, Source

CHUNK_BYTES = 4096
PATIENCE_S = 20.0
FRAME_BYTES = frame_bound(CHUNK_BYTES, Raw())


def key(name: str) -> ChunkKey:
    return ChunkKey(b"family-1" + bytes(8) + name.encode())


def keys(names: str) -> list[ChunkKey]:
    return [key(name) for name in names]


def content(k: ChunkKey) -> bytes:
    """What the KV of a chunk is: half noise, half structure, so that it shrinks."""
    return random.Random(k).randbytes(CHUNK_BYTES // 2) + k[16:].ljust(CHUNK_BYTES // 2, b"\x3f")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Rig:
    """A cache and its mover; the test is the engine."""

    def __init__(
        self, store: Store, *, n_slots: int = 8, codec: Codec | None = None, n_promote_threads: int = 2
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
            poll_s=0.002,
            sync_every_s=5.0,
            report=self.reports.append,
            clock=self.clock,
        )
        self.host = HostTier(n_slots, CHUNK_BYTES, Slru(n_slots))
        self.disk = DiskTier(store.n_shards, store.shard_bytes, store.frame_cost, Slru(1))
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
        assert {k[16:] for k in self.host._residents} <= {b"%d" % n for n in range(10)}

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
        until(lambda: {(f.shard, f.key) for f in disk.frames()} == {(r.shard, r.key) for r in store.scan()})
        assert all(thread.is_alive() for thread in self.mover._threads)
        for resident in self.host.residents():
            assert bytes(self.slots[resident.slot]) == content(resident.key)


def until(condition: Callable[[], object]) -> None:
    give_up_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < give_up_s, "the transfer threads did not get there"
        time.sleep(0.001)


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig(MemoryStore(2, 40 * FRAME_BYTES))
    yield rig
    rig.store.heal()
    assert rig.mover.stop()


# ---- all is well ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", [Raw(), BytePlanes()], ids=["raw", "planes"])
@pytest.mark.parametrize("medium", ["memory", "lmdb"])
def test_every_byte_comes_back_from_disk(tmp_path: Path, medium: str, codec: Codec):
    store: Store = MemoryStore(2, 40 * FRAME_BYTES)
    if medium == "lmdb":
        store = LmdbStore.open(tmp_path / "store", 34 << 20, shard_map_bytes=17 << 20)
    rig = Rig(store, codec=codec)
    try:
        rig.stored_and_evicted("abcdefghijklmnopqrst")
        for text in ("abcdefg", "klm", "opqrst"):
            chain = rig.request(text)
            assert [chain.sources[k] for k in keys(text)] == [Source.DISK] * len(text)
        assert rig.stats.promoted_chunks == 16
        assert rig.stats.promote_raw_bytes == 16 * CHUNK_BYTES
        rig.check_all_quiet()
        assert rig.reports == []
    finally:
        assert rig.mover.stop()
        store.close()


def test_many_requests_through_small_tiers_never_see_a_wrong_byte():
    rig = Rig(MemoryStore(2, 12 * FRAME_BYTES))
    rng = random.Random(5)
    for _ in range(150):
        head, tail = rng.choice("abc"), rng.sample("defghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ", k=5)
        rig.request(head + "".join(tail))
        if rng.random() < 0.3:
            rig.settle()
    rig.check_all_quiet()
    assert rig.stats.promoted_chunks
    assert rig.stats.disk_evicted_chunks
    assert rig.mover.stop()


def test_a_promotion_does_not_wait_behind_a_spill(rig: Rig):
    rig.stored_and_evicted("ab")
    gate = threading.Event()
    rig.store._sleep = lambda _: gate.wait(PATIENCE_S)
    rig.store.inject(Fault(method="write", slow_s=1.0))
    chain = rig.cache.open_chain()
    rig.keep(chain, "xy")
    until(lambda: rig.store.calls["write"] > 2 and any(r.spilling for r in rig.host.residents()))
    assert rig.walk(chain, "ab") == 2
    gate.set()
    rig.cache.close_chain(chain)
    rig.check_all_quiet()


def test_what_was_written_is_synced_now_and_then_and_at_the_end():
    rig = Rig(MemoryStore(1, 40 * FRAME_BYTES))
    rig.request("ab")
    rig.settle()
    assert rig.store.calls["sync"] == 0
    rig.clock.now += 5.0
    until(lambda: rig.store.calls["sync"] == 1)
    rig.request("cd")
    rig.settle()
    assert rig.mover.stop()
    assert rig.store.calls["sync"] == 2


def test_a_busy_engine_makes_chunks_rest_longer():
    rig = Rig(MemoryStore(1, 40 * FRAME_BYTES))
    rig.cache._write_behind_after_s = 1.0
    rig.mover._last_engine_call = rig.clock  # a call right now, whenever it is asked
    rig.request("a")
    rig.clock.now += 9.0
    rig.rounds(3)
    assert rig.cache.n_dirty() == 1
    rig.clock.now += 2.0
    rig.settle()
    assert rig.mover.stop()


def test_memory_for_sealed_frames_is_bounded_whatever_the_chunk_size():
    def n_buffers(chunk_bytes: int) -> int:
        slots = Slots(memoryview(bytearray(chunk_bytes)), chunk_bytes)
        mover = Mover(
            slots, MemoryStore(1, 1), Raw(), n_promote_threads=1, poll_s=1.0, sync_every_s=1.0, report=lambda _: None
        )
        return len(mover._buffers)

    assert n_buffers(4096) == SPILL_BATCH
    assert n_buffers(SPILL_BUFFER_BYTES // 3) == 2
    assert n_buffers(SPILL_BUFFER_BYTES * 2) == 1


# ---- writing fails --------------------------------------------------------------------------------------------------

WRITE_ERRORS = [StoreError("no medium"), OSError(5, "Input/output error"), ValueError("a bug")]


@pytest.mark.parametrize("error", WRITE_ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("done", [False, True], ids=["before", "after the fact"])
def test_failing_writes_switch_spilling_off_and_on_again(rig: Rig, error: Exception, done: bool):
    rig.store.inject(Fault(method="write", error=error, done=done))
    rig.request("abcd")
    until(lambda: not rig.cache.disk_writable)
    assert rig.stats.tier_off == 1
    assert len(rig.reports) == 1
    assert "writing switched off" in rig.reports[0]
    assert rig.request("abcd").sources == dict.fromkeys(keys("abcd"), Source.HOST)
    rig.store.heal()
    rig.clock.now += FIRST_PAUSE_S
    rig.request("efgh")
    rig.check_all_quiet()
    assert rig.cache.disk_writable
    assert all(k in rig.disk for k in keys("efgh"))


def test_nothing_is_written_during_the_pause(rig: Rig):
    rig.store.inject(Fault(method="write", error=StoreError("no medium")))
    rig.request("abcdefgh")
    until(lambda: not rig.cache.disk_writable)
    until(lambda: not any(r.spilling for r in rig.host.residents()))
    n_calls = rig.store.calls["write"]
    assert n_calls == TRIP_AFTER
    rig.request("ABCDEFGH")
    rig.clock.now += FIRST_PAUSE_S * 0.9
    rig.rounds(3)
    assert rig.store.calls["write"] == n_calls


def test_one_failure_in_between_switches_nothing_off(rig: Rig):
    rig.store.inject(Fault(method="write", times=TRIP_AFTER - 1, error=StoreError("hiccup")))
    rig.request("abcd")
    rig.check_all_quiet()
    assert rig.stats.tier_off == 0
    assert all(k in rig.disk for k in keys("abcd"))
    assert rig.reports == []


def test_a_frame_whose_write_failed_after_the_fact_is_found_or_gone_but_never_forgotten(rig: Rig):
    rig.store.inject(Fault(method="write", times=1, error=StoreError("answer lost"), done=True))
    rig.request("abcd")
    rig.check_all_quiet()


def test_a_full_shard_fails_the_spill_and_switches_nothing_off(rig: Rig):
    rig.store.inject(Fault(method="write", times=3, error=StoreFullError("no room")))
    rig.request("abcd")
    rig.settle()
    assert rig.stats.spill_failed_chunks > 0
    assert rig.stats.tier_off == 0
    rig.request("efgh")
    rig.check_all_quiet()
    assert all(k in rig.disk for k in keys("efgh"))


def test_a_shard_that_is_full_though_nearly_empty_keeps_no_chunk_from_disk():
    rig = Rig(MemoryStore(2, 40 * FRAME_BYTES))
    broken = rig.store.inner
    write = broken.write

    def first_shard_is_full(
        shard: int, puts: Sequence[tuple[ChunkKey, memoryview]], deletes: Sequence[ChunkKey]
    ) -> None:
        if shard == 0 and puts:
            write(shard, [], deletes)
            raise StoreFullError("no room")
        write(shard, puts, deletes)

    broken.write = first_shard_is_full  # type: ignore[method-assign]
    for text in ("abcd", "efgh", "ijkl"):
        rig.request(text)
        rig.settle()
    assert all(k in rig.disk for k in keys("abcdefghijkl"))
    rig.check_all_quiet()
    assert rig.mover.stop()


def test_a_store_with_less_room_than_it_said_is_used_as_far_as_it_goes():
    rig = Rig(MemoryStore(1, 40 * FRAME_BYTES))
    assert isinstance(rig.store.inner, MemoryStore)
    rig.store.inner._shard_bytes = 30 * FRAME_BYTES  # fragmentation, as it were
    for n in range(20):
        rig.request("".join(chr(0x100 + 8 * n + i) for i in range(8)))
        rig.settle()
    rig.check_all_quiet()
    assert len(rig.disk) >= 20
    assert rig.disk.used_bytes <= 30 * FRAME_BYTES
    assert rig.stats.tier_off == 0
    assert rig.mover.stop()


def test_failing_syncs_switch_writing_off_and_are_made_up_for(rig: Rig):
    rig.store.inject(Fault(method="sync", error=StoreError("no medium")))
    rig.request("a")
    rig.settle()
    for n in range(TRIP_AFTER):
        assert rig.stats.tier_off == 0
        rig.clock.now += 5.0
        until(lambda n=n: rig.store.calls["sync"] > n)
    until(lambda: rig.stats.tier_off == 1)
    rig.store.heal()
    rig.clock.now += 5.0
    until(lambda: not rig.mover._unsynced)
    rig.check_all_quiet()


def test_a_seal_that_fails_unpins_its_chunk(rig: Rig, monkeypatch: pytest.MonkeyPatch):
    def no_memory(*_: object, **__: object) -> int:
        raise MemoryError

    monkeypatch.setattr(mover_module, "seal_into", no_memory)
    rig.request("ab")
    rig.check_all_quiet()
    assert rig.stats.spill_failed_chunks == 6
    assert len(rig.disk) == 0
    assert any("sealing failed" in line for line in rig.reports)


# ---- reading fails --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error", [StoreError("no medium"), OSError(5, "Input/output error")], ids=["StoreError", "OSError"]
)
def test_a_failed_read_is_a_miss_and_its_frame_is_deleted(rig: Rig, error: Exception):
    rig.stored_and_evicted("abc")
    rig.store.inject(Fault(method="read", times=1, after=1, error=error))
    chain = rig.cache.open_chain()
    assert rig.walk(chain, "a") == 1
    assert rig.walk(chain, "ab") == 1
    assert chain.miss is Miss.LOAD_FAILED
    rig.cache.close_chain(chain)
    assert rig.stats.load_errors == 1
    rig.check_all_quiet()
    assert key("b") not in rig.disk
    assert rig.cache.disk_readable


def test_failing_reads_switch_reading_off_and_on_again():
    rig = Rig(MemoryStore(1, 40 * FRAME_BYTES), n_promote_threads=1)
    rig.stored_and_evicted("abcdefg")
    rig.store.inject(Fault(method="read", error=StoreError("no medium")))
    chain = rig.request("abcdefg")
    assert chain.miss is Miss.LOAD_FAILED
    assert not rig.cache.disk_readable
    assert rig.stats.tier_off == 1
    assert [line for line in rig.reports if "reading switched off" in line] == rig.reports
    assert rig.store.calls["read"] == TRIP_AFTER, "what was queued behind the failures is not tried"

    n_calls = rig.store.calls["read"]
    rig.evict_all()
    assert rig.request("defg").miss is Miss.LOAD_FAILED
    assert rig.store.calls["read"] == n_calls, "while it is off nothing is read"

    rig.store.heal()
    rig.clock.now += FIRST_PAUSE_S
    until(lambda: rig.cache.disk_readable)
    rig.evict_all()
    assert set(rig.request("defg").sources.values()) == {Source.DISK}, "frames that were not tried are there still"
    rig.check_all_quiet()
    assert rig.mover.stop()


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


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_corrupt_frame_is_a_counted_miss_that_heals(rig: Rig, damage: Callable[[bytes], bytes]):
    rig.stored_and_evicted("abc")
    rig.store.inject(Fault(method="read", times=1, change=damage))
    chain = rig.request("a")
    assert chain.miss is Miss.CORRUPT
    assert rig.stats.corrupt_frames == 1
    assert "does not verify" in rig.reports[0]
    rig.check_all_quiet()  # stored again by the request that recomputed it
    rig.evict_all()
    assert rig.request("a").sources == {key("a"): Source.DISK}


def test_a_sound_frame_of_another_chunk_is_foreign(rig: Rig):
    rig.stored_and_evicted("a")
    other = memoryview(bytearray(FRAME_BYTES))
    n_bytes = seal_into(memoryview(content(key("z"))), other, key=key("z"), codec=Raw())
    rig.store.inject(Fault(method="read", times=1, change=lambda _: bytes(other[:n_bytes])))
    assert rig.request("a").miss is Miss.FOREIGN
    assert rig.stats.foreign_frames == 1
    rig.check_all_quiet()


def test_a_frame_that_was_lost_is_an_evicted_chunk_that_heals(rig: Rig):
    rig.store.inject(Fault(method="write", times=1, lost=True))
    rig.request("a")
    rig.settle()
    rig.evict_all()
    rig.settle()
    assert rig.request("a").miss is Miss.EVICTED
    rig.check_all_quiet()
    rig.evict_all()
    assert rig.request("a").sources == {key("a"): Source.DISK}


def test_a_report_that_raises_ends_no_thread(rig: Rig):
    rig.stored_and_evicted("abc")

    def broken_pipe(_: str) -> None:
        raise BrokenPipeError

    rig.mover._report = broken_pipe
    rig.store.inject(Fault(method="read", times=1, error=ValueError("a bug")))
    rig.store.inject(Fault(method="read", times=1, after=1, change=flipped(0)))
    assert rig.request("a").miss is Miss.LOAD_FAILED
    assert rig.request("b").miss is not None
    rig.check_all_quiet()


# ---- order ----------------------------------------------------------------------------------------------------------


def test_a_delete_that_waited_never_removes_a_newer_frame_of_its_key():
    rig = Rig(MemoryStore(1, 40 * FRAME_BYTES))
    rig.stored_and_evicted("a")
    next_spills = rig.cache.next_spills
    armed = threading.Event()
    failed_and_back = threading.Event()

    def at_the_worst_moment(max_chunks: int, *, idle: bool) -> list[Resident]:
        # The spill thread has looked for deletes and is about to choose: now a frame goes, and its key comes back.
        if armed.is_set() and not failed_and_back.is_set():
            failed_and_back.set()
            assert rig.request("a").miss is Miss.CORRUPT
        return next_spills(max_chunks, idle=idle)

    rig.cache.next_spills = at_the_worst_moment  # type: ignore[method-assign]
    rig.store.inject(Fault(method="read", times=1, change=flipped(999)))
    armed.set()
    rig.mover.wake_spiller()
    until(failed_and_back.is_set)
    rig.check_all_quiet()
    rig.evict_all()
    assert rig.request("a").sources == {key("a"): Source.DISK}
    assert rig.mover.stop()


def test_deletes_are_carried_out_when_nothing_is_to_be_written(rig: Rig):
    rig.stored_and_evicted("ab")
    rig.store.inject(Fault(method="read", times=1, change=flipped(0)))
    chain = rig.cache.open_chain()
    assert rig.walk(chain, "a") == 0
    until(lambda: key("a") not in {record.key for record in rig.store.inner.scan()})


def test_deletes_that_failed_are_tried_again(rig: Rig):
    rig.stored_and_evicted("ab")
    rig.store.inject(Fault(method="read", times=1, change=flipped(0)))
    rig.store.inject(Fault(method="write", times=1, error=StoreError("hiccup")))
    chain = rig.cache.open_chain()
    assert rig.walk(chain, "a") == 0
    until(lambda: key("a") not in {record.key for record in rig.store.inner.scan()})
    rig.check_all_quiet()


# ---- the end --------------------------------------------------------------------------------------------------------


def test_after_stop_no_thread_is_left_and_no_slot_is_touched():
    rig = Rig(MemoryStore(1, 40 * FRAME_BYTES))
    rig.stored_and_evicted("ab")
    assert rig.mover.stop()
    assert not any(thread.is_alive() for thread in rig.mover._threads)
    before = bytes(rig.pool)
    n_calls = dict(rig.store.calls)
    chain = rig.cache.open_chain()
    rig.cache.lookup(chain, key("a"))
    rig.mover.wake_spiller()
    rig.mover.delete(0, key("b"))
    assert bytes(rig.pool) == before
    assert rig.store.calls == n_calls


def test_stop_waits_for_the_job_at_hand_and_does_not_begin_another():
    rig = Rig(MemoryStore(1, 40 * FRAME_BYTES), n_promote_threads=1)
    rig.stored_and_evicted("abc")
    at_it, go_on = threading.Event(), threading.Event()

    def slow(_: float) -> None:
        at_it.set()
        go_on.wait(PATIENCE_S)

    rig.store._sleep = slow
    rig.store.inject(Fault(method="read", slow_s=1.0))
    chain = rig.cache.open_chain()
    assert [rig.cache.lookup(chain, k) for k in keys("abc")] == [Lookup.PENDING] * 3
    at_it.wait(PATIENCE_S)
    stopped = threading.Thread(target=rig.mover.stop)
    stopped.start()
    until(lambda: rig.mover._stopping)
    go_on.set()
    stopped.join(PATIENCE_S)
    assert rig.stats.promoted_chunks == 1
    assert not any(thread.is_alive() for thread in rig.mover._threads)


def test_stop_says_so_when_a_thread_is_stuck_in_the_store(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(mover_module, "STOP_TIMEOUT_S", 0.05)
    rig = Rig(MemoryStore(1, 40 * FRAME_BYTES), n_promote_threads=1)
    rig.stored_and_evicted("a")
    at_it, go_on = threading.Event(), threading.Event()

    def stuck(_: float) -> None:
        at_it.set()
        go_on.wait(PATIENCE_S)

    rig.store._sleep = stuck
    rig.store.inject(Fault(method="read", slow_s=1.0))
    rig.cache.lookup(rig.cache.open_chain(), key("a"))
    at_it.wait(PATIENCE_S)
    assert not rig.mover.stop()
    go_on.set()
    for thread in rig.mover._threads:
        thread.join(PATIENCE_S)
    assert rig.mover.stop()


def test_stop_survives_a_sync_that_fails():
    rig = Rig(MemoryStore(1, 40 * FRAME_BYTES))
    rig.request("a")
    rig.settle()
    rig.store.inject(Fault(method="sync", error=OSError(5, "Input/output error")))
    assert rig.mover.stop()


# ---- all of it ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_no_storm_of_faults_gives_a_wrong_byte_or_leaves_anything_pinned(seed: int):
    rng = random.Random(seed)
    rig = Rig(MemoryStore(rng.choice([1, 3]), 20 * FRAME_BYTES), n_slots=rng.choice([1, 2, 4, 8]))
    errors: list[Exception] = [StoreError("no medium"), StoreFullError("no room"), OSError(5, "Input/output error")]
    for _ in range(60):
        if rng.random() < 0.4:
            method = rng.choice(["write", "write", "read", "sync"])
            kinds: list[Fault] = [Fault(method=method, times=rng.randint(1, 4), error=rng.choice(errors))]
            if method == "write":
                kinds.append(Fault(method="write", times=2, error=StoreError("answer lost"), done=True))
            if method == "read":
                kinds.append(Fault(method="read", times=2, change=rng.choice([*DAMAGE.values()])))
            rig.store.inject(rng.choice(kinds))
        if rng.random() < 0.1:
            rig.store.heal()
        if rng.random() < 0.3:
            rig.clock.now += rng.choice([1.0, 70.0])
        rig.request(rng.choice("ab") + "".join(rng.sample("cdefghijkl", k=rng.randint(0, 7))))
    rig.store.heal()
    after_round = rig.n_rounds + 3  # then what was under way has had its trouble too

    def calm() -> bool:
        rig.clock.now += 100.0
        rig.mover.wake_spiller()
        return rig.n_rounds > after_round and rig.cache.disk_readable and rig.cache.disk_writable

    until(calm)
    rig.check_all_quiet()
    assert rig.mover.stop()
