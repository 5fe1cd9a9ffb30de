"""The transfer threads, down and up: every byte comes back, in any order of events, until they are stopped."""

import os
import random
import threading
import time
from pathlib import Path

import pytest

from kvtier.codec.base import Codec
from kvtier.codec.planes import BytePlanes
from kvtier.codec.raw import Raw
from kvtier.errors import StoreError
from kvtier.residency import Resident
from kvtier.store.base import Store
from kvtier.store.listing import records_of
from kvtier.store.lmdb import LmdbStore
from kvtier.store.memory import MemoryStore
from kvtier.testing.faults import Fault, flipped
from kvtier.transfer import mover as mover_module
from kvtier.transfer.mover import SPILL_BATCH, SPILL_BUFFER_BYTES, Mover
from kvtier.transfer.slots import Slots
from kvtier.types import Lookup, Miss, Source
from tests.rigs.mover import CHUNK_BYTES, FRAME_BYTES, PATIENCE_S, Rig, key, keys, until


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
    rig.cache._backlog._write_behind_after_s = 1.0
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


def test_threads_beside_the_scheduler_thread_compete_as_equals(rig: Rig):
    rig.stored_and_evicted("a")
    rig.request("a")  # every kind of thread has done something
    threads = [*rig.mover._threads, *rig.mover._spill_helpers.threads]
    assert {os.getpriority(os.PRIO_PROCESS, thread.native_id or 0) for thread in threads} == {
        os.getpriority(os.PRIO_PROCESS, 0)
    }


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
    until(lambda: key("a") not in {record.key for record in records_of(rig.store.inner.scan())})


def test_deletes_that_failed_are_tried_again(rig: Rig):
    rig.stored_and_evicted("ab")
    rig.store.inject(Fault(method="read", times=1, change=flipped(0)))
    rig.store.inject(Fault(method="write", times=1, error=StoreError("hiccup")))
    chain = rig.cache.open_chain()
    assert rig.walk(chain, "a") == 0
    until(lambda: key("a") not in {record.key for record in records_of(rig.store.inner.scan())})
    rig.check_all_quiet()


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


def test_stop_waits_for_the_jobs_at_hand_and_does_not_begin_another():
    n_threads, go_on = 3, threading.Event()
    rig = Rig(MemoryStore(1, 40 * FRAME_BYTES), n_promote_threads=n_threads)
    rig.stored_and_evicted("abcdefg")
    rig.store._sleep = lambda _: go_on.wait(PATIENCE_S)
    rig.store.inject(Fault(method="read", slow_s=1.0))
    n_before = rig.store.calls["read"]
    chain = rig.cache.open_chain()
    assert [rig.cache.lookup(chain, k) for k in keys("abcdefg")] == [Lookup.PENDING] * 7
    until(lambda: rig.store.calls["read"] == n_before + n_threads)
    stopped = threading.Thread(target=rig.mover.stop)
    stopped.start()
    until(lambda: rig.mover._stopping)
    go_on.set()
    stopped.join(PATIENCE_S)
    assert rig.stats.promoted_chunks == n_threads < 7
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


def test_a_sync_that_hangs_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(mover_module, "STOP_TIMEOUT_S", 0.05)
    rig, go_on = Rig(MemoryStore(1, 40 * FRAME_BYTES)), threading.Event()
    rig.store._sleep = lambda _: go_on.wait(PATIENCE_S)
    rig.request("a")
    rig.settle()
    rig.store.inject(Fault(method="sync", slow_s=1.0))
    started_s = time.monotonic()
    assert not rig.mover.stop()
    assert time.monotonic() - started_s < PATIENCE_S / 2
    go_on.set()
    until(rig.mover.stop)


def test_stop_survives_a_sync_that_fails():
    rig = Rig(MemoryStore(1, 40 * FRAME_BYTES))
    rig.request("a")
    rig.settle()
    rig.store.inject(Fault(method="sync", error=OSError(5, "Input/output error")))
    assert rig.mover.stop()
