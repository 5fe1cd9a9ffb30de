"""LmdbStore.erase_deleted and attach: what was deleted is gone from the files; what was kept is not hurt."""

import random
import threading
from pathlib import Path

import pytest
from lmdb.verify import verify

from kvtier.errors import StoreError
from kvtier.store import erase, lmdb_pages, shard
from kvtier.store.listing import records_of
from kvtier.store.lmdb import LmdbStore
from kvtier.testing.contracts import frame_of, key_of, put, read
from tests.rigs.lmdb_store import MIB, break_tree, fill_both, open_store

MARK = b"a tenant's words, told in confidence"


def marked(n_bytes: int) -> bytes:
    return (MARK * (n_bytes // len(MARK) + 1))[:n_bytes]


def holds_mark(folder: Path) -> bool:
    return any(MARK in path.read_bytes() for path in folder.glob("shard-*.lmdb"))


def fill_and_delete(folder: Path) -> LmdbStore:
    """Frames of someone and of everyone, in and out of tree pages; someone's are deleted."""
    store = open_store(folder)
    for n in range(0, 40, 2):
        put(store, 0, {key_of(n): marked(200 + 9000 * n), key_of(n + 1): frame_of(n + 1, 200 + 9000 * n)})
    store.write(0, [], [key_of(n) for n in range(0, 40, 2)])
    return store


@pytest.fixture(params=["punches holes", "overwrites"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "overwrites":
        monkeypatch.setattr(erase, "_fallocate", lambda *_: False)


@pytest.mark.usefixtures("way")
def test_nothing_of_a_deleted_frame_is_left_in_the_files(folder: Path) -> None:
    store = fill_and_delete(folder)
    assert holds_mark(folder)
    assert store.erase_deleted() > 1_000_000
    assert not holds_mark(folder)
    store.close()


@pytest.mark.usefixtures("way")
def test_what_was_not_deleted_is_untouched_and_the_tree_is_whole(folder: Path) -> None:
    store = fill_and_delete(folder)
    store.erase_deleted()
    for n in range(1, 40, 2):
        assert read(store, 0, key_of(n)) == frame_of(n, 200 + 9000 * (n - 1))
    store.close()
    assert verify(str(folder / "shard-0000.lmdb"), subdir=False) == []


def test_the_store_works_on_after_an_erasure(folder: Path) -> None:
    store = fill_and_delete(folder)
    store.erase_deleted()
    for n in range(100, 140):
        put(store, 0, {key_of(n): frame_of(n, 300_000)})
    assert all(read(store, 0, key_of(n)) == frame_of(n, 300_000) for n in range(100, 140))
    store.close()


def test_a_second_erasure_finds_nothing(folder: Path) -> None:
    store = fill_and_delete(folder)
    store.erase_deleted()
    assert store.erase_deleted() == 0
    store.close()


def test_nothing_of_a_deleted_frame_is_left_within_pages_that_stay(folder: Path) -> None:
    store = open_store(folder)
    for n in range(60):
        put(store, 0, {key_of(n): marked(1000) if n % 3 else frame_of(n, 1000)})
    store.write(0, [], [key_of(n) for n in range(60) if n % 3])
    store.erase_deleted()
    assert not holds_mark(folder)
    assert all(read(store, 0, key_of(n)) == frame_of(n, 1000) for n in range(0, 60, 3))
    store.close()
    assert verify(str(folder / "shard-0000.lmdb"), subdir=False) == []


def test_bytes_beyond_the_last_page_in_use_are_erased(folder: Path) -> None:
    # A process killed while it commits leaves pages that no meta page counts.
    store = open_store(folder)
    put(store, 0, {key_of(1): frame_of(1, 1000)})
    with (folder / "shard-0000.lmdb").open("r+b") as file:
        file.seek(15 * MIB)
        file.write(marked(10_000))
    store.erase_deleted()
    assert not holds_mark(folder)
    assert read(store, 0, key_of(1)) == frame_of(1, 1000)
    store.close()


def test_an_erasure_waits_for_a_reader_of_an_older_state(folder: Path) -> None:
    store = open_store(folder)
    put(store, 0, {key_of(1): marked(1_000)})  # in a leaf: a read keeps its transaction as long as it is borrowed
    with store.read(0, key_of(1)) as frame:
        store.write(0, [], [key_of(1)])
        eraser = threading.Thread(target=store.erase_deleted)
        eraser.start()
        eraser.join(0.1)
        assert frame == marked(1_000)
    eraser.join(30)
    assert not holds_mark(folder)
    store.close()


def test_a_reader_that_never_ends_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard, "ERASE_WAIT_S", 0.05)
    store = open_store(folder)
    put(store, 0, {key_of(1): marked(1_000)})
    with store.read(0, key_of(1)) as frame:
        store.write(0, [], [key_of(1)])
        with pytest.raises(StoreError, match=r"shard-0000.lmdb is being read by process \d+; stop it"):
            store.erase_deleted()
        assert frame == marked(1_000)
    store.close()


@pytest.mark.parametrize("seed", range(8))
def test_the_walk_finds_the_pages_that_liblmdbs_own_checker_finds(seed: int, folder: Path) -> None:
    rng = random.Random(seed)
    store = open_store(folder)
    for _ in range(60):
        puts = {key_of(rng.randrange(300)): rng.randbytes(rng.choice([10, 900, 3000, 70_000])) for _ in range(8)}
        store.write(0, [(k, memoryview(v)) for k, v in puts.items()], [key_of(rng.randrange(300))])
    store.sync()
    path = folder / "shard-0000.lmdb"
    with path.open("rb") as file:
        found, _ = lmdb_pages.reachable_pages(file.fileno())
    assert verify(str(path), subdir=False) == []
    # Erasing every page that was not found must leave each frame and the whole structure as it was.
    frames = {record.key: read(store, 0, record.key) for record in records_of(store.scan())}
    store.erase_deleted()
    assert {key: read(store, 0, key) for key in frames} == frames
    store.close()
    assert verify(str(path), subdir=False) == []
    assert 0 < sum(found) < len(found)


def test_a_damaged_tree_is_refused_and_nothing_is_erased(folder: Path) -> None:
    fill_both(folder)
    shard = folder / "shard-0000.lmdb"
    break_tree(shard)
    before = shard.read_bytes()
    with shard.open("r+b") as file, pytest.raises(ValueError, match="is no tree page"):
        erase.erase_unreachable(file.fileno())
    assert shard.read_bytes() == before


# Attaching


def test_attaching_takes_the_store_as_it_is(folder: Path) -> None:
    open_store(folder).close()
    manifest = (folder / "kvtier-store.json").read_bytes()
    store = LmdbStore.attach(folder)
    assert store.n_shards == 2
    assert store.capacity_bytes == 40 * MIB
    store.close()
    assert (folder / "kvtier-store.json").read_bytes() == manifest


def test_attaching_leaves_a_damaged_shard_where_it_is_and_names_it(folder: Path) -> None:
    fill_both(folder)
    break_tree(folder / "shard-0000.lmdb")
    before = sorted(path.name for path in folder.iterdir())
    store = LmdbStore.attach(folder)
    assert [notice.partition(":")[0] for notice in store.notices] == [str(folder / "shard-0000.lmdb")]
    assert len(list(records_of(store.scan()))) == 200
    store.close()
    assert sorted(path.name for path in folder.iterdir()) == before


def test_a_directory_without_a_store_is_refused_and_left_alone(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="holds no kvtier store"):
        LmdbStore.attach(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


def test_nothing_of_a_deleted_frame_is_left_behind_the_end_of_another(folder: Path) -> None:
    """A value's last page is one that held something else, and is written as far as the value goes."""
    store = open_store(folder)
    for n in range(60):
        put(store, 0, {key_of(n): marked(1000), key_of(100 + n): frame_of(n, 2500)}, [key_of(n - 1)])
    store.write(0, [], [key_of(n) for n in range(60)])
    store.erase_deleted()
    assert not holds_mark(folder)
    assert all(read(store, 0, key_of(100 + n)) == frame_of(n, 2500) for n in range(60))
    store.close()
