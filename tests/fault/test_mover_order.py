"""Who goes first: along a chain, and between loads and spills."""

import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from unittest.mock import Mock

import pytest

from kvtier.errors import StoreError
from kvtier.store.memory import MemoryStore
from kvtier.testing.faults import Fault
from kvtier.tiers.disk import TOGETHER
from kvtier.transfer import mover as mover_module
from kvtier.transfer import precedence
from kvtier.transfer.mover import PROMOTIONS_AT_ONCE
from kvtier.types import ChunkKey, Lookup
from tests.rigs.mover import FRAME_BYTES, PATIENCE_S, Rig, content, keys, until

TWO_WRITES = "abcdefghijklmnop"[: 2 * TOGETHER]
"""Chunks of a round that goes to two shards."""


class Noting(MemoryStore):
    """Notes the keys of reads and writes in the order in which they begin."""

    def __init__(self) -> None:
        super().__init__(1, 40 * FRAME_BYTES)
        self.reads: list[ChunkKey] = []
        self.writes: list[ChunkKey] = []

    def read(self, shard: int, key: ChunkKey) -> AbstractContextManager[memoryview | None]:
        self.reads.append(key)
        return super().read(shard, key)

    def write(self, shard: int, puts: Sequence[tuple[ChunkKey, memoryview]], deletes: Sequence[ChunkKey]) -> None:
        self.writes += [key for key, _ in puts]
        super().write(shard, puts, deletes)


def test_the_chunks_of_a_chain_are_read_head_first():
    store = Noting()
    rig = Rig(store, n_promote_threads=1)
    rig.stored_and_evicted("abcdefg")
    rig.request("abcdefg")
    # Threads overtake each other by the few instructions between taking a job and reading, never by more.
    head_first = {key: n for n, key in enumerate(keys("abcdefg"))}
    assert all(abs(head_first[key] - n) < 5 for n, key in enumerate(store.reads))
    assert sorted(store.reads) == sorted(keys("abcdefg"))
    rig.mover.stop()


def test_chunks_of_a_chain_are_read_in_parallel():
    rig = Rig(MemoryStore(1, 40 * FRAME_BYTES), n_promote_threads=1, n_reads_ahead=5)
    rig.stored_and_evicted("abcdef")
    together = threading.Barrier(6)
    rig.store._sleep = lambda _: together.wait(PATIENCE_S)
    rig.store.inject(Fault(method="read", slow_s=1.0))
    assert rig.request("abcdef").sources.keys() == set(keys("abcdef"))
    rig.mover.stop()


@pytest.fixture
def read_at_once(monkeypatch: pytest.MonkeyPatch) -> Mock:
    """In place of the function of that name; opens nothing until it is told to."""
    stand_in = Mock(side_effect=lambda wanted, **_: [False] * len(wanted))
    monkeypatch.setattr(mover_module, "opens_at_once", lambda *_: True)
    monkeypatch.setattr(mover_module, "read_at_once", stand_in)
    return stand_in


def ask_for_the_rest_while_busy_with_the_first(rig: Rig, names: str, busy: threading.Event) -> None:
    """So that a thread, which sets `busy`, finds all of the others in its queue when it is done."""
    chain, (first, *rest) = rig.cache.open_chain(), keys(names)
    rig.cache.lookup(chain, first)
    assert busy.wait(PATIENCE_S)
    for k in rest:
        rig.cache.lookup(chain, k)


def test_a_thread_opens_several_chunks_together_in_their_order(read_at_once: Mock):
    rig = Rig(MemoryStore(1, 40 * FRAME_BYTES), n_promote_threads=1)
    rig.stored_and_evicted("abcdefg")
    busy, go_on = threading.Event(), threading.Event()
    together: list[list[ChunkKey]] = []

    def opened(wanted: Sequence[tuple[object, memoryview, ChunkKey]], **_: object) -> list[bool]:
        together.append([k for _, _, k in wanted])
        for _, slot, k in wanted:
            slot[:] = content(k)
        busy.set()
        go_on.wait(PATIENCE_S)
        return [True] * len(wanted)

    read_at_once.side_effect = opened
    ask_for_the_rest_while_busy_with_the_first(rig, "abcdefg", busy)
    go_on.set()
    rig.request("abcdefg")
    n = 1 + PROMOTIONS_AT_ONCE
    assert together == [keys("a"), keys("abcdefg")[1:n], keys("abcdefg")[n:]]
    rig.mover.stop()


def test_what_was_opened_together_is_told_before_what_was_not_is_read(read_at_once: Mock):
    rig = Rig(MemoryStore(1, 40 * FRAME_BYTES), n_promote_threads=1)
    rig.stored_and_evicted("abcde")
    busy, all_there, go_on = threading.Event(), threading.Event(), threading.Event()

    def opened(wanted: Sequence[tuple[object, memoryview, ChunkKey]], **_: object) -> list[bool]:
        busy.set()
        all_there.wait(PATIENCE_S)
        return [k != keys("b")[0] for _, _, k in wanted]

    read_at_once.side_effect = opened
    rig.store._sleep = lambda _: go_on.wait(PATIENCE_S)
    rig.store.inject(Fault(method="read", slow_s=1.0))
    ask_for_the_rest_while_busy_with_the_first(rig, "abcde", busy)
    all_there.set()
    until(lambda: rig.stats.promoted_chunks == 4)
    go_on.set()
    until(lambda: rig.stats.promoted_chunks == 5)
    rig.mover.stop()


