"""Several engines, each in a process of its own, on one disk directory."""

import os
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kvtier.store.listing import records_of
from kvtier.store.lmdb import LmdbStore
from kvtier.types import Source
from tests.rigs.engines import EngineProcess, until

MIB = 1 << 20
Start = Callable[..., EngineProcess]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    engines: list[EngineProcess] = []

    def make(**settings: Any) -> EngineProcess:
        engines.append(EngineProcess(tmp_path / "kv", **settings))
        return engines[-1]

    yield make
    for engine in engines:
        if engine.process.is_alive():
            os.kill(engine.process.pid or 0, signal.SIGCONT)
            engine.kill()


def sound(seen: dict[str, Any]) -> None:
    assert (seen["wrong"], seen["failed"], seen["errors"], seen["reports"]) == (0, 0, [], [])


def bytes_on_disk(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def test_an_engine_hits_what_another_wrote_whatever_their_host_pools(start: Start):
    writer, reader = start(n_slots=16), start(n_slots=48)
    assert reader.call("request", 1, 8) == 0
    writer.call("request", 2, 12)
    assert writer.call("settle")
    until(lambda: len(reader.call("on_disk")) >= 20, "the reader never heard of what the writer wrote")
    assert reader.call("request", 2, 12) == 12
    seen = reader.call("seen")
    assert seen["hits"][Source.DISK] == 12
    sound(seen)


def test_engines_of_other_models_share_the_room_and_nothing_else(start: Start):
    one, other = start(namespace="a"), start(namespace="b")
    one.call("request", 1, 8)
    assert one.call("settle")
    until(lambda: len(other.call("on_disk")) == 8, "the other's frames take no room")
    assert other.call("request", 1, 8) == 0
    assert other.call("settle")
    until(lambda: len(one.call("on_disk")) == 8 or len(one.call("on_disk")) == 16, "room is accounted for")
    assert other.call("request", 1, 8) == 8
    sound(one.call("seen"))
    sound(other.call("seen"))


def test_a_chunk_that_two_engines_compute_at_once_ends_up_on_disk_once(start: Start, tmp_path: Path):
    engines = [start(n_slots=160), start(n_slots=160), start(n_slots=160)]
    for engine in engines:
        engine.call("seen")
    for prompt in range(10):
        for engine in engines:
            engine.start("request", prompt, 12)
        for engine in engines:
            engine.answer()
    for engine in engines:
        assert engine.call("settle")

    def once() -> bool:
        with_shards = [engine.call("on_disk") for engine in engines]
        there = _there(tmp_path / "kv")
        return len({key for _, key in there}) == len(there) == 120 and all(known == there for known in with_shards)

    until(once, "chunks stayed on disk twice, or the indexes do not agree")
    for engine in engines:
        engine.call("check")
        sound(engine.call("seen"))


def test_a_reset_in_one_engine_takes_nothing_from_the_other(start: Start):
    one, other = start(), start()
    for engine in (one, other):
        engine.call("request", 1, 8)
        assert engine.call("settle")
    one.call("reset")
    assert one.call("request", 1, 8) == 0
    other.call("push_out", 1)
    assert other.call("request", 1, 8) == 8
    sound(one.call("seen"))
    sound(other.call("seen"))


def test_one_capacity_and_one_write_budget_hold_for_all(start: Start, tmp_path: Path):
    disk = {"codec": "raw", "write_budget": "8MiB/day", "write_burst": "4MiB"}
    engines = [start(capacity_bytes=16 * MIB, disk=disk, namespace=name) for name in "abc"]
    for n, engine in enumerate(engines):
        engine.start("traffic", n, 150, 400)
    for engine in engines:
        sound(engine.answer())
    assert sum(engine.call("count", "spill_stored_bytes") for engine in engines) <= 4 * MIB + (1 << 16)
    assert bytes_on_disk(tmp_path / "kv") <= 16 * MIB
    assert len({engine.call("capacity") for engine in engines}) == 1


@pytest.mark.parametrize("seed", range(3))
def test_engines_killed_at_random_moments_never_harm_the_others(start: Start, tmp_path: Path, seed: int):
    rng = random.Random(seed)
    capacity_bytes = 24 * MIB
    names = ["torture", "torture", rng.choice(["torture", "another"])]
    engines = [
        start(capacity_bytes=capacity_bytes, n_slots=16 + 16 * n, namespace=name) for n, name in enumerate(names)
    ]
    for n, engine in enumerate(engines):
        engine.start("traffic", 100 * seed + n, 250, 150)
    for victim in rng.sample(range(3), 2):
        engines[victim].process.join(rng.uniform(0.3, 1.2))
        engines[victim].kill()
        engines[victim] = start(capacity_bytes=capacity_bytes, namespace=names[victim])
        engines[victim].start("traffic", 1000 + 100 * seed + victim, 120, 150)
        assert bytes_on_disk(tmp_path / "kv") <= capacity_bytes
    for engine in engines:
        sound(engine.answer())
    for engine in engines:
        assert engine.call("settle")
        engine.call("check")

    def agree() -> bool:
        there = _there(tmp_path / "kv")
        return all({key for _, key in engine.call("on_disk")} == {key for _, key in there} for engine in engines)

    until(agree, "an index is not what is there")
    assert bytes_on_disk(tmp_path / "kv") <= capacity_bytes
    late = start(capacity_bytes=capacity_bytes)
    late.call("traffic", seed, 50, 150)
    seen = late.call("seen")
    assert seen["hits"][Source.DISK] > 0
    sound(seen)


def test_an_engine_stopped_for_a_while_is_not_waited_for_and_catches_up(start: Start):
    one, other = start(), start()
    one.call("request", 1, 8)
    assert one.call("settle")
    pid = one.process.pid
    assert pid is not None
    one.start("traffic", 1, 100, 100)
    os.kill(pid, signal.SIGSTOP)
    other.call("traffic", 2, 100, 100)
    assert other.call("seen")["worst_call_s"] < 2.0
    os.kill(pid, signal.SIGCONT)
    assert one.answer()["wrong"] == 0
    for engine in (one, other):
        assert engine.call("settle")
    until(lambda: one.call("on_disk") == other.call("on_disk"), "the indexes do not agree")
    for engine in (one, other):
        seen = engine.call("seen")
        assert (seen["wrong"], seen["failed"]) == (0, 0)


def _there(folder: Path) -> set[tuple[int, bytes]]:
    store = LmdbStore.attach(folder)
    try:
        return {(record.shard, record.key[8:]) for record in records_of(store.scan())}
    finally:
        store.close()
