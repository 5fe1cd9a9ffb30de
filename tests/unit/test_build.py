"""build: a configuration becomes a running cache over a real store. The test is the engine."""

import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from kvtier import build as build_module
from kvtier.codec.frame import seal_into
from kvtier.codec.raw import Raw
from kvtier.epoch import NAMESPACES, Epoch
from kvtier.errors import StoreError
from kvtier.keys import Namespace
from kvtier.store.listing import records_of
from kvtier.store.lmdb import LmdbStore
from kvtier.store.private import DirectoryLock
from kvtier.transfer.mover import Mover
from kvtier.types import Miss, Source
from kvtier.usage import read_usage
from tests.rigs.built import PATIENCE_S, BuiltEngine, until

MIB = 1 << 20
CHUNK_BYTES = 64 << 10
NAMESPACE = Namespace({"model": "m", "dtype": "bfloat16"})


class Engine(BuiltEngine):
    """One start of an engine, with a pool of its own."""

    def __init__(
        self,
        folder: Path | None,
        *,
        n_slots: int = 16,
        namespace: Namespace = NAMESPACE,
        disk: Mapping[str, object] | None = None,
        keys: Mapping[str, object] | None = None,
    ) -> None:
        settings: dict[str, object] = {"disk": "off"}
        if folder is not None:
            settings["disk"] = {"path": str(folder), "capacity": "64MiB", "write_behind_after": "0s", **(disk or {})}
        pool = memoryview(bytearray(n_slots * CHUNK_BYTES + 100))
        super().__init__(settings | dict(keys or {}), pool, CHUNK_BYTES, namespace)
        started.append(self)


started: list[Engine] = []


@pytest.fixture(autouse=True)
def stop_all() -> Iterator[None]:
    yield
    while started:
        started.pop().stop()
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("kvtier")]