def test_chunks_that_cannot_be_opened_together_are_promoted_one_by_one(read_at_once: Mock):
    read_at_once.side_effect = RuntimeError("a surprise")
    rig = Rig(MemoryStore(1, 40 * FRAME_BYTES))
    rig.stored_and_evicted("abcdef")
    assert rig.request("abcdef").sources.keys() == set(keys("abcdef"))
    assert rig.stats.load_errors == 0
    assert any("a surprise" in report for report in rig.reports)
    rig.mover.stop()


@pytest.mark.parametrize("idle", [True, False])
def test_a_thread_lets_others_run_after_each_chunk_if_it_is_idle_class(read_at_once: Mock, *, idle: bool):
    def make_rig() -> Rig:
        if idle:
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        return Rig(MemoryStore(1, 40 * FRAME_BYTES))

    with ThreadPoolExecutor(1) as maker:
        rig = maker.submit(make_rig).result()
    rig.stored_and_evicted("ab")
    rig.request("ab")
    assert {call.kwargs["yields"] for call in read_at_once.call_args_list} == {idle}
    rig.mover.stop()


def test_two_shards_are_written_at_once():
    rig = Rig(MemoryStore(2, 40 * FRAME_BYTES), n_slots=2 * TOGETHER)
    together = threading.Barrier(2)
    rig.store._sleep = lambda _: together.wait(PATIENCE_S)
    rig.store.inject(Fault(method="write", slow_s=1.0, times=2))
    rig.keep(rig.cache.open_chain(), TWO_WRITES)
    rig.settle()
    assert not together.broken
    assert rig.stats.spilled_chunks == len(TWO_WRITES)
    rig.mover.stop()


def test_a_shard_that_cannot_be_written_costs_nothing_of_another_one():
    rig = Rig(MemoryStore(2, 40 * FRAME_BYTES), n_slots=2 * TOGETHER)
    rig.store.inject(Fault(method="write", times=1, error=StoreError("an unwritable sector")))
    rig.keep(rig.cache.open_chain(), TWO_WRITES)
    rig.settle()
    assert rig.stats.spilled_chunks == len(TWO_WRITES), "those of the other shard at once, the rest later"
    rig.check_all_quiet()
    rig.mover.stop()


def test_a_failed_read_in_the_middle_of_a_chain_costs_that_chunk_alone():
    rig = Rig(MemoryStore(1, 40 * FRAME_BYTES), n_promote_threads=2)
    rig.stored_and_evicted("abcdef")
    rig.store.inject(Fault(method="read", after=2, times=1, error=StoreError("an unreadable sector")))
    chain = rig.cache.open_chain()
    n_hits = rig.walk(chain, "abcdef")
    rig.cache.close_chain(chain)
    assert n_hits < 6
    assert rig.stats.load_errors == 1
    assert rig.stats.promoted_chunks == 5
    rig.check_all_quiet()
    rig.mover.stop()


def test_a_spill_waits_while_a_load_is_under_way(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(precedence, "GIVE_WAY_S", PATIENCE_S)
    store = Noting()
    rig = Rig(store)
    rig.stored_and_evicted("a")
    go_on = threading.Event()
    rig.store._sleep = lambda _: go_on.wait(PATIENCE_S)
    rig.store.inject(Fault(method="read", slow_s=1.0))
    chain = rig.cache.open_chain()
    assert rig.cache.lookup(chain, keys("a")[0]) is Lookup.PENDING
    n_written, n_rounds = len(store.writes), rig.n_rounds
    rig.keep(rig.cache.open_chain(), "xy")
    until(lambda: rig.cache.n_dirty() == 2 and rig.n_rounds > n_rounds)
    assert len(store.writes) == n_written
    go_on.set()
    rig.settle()
    assert store.writes[n_written:] == keys("xy")
    rig.mover.stop()


def test_loads_without_end_do_not_stop_spills(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(precedence, "GIVE_WAY_S", 0.001)
    rig = Rig(MemoryStore(1, 40 * FRAME_BYTES))
    rig.stored_and_evicted("a")
    go_on = threading.Event()
    rig.store._sleep = lambda _: go_on.wait(PATIENCE_S)
    rig.store.inject(Fault(method="read", slow_s=1.0))
    rig.cache.lookup(rig.cache.open_chain(), keys("a")[0])
    rig.keep(rig.cache.open_chain(), "xy")
    until(lambda: not rig.cache.n_dirty())
    go_on.set()
    rig.mover.stop()
