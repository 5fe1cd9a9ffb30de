"""Failing writes: spilling pauses and goes on, nothing stays pinned, nothing is forgotten in the store."""

from collections.abc import Sequence

import pytest

from kvtier.errors import StoreError, StoreFullError
from kvtier.store.memory import MemoryStore
from kvtier.testing.faults import Fault
from kvtier.transfer import mover as mover_module
from kvtier.transfer.breaker import FIRST_PAUSE_S, TRIP_AFTER
from kvtier.types import ChunkKey, Source
from tests.rigs.mover import FRAME_BYTES, Rig, keys, until

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


@pytest.mark.parametrize("error", [StoreFullError("no room"), StoreError("no medium")], ids=["full", "failing"])
def test_what_made_room_for_a_batch_that_was_not_written_is_gone_from_index_and_store(error: Exception):
    rig = Rig(MemoryStore(2, 200 * FRAME_BYTES))
    texts = ["".join(chr(0x100 + 8 * n + i) for i in range(8)) for n in range(60)]
    for text in texts[:52]:  # full
        rig.request(text)
        rig.settle()
    assert rig.stats.disk_evicted_chunks
    for text in texts[52:]:
        rig.store.inject(Fault(method="write", times=1, error=error))
        rig.request(text)
        rig.check_all_quiet()
    assert rig.stats.spill_failed_chunks > len(texts[52:]), "no batch of several failed"
    assert all(k in rig.disk for text in texts[52:] for k in keys(text))
    assert rig.mover.stop()


def test_failing_syncs_are_said_once_however_well_the_writes_go(rig: Rig):
    rig.store.inject(Fault(method="sync", error=StoreError("no medium")))
    for n, name in enumerate("abcd"):
        rig.clock.now += 5.0
        rig.request(name)
        until(lambda n=n: rig.store.calls["sync"] > n)
    assert [line for line in rig.reports if "cannot be synced" in line and "no medium" in line] == rig.reports[:1]
    rig.store.heal()
    rig.clock.now += 100.0
    until(lambda: not rig.mover._unsynced)
    rig.check_all_quiet()


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
