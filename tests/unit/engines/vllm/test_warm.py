"""Warmer: the pool becomes usable piece by piece, in order, and no further than memory goes."""

import os
import threading
from pathlib import Path

import pytest

pytest.importorskip("vllm")

from vllm.v1.kv_offload.cpu import gpu_worker

from kvtier.engines.vllm import compat, warm
from kvtier.engines.vllm.metadata import KVTierWorkerMetadata
from kvtier.engines.vllm.region import open_region
from kvtier.engines.vllm.warm import Populate, Warmer, first_slots

SLOT_BYTES = 1 << 20


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(warm, "FIRST_BYTES", 4 * SLOT_BYTES)
    monkeypatch.setattr(warm, "PIECE_BYTES", 3 * SLOT_BYTES)


def test_the_first_piece_is_ready_before_the_engine_starts_and_the_rest_follows_in_order():
    pieces: list[tuple[int, int]] = []
    warmer = Warmer(12, SLOT_BYTES, lambda first, end: pieces.append((first, end)), pytest.fail)
    warmer.begin()
    assert (warmer.n_ready, pieces) == (4, [(0, 4)])
    warmer.go_on()
    warmer._thread.join(10)
    assert (warmer.n_ready, pieces) == (12, [(0, 4), (4, 7), (7, 10), (10, 12)])


def test_a_pool_smaller_than_the_first_piece_is_ready_at_once():
    assert first_slots(3, SLOT_BYTES) == 3
    assert first_slots(5, 1 << 40) == 1


def test_memory_that_cannot_be_had_leaves_the_pool_as_large_as_it_is_and_is_told():
    told: list[str] = []

    def prepare(first: int, _: int) -> None:
        if first >= 7:
            raise OSError(12, "Cannot allocate memory")

    warmer = Warmer(12, SLOT_BYTES, prepare, told.append)
    warmer.begin()
    warmer.go_on()
    warmer._thread.join(10)
    assert warmer.n_ready == 7
    assert len(told) == 1
    assert "only 7 of 12 slots" in told[0]


def test_a_first_piece_that_cannot_be_had_is_an_error():
    def prepare(_: int, __: int) -> None:
        raise OSError(12, "Cannot allocate memory")

    with pytest.raises(OSError, match="Cannot allocate"):
        Warmer(12, SLOT_BYTES, prepare, pytest.fail).begin()


def test_stopping_waits_for_the_piece_at_hand_and_begins_no_other():
    at_it, go = threading.Event(), threading.Event()
    pieces: list[int] = []

    def prepare(first: int, _: int) -> None:
        pieces.append(first)
        if first:
            at_it.set()
            go.wait(10)

    warmer = Warmer(12, SLOT_BYTES, prepare, pytest.fail)
    warmer.begin()
    warmer.go_on()
    assert at_it.wait(10)
    threading.Timer(0.05, go.set).start()
    warmer.stop()
    assert not warmer._thread.is_alive()
    assert pieces == [0, 4]


def test_reports_of_several_workers_are_kept_apart():
    merged = KVTierWorkerMetadata(ready_slots={0: 5}).aggregate(KVTierWorkerMetadata(ready_slots={1: 9}))
    assert merged.ready_slots == {0: 5, 1: 9}


def test_pages_of_the_pool_are_made_when_their_piece_is_and_not_before():
    with warm.lazy_region():
        region = open_region(
            f"test-{os.getpid()}", num_chunks=8, rank=0, bytes_per_chunk=SLOT_BYTES, page_bytes=SLOT_BYTES
        )
    try:
        assert os.fstat(region.fd).st_blocks == 0
        Populate(region, SLOT_BYTES)(0, 3)
        assert os.fstat(region.fd).st_blocks * 512 == 3 * SLOT_BYTES
        Populate(region, SLOT_BYTES)(3, 8)
        assert os.fstat(region.fd).st_blocks * 512 == 8 * SLOT_BYTES
    finally:
        region.cleanup()
        Path(compat.region_path(f"test-{os.getpid()}")).unlink(missing_ok=True)


def test_what_is_patched_for_a_lazy_region_is_as_before_afterwards():
    before = gpu_worker.pin_mmap_region
    with warm.lazy_region():
        assert gpu_worker.pin_mmap_region is not before
    assert gpu_worker.pin_mmap_region is before
