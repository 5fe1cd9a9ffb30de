"""Keeper: purges reach a running engine, TTLs end chunks in their own tier, and a busy chunk is waited for."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kvtier import config as config_module
from kvtier import keeper as keeper_module
from kvtier.build import Kvtier, build
from kvtier.keeper import Keeper
from kvtier.keys import NO_ADAPTER, NO_TENANT, Namespace, tenant_digest
from kvtier.purges import Listener, Notice, post, unconfirmed
from kvtier.store.lmdb import LmdbStore
from kvtier.types import ChunkKey, Geometry, Lookup
from tests.rigs.cache import Rig, keys

CHUNK_BYTES = 64 << 10
NAMESPACE = Namespace({"model": "m"})


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Kvtier]]:
    """Start an engine's cache of 16 slots over the store in `tmp_path / "kv"`."""
    running: list[Kvtier] = []

    def begin(host: dict[str, Any] | None = None, **disk: Any) -> Kvtier:
        settings = {
            "host": host or {},
            "disk": {"path": str(tmp_path / "kv"), "capacity": "64MiB", "write_behind_after": "0s", **disk},
            "log": {"every": "off"},
        }
        pool = memoryview(bytearray(16 * CHUNK_BYTES))
        geometry = Geometry(CHUNK_BYTES, 16, "bfloat16")
        running.append(build(config_module.parse(settings), geometry, pool, NAMESPACE, report=print, emit=print))
        return running[-1]

    yield begin
    for engine in running:
        engine.stop()


def store(engine: Kvtier, words: str, tenant: bytes = NO_TENANT) -> list[ChunkKey]:
    """Offload one chunk per word, and have it on disk."""
    chunks = [ChunkKey(engine.family + NO_ADAPTER + tenant + word.encode()) for word in words.split()]
    chain = engine.cache.open_chain()
    offload = engine.cache.begin_offload(chain, chunks)
    engine.cache.end_offload(offload.keys)
    engine.cache.close_chain(chain)
    until(lambda: not engine.cache.n_dirty())
    return chunks


def until(condition: Callable[[], bool]) -> None:
    give_up_s = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < give_up_s
        time.sleep(0.01)


def purge(folder: Path, *choice: str) -> dict[str, Any]:
    """As an operator does: in another process."""
    command = [sys.executable, "-m", "kvtier.cli.main", "purge", str(folder), "--json", *choice]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)["stores"][0]
    return found


def test_a_purge_reaches_both_tiers_of_a_running_engine(start: Callable[..., Kvtier], tmp_path: Path) -> None:
    engine = start()
    gone = store(engine, "a b c", tenant_digest("x"))
    kept = store(engine, "d e")
    done = purge(tmp_path / "kv", "--salt", "x")
    assert (done["frames"], done["engines_unconfirmed"]) == (3, [])
    assert not any(key in engine.cache.host or key in engine.cache.disk for key in gone)
    assert all(key in engine.cache.host and key in engine.cache.disk for key in kept)


def test_a_purge_by_age_takes_the_host_copies_of_what_it_deleted(start: Callable[..., Kvtier], tmp_path: Path) -> None:
    engine = start()
    old = store(engine, "a b")
    between_ns = time.time_ns()
    young = store(engine, "c")
    code = "import sys; from pathlib import Path; from kvtier.admin.purge import *; "
    code += "print(purge(Path(sys.argv[1]), Choice(before_ns=int(sys.argv[2]))).frames)"
    command = [sys.executable, "-c", code, str(tmp_path / "kv"), str(between_ns)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "2\n"
    assert not any(key in engine.cache.host for key in old)
    assert all(key in engine.cache.host for key in young)


def test_an_engine_goes_on_after_a_purge(start: Callable[..., Kvtier], tmp_path: Path) -> None:
    engine = start()
    store(engine, "a")
    purge(tmp_path / "kv", "--all")
    (again,) = store(engine, "a")
    assert again in engine.cache.disk
    engine.cache.check()


def test_a_disk_ttl_ends_frames_and_not_their_host_copies(start: Callable[..., Kvtier]) -> None:
    engine = start(ttl="1s")
    (chunk,) = store(engine, "a")
    until(lambda: chunk not in engine.cache.disk)
    assert chunk in engine.cache.host
    (young,) = store(engine, "b")
    assert young in engine.cache.disk


def test_a_host_ttl_ends_host_copies_and_not_frames(start: Callable[..., Kvtier]) -> None:
    engine = start(host={"ttl": "500ms"})
    (chunk,) = store(engine, "a")
    until(lambda: chunk not in engine.cache.host)
    assert chunk in engine.cache.disk


def test_without_a_ttl_nothing_expires(rig: Rig, keeper: Callable[..., Keeper]) -> None:
    rig.request("ab")
    rig.now += 1e9
    keeper().round()
    assert set(keys("ab")) <= set(rig.cache.host_keys())


def test_a_notice_is_not_confirmed_while_a_chunk_of_it_is_in_use(
    rig: Rig, keeper: Callable[..., Keeper], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvtier.keeper.INSIST_S", 0.0)
    rig.request("ab")
    chain = rig.cache.open_chain()
    assert rig.cache.lookup(chain, keys("ab")[0]) is Lookup.HIT
    engine = keeper(listener=Listener(tmp_path))
    name = post(tmp_path, Notice(frozenset({keys("a")[0][:8]}), None, only_deleted=False))
    engine.round()
    assert unconfirmed(tmp_path, name)
    assert rig.cache.host_keys() == keys("ab")[:1]
    rig.cache.close_chain(chain)
    engine.round()
    assert not unconfirmed(tmp_path, name)
    assert rig.cache.host_keys() == []
    rig.cache.check()


@pytest.fixture
def rig() -> Rig:
    return Rig(n_slots=4)


@pytest.fixture
def keeper(rig: Rig) -> Callable[..., Keeper]:
    def make(listener: Listener | None = None) -> Keeper:
        return Keeper(rig.cache, listener, store=None, host_ttl_s=0.0, disk_ttl_s=0.0, report=print)

    return make


def test_an_engine_ends_in_time_though_a_disk_that_hangs_keeps_its_keeper(
    start: Callable[..., Kvtier], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store stays open then: the keeper's thread is still in it."""
    inside, disk_answers = threading.Event(), threading.Event()
    closed: list[LmdbStore] = []

    def hang(store: LmdbStore, shard: int, before_ns: int) -> list[ChunkKey]:
        inside.set()
        disk_answers.wait(20)
        return []

    monkeypatch.setattr(LmdbStore, "written_before", hang)
    monkeypatch.setattr(LmdbStore, "close", closed.append)
    monkeypatch.setattr(keeper_module, "STOP_TIMEOUT_S", 0.1)
    engine = start(ttl="10s")
    assert inside.wait(20)
    engine.stop()
    assert not closed
    disk_answers.set()
