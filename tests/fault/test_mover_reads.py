"""Failing reads and damaged frames: misses with a reason, and a cache that heals."""

from collections.abc import Callable

import pytest

from kvtier.codec.frame import seal_into
from kvtier.codec.raw import Raw
from kvtier.errors import StoreError
from kvtier.store.memory import MemoryStore
from kvtier.testing.faults import Fault, flipped
from kvtier.transfer.breaker import FIRST_PAUSE_S, TRIP_AFTER
from kvtier.types import Miss, Source
from tests.rigs.mover import DAMAGE, FRAME_BYTES, Rig, content, key, until


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