def bytes_on_disk(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def test_without_a_disk_tier_chunks_hit_in_host():
    engine = Engine(None)
    assert engine.cache.disk is None
    engine.request(range(8))
    assert engine.request(range(8)) == [Source.HOST] * 8
    assert engine.reports == []


def test_the_pool_is_cut_into_whole_slots():
    engine = Engine(None, n_slots=5)
    assert engine.cache.host.n_slots == 5


def test_what_host_dropped_comes_back_from_disk(tmp_path: Path):
    engine = Engine(tmp_path / "kv")
    engine.spilled(range(40))
    assert engine.request(range(8)) == [Source.DISK] * 8
    assert engine.reports == []
    stats = engine.cache.stats
    assert stats.spill_stored_bytes < stats.spill_raw_bytes


def test_a_restart_finds_what_was_spilled(tmp_path: Path):
    first = Engine(tmp_path / "kv")
    first.spilled(range(40))
    first.stop()
    second = Engine(tmp_path / "kv")
    assert len(second.cache.disk or ()) == 40
    for start in range(0, 40, 8):
        assert second.request(range(start, start + 8)) == [Source.DISK] * 8
    second.cache.check()


def test_a_warm_cache_needs_no_sync_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first = Engine(tmp_path / "kv")
    first.spilled(range(16))
    monkeypatch.setattr(Mover, "_sync", lambda *_, **__: None)
    first.stop()
    assert Engine(tmp_path / "kv").request(range(16))[:14] == [Source.DISK] * 14


def test_frames_of_another_namespace_never_hit_and_are_told_as_foreign(tmp_path: Path):
    first = Engine(tmp_path / "kv")
    first.spilled(range(8))
    first.stop()
    other = Engine(tmp_path / "kv", namespace=Namespace({"model": "m", "dtype": "bfloat16", "tp": 2}))
    assert other.request(range(8)) == []
    assert other.miss is Miss.FOREIGN


def test_a_reset_does_not_wait_for_a_disk_that_hangs_and_forgets_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(build_module, "RESET_WAIT_S", 0.05)
    go_on = threading.Event()
    engine = Engine(tmp_path / "disk")
    engine.spilled(range(4))
    before = engine.kvtier.family
    monkeypatch.setattr(Epoch, "bump", lambda _: go_on.wait(PATIENCE_S))
    started_s = time.monotonic()
    engine.kvtier.reset()
    assert time.monotonic() - started_s < PATIENCE_S / 2
    family = engine.kvtier.family
    assert engine.request(range(4)) == []
    go_on.set()
    assert engine.kvtier.family == family
    assert len(engine.request(range(4))) == 4
    engine.stop()
    restarted = Engine(tmp_path / "disk")  # from the weights on disk: the epoch they had is theirs again
    assert restarted.kvtier.family == before != family


def test_after_a_reset_neither_this_engine_nor_the_next_finds_anything(tmp_path: Path):
    first = Engine(tmp_path / "kv")
    first.spilled(range(8))
    before = first.kvtier.family
    first.kvtier.reset()
    assert first.kvtier.family != before
    assert first.request(range(8)) == []
    first.spilled(range(8))
    first.stop()
    second = Engine(tmp_path / "kv")
    assert second.kvtier.family not in {before, first.kvtier.family}
    assert second.request(range(8)) == []


@pytest.mark.parametrize("in_the_way", ["kv", "kv/kvtier-store.lock", "kv/shard-0000.lmdb"])
def test_an_unusable_path_leaves_the_engine_without_a_disk_tier(tmp_path: Path, in_the_way: str):
    place = tmp_path / in_the_way
    place.parent.mkdir(exist_ok=True)
    if in_the_way == "kv":
        place.write_text("a file")
    else:
        place.mkdir()
    engine = Engine(tmp_path / "kv")
    if engine.cache.disk is None:
        assert "disk tier is off" in engine.reports[-1]
    else:
        assert engine.reports, "it found a way, and says so"
    engine.request(range(8))
    assert engine.request(range(8)) == [Source.HOST] * 8


def test_a_link_in_place_of_the_lock_is_not_followed(tmp_path: Path):
    (tmp_path / "kv").mkdir()
    (tmp_path / "target").write_text("")
    (tmp_path / "kv" / "kvtier-store.lock").symlink_to(tmp_path / "target")
    engine = Engine(tmp_path / "kv")
    assert engine.cache.disk is None
    assert "disk tier is off" in engine.reports[0]


def test_a_store_whose_index_cannot_be_read_leaves_the_engine_without_a_disk_tier(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def unreadable(_: LmdbStore) -> Iterator[None]:
        raise StoreError("shard 0: cannot be read")

    with monkeypatch.context() as patch:
        patch.setattr(LmdbStore, "scan", unreadable)
        engine = Engine(tmp_path / "kv")
    assert engine.cache.disk is None
    assert "cannot be read" in engine.reports[-1]
    assert Engine(tmp_path / "kv").cache.disk is not None, "the folder was let go"


def test_an_epoch_that_cannot_be_kept_is_reported_and_a_restart_finds_nothing(tmp_path: Path):
    (tmp_path / "kv").mkdir(mode=0o700)
    (tmp_path / "kv" / "namespaces").write_text("in the way")
    first = Engine(tmp_path / "kv")
    assert "will not be found after a restart" in first.reports[0]
    first.spilled(range(8))
    assert first.cache.disk is not None
    first.stop()
    assert Engine(tmp_path / "kv").request(range(8)) == []


def test_a_capacity_too_small_for_a_store_leaves_the_engine_without_a_disk_tier(tmp_path: Path):
    engine = Engine(tmp_path / "kv", disk={"capacity": "1MiB"})
    assert engine.cache.disk is None
    assert "disk tier is off" in engine.reports[-1]


def test_the_capacity_is_never_passed_on_disk(tmp_path: Path):
    folder = tmp_path / "kv"
    engine = Engine(folder, disk={"capacity": "16MiB", "codec": "raw"})
    for start in range(0, 600, 16):
        engine.request(range(start, start + 16))
        until(lambda: not engine.cache.n_dirty())
        assert bytes_on_disk(folder) <= 16 * MIB
    assert engine.cache.stats.disk_evicted_chunks > 0
    gauges = engine.cache.snapshot(0.0)[1]
    assert 8 * MIB < gauges.disk_used_bytes <= gauges.disk_capacity_bytes <= 16 * MIB
    assert engine.cache.stats.spill_failed_chunks == 0
    engine.cache.check()


def test_a_smaller_capacity_holds_from_the_next_start_on(tmp_path: Path):
    folder = tmp_path / "kv"
    first = Engine(folder, disk={"capacity": "48MiB", "codec": "raw"})
    first.spilled(range(400))
    first.stop()
    second = Engine(folder, disk={"capacity": "16MiB", "codec": "raw"})
    assert bytes_on_disk(folder) <= 16 * MIB
    second.spilled(range(1000, 1200))
    assert bytes_on_disk(folder) <= 16 * MIB
    assert second.cache.stats.spill_failed_chunks == 0
    second.cache.check()


def test_with_evict_only_nothing_is_written_behind(tmp_path: Path):
    engine = Engine(tmp_path / "kv", disk={"write": "evict_only"})
    engine.request(range(8))
    assert engine.cache.next_spills(8, idle=True) == []
    assert engine.cache.n_dirty() == 8


def test_the_write_budget_holds_across_restarts(tmp_path: Path):
    disk = {"codec": "raw", "write_budget": "200KB/day", "write_burst": "100KB"}
    written = 0
    for start in (0, 200, 400):
        engine = Engine(tmp_path / "kv", disk=disk)
        for first in range(start, start + 96, 16):
            engine.request(range(first, first + 16))
            until(lambda engine=engine: not engine.cache.n_dirty())
        assert engine.cache.stats.over_budget_chunks > 0
        assert engine.cache.stats.spill_failed_chunks == 0
        written += engine.cache.stats.spill_stored_bytes
        engine.stop()
    assert 50_000 < written <= 101_000  # what comes back in the seconds of this test included


def test_what_is_used_once_is_not_written_if_only_a_second_use_admits(tmp_path: Path):
    engine = Engine(tmp_path / "kv", disk={"admit": "second_use"})
    engine.request(range(8))
    assert engine.cache.n_dirty() == 0
    engine.request(range(4))
    until(lambda: engine.cache.stats.spilled_chunks == 4)
    assert engine.cache.stats.held_back_chunks == 8


def test_a_store_with_a_stuck_reader_is_not_closed_under_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    closed: list[object] = []
    close = LmdbStore.close
    monkeypatch.setattr(LmdbStore, "close", lambda store: (closed.append(store), close(store)))
    engine = Engine(tmp_path / "kv")
    with monkeypatch.context() as patch:
        stop = Mover.stop
        patch.setattr(Mover, "stop", lambda mover: stop(mover) and False)
        engine.stop()
    assert closed == []
    assert "stuck" in engine.reports[-1]


def test_stopping_twice_is_no_error(tmp_path: Path):
    engine = Engine(tmp_path / "kv")
    engine.stop()
    engine.stop()


def test_what_was_asked_and_found_is_kept_beside_the_namespace_over_restarts(tmp_path: Path) -> None:
    for _ in range(2):
        engine = Engine(tmp_path / "kv")
        chain = engine.cache.open_chain()
        engine.cache.count_request(chain, asked=100, device=10, host=20, disk=30)
        engine.stop()
    usage = read_usage(tmp_path / "kv" / NAMESPACES / f"{NAMESPACE.base()}.usage")
    del usage["last_used_s"]
    assert usage == {
        "requests": 2, "asked_tokens": 200, "device_hit_tokens": 20, "host_hit_tokens": 40, "disk_hit_tokens": 60,
    }  # fmt: skip


@pytest.fixture(params=["integrity", "encryption"])
def secured(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[int], dict[str, object]]:
    """Settings with the key number so and so."""

    def settings(number: int) -> dict[str, object]:
        path = tmp_path / f"key-{number}"
        path.write_text(random.Random(number).randbytes(32).hex())
        path.chmod(0o600)
        return {request.param: {"hmac_key_file" if request.param == "integrity" else "key_file": str(path)}}

    return settings


Secured = Callable[[int], dict[str, object]]


def test_a_restart_with_the_same_key_finds_what_was_spilled(tmp_path: Path, secured: Secured):
    first = Engine(tmp_path / "kv", keys=secured(1))
    first.spilled(range(40))
    first.stop()
    again = Engine(tmp_path / "kv", keys=secured(1))
    assert again.request(range(8)) == [Source.DISK] * 8
    assert again.reports == []


def test_with_another_key_or_none_it_is_foreign_and_nothing_is_corrupt(tmp_path: Path, secured: Secured):
    first = Engine(tmp_path / "kv", keys=secured(1))
    first.spilled(range(8))
    first.stop()
    for keys in (secured(2), {}):
        other = Engine(tmp_path / "kv", keys=keys)
        assert other.request(range(8)) == []
        assert other.miss is Miss.FOREIGN
        assert other.cache.stats.corrupt_frames == 0
        other.stop()


def test_kv_planted_by_one_without_the_key_is_refused_counted_and_gone(tmp_path: Path, secured: Secured):
    engine = Engine(tmp_path / "kv", keys=secured(1))
    engine.spilled(range(8))
    keys = engine.keys(range(8))
    engine.stop()
    planted = memoryview(bytearray(CHUNK_BYTES + 1000))
    n_bytes = seal_into(memoryview(bytes(CHUNK_BYTES)), planted, key=keys[0], codec=Raw())
    store = LmdbStore.open(tmp_path / "kv", 64 * MIB)
    shard = next(record.shard for record in records_of(store.scan()) if record.key == keys[0])
    store.write(shard, [(keys[0], planted[:n_bytes])], [])
    store.close()
    victim = Engine(tmp_path / "kv", keys=secured(1))
    assert victim.request(range(8)) == []
    assert victim.miss is Miss.FOREIGN
    assert any("guarded as 0x00" in line for line in victim.reports)
    until(lambda: victim.cache.stats.foreign_frames == 1)


def test_a_key_file_that_cannot_be_used_leaves_the_disk_tier_off(tmp_path: Path):
    engine = Engine(tmp_path / "kv", keys={"integrity": {"hmac_key_file": str(tmp_path / "none")}})
    assert engine.cache.disk is None
    assert "openssl rand -hex 32" in engine.reports[0]
    assert not (tmp_path / "kv").exists()


def test_a_key_kept_in_the_directory_that_it_protects_is_refused(tmp_path: Path):
    engine = Engine(tmp_path / "kv", keys={"encryption": {"key_file": str(tmp_path / "kv" / "key")}})
    assert "lies in the directory that it is to protect" in engine.reports[0]


@pytest.mark.parametrize("planted", [".", "namespaces"])
def test_nothing_is_created_where_a_link_leads(tmp_path: Path, planted: str):
    victim, link = tmp_path / "victim", tmp_path / "kv" / planted
    victim.mkdir(0o700)
    link.parent.mkdir(0o700, exist_ok=True) if planted != "." else None
    link.symlink_to(victim)
    engine = Engine(tmp_path / "kv")
    assert engine.cache.disk is None
    assert "is a symlink" in engine.reports[0]
    assert list(victim.iterdir()) == []


def test_what_an_engine_leaves_is_closed_to_others(tmp_path: Path):
    before = os.umask(0)
    try:
        engine = Engine(tmp_path / "deep" / "kv")
        engine.spilled(range(8))
        engine.stop()
    finally:
        os.umask(before)
    left = [tmp_path / "deep", *(tmp_path / "deep").rglob("*")]
    assert len(left) > 5
    assert [path for path in left if path.lstat().st_mode & 0o077] == []


def test_beside_a_store_of_a_newer_format_an_engine_keeps_its_own_within_what_is_left(tmp_path: Path):
    newer = written_by_a_newer_version(tmp_path / "kv")
    for expected in ([], [Source.DISK] * 8):
        engine = Engine(tmp_path / "kv")
        assert "directory format 2" in engine.reports[0]
        assert "format-1" in engine.reports[0]
        assert engine.cache.disk is not None
        assert engine.request(range(8)) == expected
        engine.spilled(range(8))
        engine.stop()
    assert bytes_on_disk(tmp_path / "kv") <= 64 * MIB
    assert {path: path.stat().st_mtime_ns for path in newer} == newer


def test_nothing_is_kept_beside_a_newer_version_that_is_running(tmp_path: Path):
    written_by_a_newer_version(tmp_path / "kv")
    with DirectoryLock(tmp_path / "kv" / "kvtier-store.lock") as lock:
        lock.share()
        engine = Engine(tmp_path / "kv")
    assert engine.cache.disk is None
    assert "in use by a newer version" in engine.reports[-1]


def test_nothing_is_kept_beside_a_newer_version_that_left_no_room(tmp_path: Path):
    written_by_a_newer_version(tmp_path / "kv")
    (tmp_path / "kv" / "segment-of-format-2").write_bytes(bytes(50 * MIB))
    engine = Engine(tmp_path / "kv")
    assert engine.cache.disk is None
    assert "too few" in engine.reports[-1]
    assert not (tmp_path / "kv" / "format-1").exists()


def written_by_a_newer_version(folder: Path) -> dict[Path, int]:
    """Its shards, and when each was changed last."""
    engine = Engine(folder)
    engine.spilled(range(8))
    engine.stop()
    manifest = folder / "kvtier-store.json"
    manifest.write_text(manifest.read_text().replace('"format": 1', '"format": 2'))
    return {path: path.stat().st_mtime_ns for path in folder.glob("shard-*.lmdb")}
