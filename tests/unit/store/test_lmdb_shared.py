"""Several processes at one LmdbStore: whoever is killed or stopped in the middle of it leaves the others at work."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvtier.errors import StoreError
from kvtier.store import private
from kvtier.store.base import Change
from kvtier.store.listing import records_of
from kvtier.store.lmdb import LmdbStore
from kvtier.testing.contracts import frame_of, key_of, put, read
from tests.rigs.lmdb_store import MIB, open_store
from tests.rigs.peer import Peer


@pytest.fixture
def peer(store: LmdbStore, folder: Path) -> Iterator[Peer]:
    peer = Peer(folder, 40 * MIB, 20 * MIB)
    yield peer
    if peer.process.is_alive():
        os.kill(peer.process.pid or 0, signal.SIGCONT)
        peer.kill()


def test_a_process_killed_inside_a_write_leaves_neither_lock_nor_frame(store: LmdbStore, peer: Peer) -> None:
    list(store.scan())
    put(store, 0, {key_of(1): frame_of(1, 1000)})
    peer.begin_write(0, key_of(2), frame_of(2, 1000))
    peer.kill()
    put(store, 0, {key_of(3): frame_of(3, 1000)})
    assert read(store, 0, key_of(1)) == frame_of(1, 1000)
    assert read(store, 0, key_of(2)) is None
    assert read(store, 0, key_of(3)) == frame_of(3, 1000)
    assert store.news(0).changes == []


def test_a_killed_reader_is_forgotten(store: LmdbStore, peer: Peer) -> None:
    put(store, 0, {key_of(1): frame_of(1, 1000)})
    assert peer.begin_read(0, key_of(1)) == frame_of(1, 1000)
    peer.kill()
    env = store._shards[0]._env
    assert len(env.readers().splitlines()) > 1
    store.release_dead()
    assert "(no active readers)" in env.readers()


def test_a_process_stopped_inside_a_write_is_not_waited_for(
    store: LmdbStore, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(private.DirectoryLock.turn, "__defaults__", (0.1,), raising=False)
    put(store, 0, {key_of(1): frame_of(1, 1000)})
    peer.begin_write(0, key_of(2), frame_of(2, 1000))
    os.kill(peer.process.pid or 0, signal.SIGSTOP)
    with pytest.raises(StoreError, match="held by another process"):
        put(store, 0, {key_of(3): frame_of(3, 1000)})
    assert read(store, 0, key_of(1)) == frame_of(1, 1000)
    put(store, 1, {key_of(3): frame_of(3, 1000)})
    peer.kill()
    put(store, 0, {key_of(3): frame_of(3, 1000)})


def test_a_log_that_does_not_read_is_made_up_for_by_the_index(store: LmdbStore, peer: Peer) -> None:
    list(store.scan())
    peer.put(0, {key_of(1): frame_of(1, 100)}, [])
    shard = store._shards[0]
    with shard._env.begin(write=True) as txn:
        txn.put((txn.id() - 1).to_bytes(8, "big"), b"\x30\x00cut short", db=shard._log)
    news = store.news(0)
    assert news.whole
    assert news.changes == [Change(key_of(1), 100)]


def test_a_shard_from_before_there_was_a_log_gets_one(folder: Path) -> None:
    store = open_store(folder)
    put(store, 0, {key_of(1): frame_of(1, 100)})
    for shard in store._shards:
        with shard._env.begin(write=True) as txn:
            txn.drop(shard._log, delete=True)
    store.close()
    again = open_store(folder)
    put(again, 0, {key_of(2): frame_of(2, 100)})
    assert {record.key for record in records_of(again.scan())} == {key_of(1), key_of(2)}
    again.close()


def test_a_process_that_numbers_processes_differently_is_refused(store: LmdbStore, folder: Path) -> None:
    """LMDB tells living readers from dead ones by their process id."""
    manifest = folder / "kvtier-store.json"
    manifest.write_text(manifest.read_text().replace('"pid_namespace": "', '"pid_namespace": "another-'))
    with pytest.raises(StoreError, match="share the host's process ids"):
        Peer(folder, 40 * MIB, 20 * MIB)
