"""LmdbStore over damaged and failing files: set aside or a StoreError, never a signal, never a wrong frame."""

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import lmdb
import pytest

from kvtier.errors import StoreError
from kvtier.store import directory
from kvtier.store.direct import PageReader
from kvtier.store.listing import records_of
from kvtier.store.lmdb import LmdbStore
from kvtier.store.shard import MOST_LEFT
from kvtier.testing.contracts import frame_of, key_of, put, read
from kvtier.types import ChunkKey
from tests.rigs.lmdb_store import (
    MIB,
    break_tree,
    break_value,
    file_bytes,
    fill_both,
    index_root,
    open_store,
    pretend_reboot,
    run,
)
from tests.rigs.page_cache import drop_from_page_cache, pages_of


def test_a_full_disk_is_an_error_that_loses_nothing_and_heals(folder: Path) -> None:
    # The limit on file length stands in for the disk: LMDB sees the same short write.
    code = """
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (5 * MIB, resource.RLIM_INFINITY))
    n = 0
    try:
        while True:
            put(store, 0, {key_of(n): frame_of(n, 500_000)})
            n += 1
    except StoreError as error:
        print(type(error).__name__)
    assert 5 < n < 12, n
    try:
        put(store, 0, {key_of(99): frame_of(99, 500_000)}, [key_of(0)])
        raise SystemExit("wrote beyond the limit")
    except StoreError:
        pass
    assert {record.key for record in records_of(store.scan())} == {key_of(m) for m in range(n)}
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    put(store, 0, {key_of(100): frame_of(100, 500_000)})
    assert read(store, 0, key_of(100)) == frame_of(100, 500_000)
    assert read(store, 0, key_of(n - 1)) == frame_of(n - 1, 500_000)
    """
    result = run(code, folder)
    assert (result.returncode, result.stdout) == (0, "StoreError\n"), result.stderr


# Damage


@pytest.mark.parametrize("n_bytes", [20 * MIB // 2, 300_000, 8192, 5000, 1, 0])
def test_a_truncated_shard_is_set_aside_before_it_can_kill_the_process(n_bytes: int, folder: Path) -> None:
    code = """
    for notice in store.notices: print(notice)
    print(sorted(record.shard for record in records_of(store.scan())))
    put(store, 0, {key_of(9): frame_of(9, 1000)})
    assert read(store, 0, key_of(9)) == frame_of(9, 1000)
    """
    store = open_store(folder)
    for shard in (0, 1):
        put(store, shard, {key_of(n): frame_of(n, 200_000) for n in range(3)})
    store.close()
    os.truncate(folder / "shard-0000.lmdb", n_bytes)
    result = run(code, folder)
    assert result.returncode == 0, result.stderr
    assert f"it is {n_bytes} bytes long" in result.stdout
    assert result.stdout.endswith("[1, 1, 1]\n")


def test_a_shard_truncated_while_open_is_an_error_not_a_signal(folder: Path) -> None:
    code = """
    put(store, 0, {key_of(1): frame_of(1, 1_000_000)})
    os.truncate(folder / "shard-0000.lmdb", 100_000)
    calls = [lambda: read(store, 0, key_of(1)), lambda: put(store, 0, {key_of(2): b"x"}), lambda: list(store.scan())]
    for call in calls:
        try:
            call()
            raise SystemExit("no error")
        except StoreError as error:
            print(error)
    """
    result = run(code, folder)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("was cut to 100000 bytes since it was opened") == 3


def test_a_directory_removed_while_open_is_an_error(store: LmdbStore, folder: Path) -> None:
    put(store, 0, {key_of(1): b"x"})
    folder.rename(folder.with_name("elsewhere"))
    with pytest.raises(StoreError, match="No such file"):
        read(store, 0, key_of(1))
    with pytest.raises(StoreError, match="No such file"):
        put(store, 0, {key_of(2): b"x"})


def test_a_shard_replaced_while_open_is_an_error(store: LmdbStore, folder: Path) -> None:
    (folder / "shard-0000.lmdb").rename(folder / "old")
    (folder / "shard-0000.lmdb").write_bytes((folder / "old").read_bytes())
    with pytest.raises(StoreError, match="was replaced"):
        read(store, 0, key_of(1))


@pytest.mark.parametrize("content", [os.urandom(20 * MIB - 65536), b"", b"garbage"], ids=["random", "empty", "short"])
def test_a_shard_of_garbage_is_set_aside_and_begun_anew(content: bytes, folder: Path) -> None:
    store = open_store(folder)
    put(store, 1, {key_of(1): frame_of(1, 100)})
    store.close()
    (folder / "shard-0000.lmdb").write_bytes(content)
    store = open_store(folder)
    assert "set aside" in store.notices[0]
    assert store.n_shards == 2
    assert [record.shard for record in records_of(store.scan())] == [1]
    put(store, 0, {key_of(2): frame_of(2, 100)})
    assert file_bytes(folder) <= 40 * MIB
    store.close()


def test_set_aside_files_never_take_the_store_beyond_its_capacity(folder: Path) -> None:
    for n in range(6):
        store = LmdbStore.open(folder, 160 * MIB, shard_map_bytes=20 * MIB)
        assert file_bytes(folder) <= 160 * MIB
        assert store.n_shards >= 6
        store.close()
        with (folder / f"shard-000{n}.lmdb").open("r+b") as file:
            file.write(b"overwritten")
    aside = [path for path in folder.iterdir() if ".broken-" in path.name]
    assert 1 <= len(aside) <= 2  # a quarter of the capacity


def test_removing_a_set_aside_file_gives_its_bytes_back(folder: Path) -> None:
    LmdbStore.open(folder, 160 * MIB, shard_map_bytes=20 * MIB).close()
    with (folder / "shard-0003.lmdb").open("r+b") as file:
        file.write(b"overwritten")
    store = LmdbStore.open(folder, 160 * MIB, shard_map_bytes=20 * MIB)
    assert store.n_shards == 7
    store.close()
    next(path for path in folder.iterdir() if ".broken-" in path.name).unlink()
    store = LmdbStore.open(folder, 160 * MIB, shard_map_bytes=20 * MIB)
    assert (store.n_shards, store.notices) == (8, [])
    store.close()


def test_a_start_finds_a_broken_tree_and_sets_its_shard_aside(folder: Path) -> None:
    fill_both(folder)
    break_tree(folder / "shard-0000.lmdb")
    store = open_store(folder)
    assert "set aside" in store.notices[0]
    assert {record.shard for record in records_of(store.scan())} == {1}
    store.close()


def test_after_a_reboot_every_value_is_looked_at_however_long_it_takes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory, "INSPECT_S", 0.0)
    fill_both(folder)
    break_value(folder / "shard-0000.lmdb")
    store = open_store(folder)
    assert store.notices == []
    store.close()
    pretend_reboot(folder)
    store = open_store(folder)
    assert "set aside" in store.notices[0]
    assert {record.shard for record in records_of(store.scan())} == {1}
    store.close()


def test_after_a_reboot_whole_shards_are_kept(folder: Path) -> None:
    fill_both(folder)
    pretend_reboot(folder)
    store = open_store(folder)
    assert store.notices == []
    assert sum(1 for _ in records_of(store.scan())) == 400
    store.close()


def test_a_look_at_every_value_can_be_asked_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory, "INSPECT_S", 0.0)
    fill_both(folder)
    break_value(folder / "shard-0001.lmdb")
    store = LmdbStore.open(folder, 40 * MIB, shard_map_bytes=20 * MIB, inspect=True)
    assert "set aside" in store.notices[0]
    assert {record.shard for record in records_of(store.scan())} == {0}
    store.close()


def test_pages_lost_with_power_never_kill_the_process_or_pass_as_a_frame(folder: Path) -> None:
    code = """
    import random, shutil
    from kvtier.codec.frame import open_into, seal_into, frame_bound
    from kvtier.codec.registry import codec_for
    from kvtier.errors import FrameError
    codec, room, out = codec_for("int8"), memoryview(bytearray(9000)), memoryview(bytearray(5000))
    for n in range(300):
        frame = room[: seal_into(memoryview(frame_of(n, 5000)), room, key=key_of(n), codec=codec)]
        store.write(0, [(key_of(n), frame)], [key_of(n - 200)])
    store.close()
    whole = folder.with_name("whole")
    shutil.copytree(folder, whole)
    rng, served, refused = random.Random(5), 0, 0
    for trial in range(30):
        shutil.rmtree(folder)
        shutil.copytree(whole, folder)
        manifest = folder / "kvtier-store.json"
        manifest.write_text(manifest.read_text().replace('"boot_id": "', '"boot_id": "another'))
        with (folder / "shard-0000.lmdb").open("r+b") as file:
            for _ in range(1 + trial % 3):
                file.seek(4096 * rng.randrange(2, 550))
                page = file.read(4096)
                file.seek(4096 * rng.randrange(2, 550))
                file.write(bytes(4096) if trial % 2 else page)
        store = LmdbStore.open(folder, 40 * MIB, shard_map_bytes=20 * MIB)
        for record in list(records_of(store.scan())):
            n = next(n for n in range(300) if key_of(n) == record.key)
            try:
                with store.read(record.shard, record.key) as frame:
                    open_into(frame, out, key=record.key)
                assert out == frame_of(n, 5000)
                served += 1
            except (FrameError, StoreError):
                refused += 1
        for n in range(30):
            there = [record.key for record in records_of(store.scan())]
            put(store, 0, {key_of(1000 + n): frame_of(n, 5000)}, there[:1])
        store.close()
    print(served > 500, refused > 5)
    """
    result = run(code, folder)
    assert (result.returncode, result.stdout) == (0, "True True\n"), result.stderr


def test_too_many_open_files_is_an_error_that_sets_no_shard_aside(folder: Path) -> None:
    fill_both(folder)
    code = """
    import resource
    store.close()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    for limit in range(lowest, lowest + 12):
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        try:
            store = LmdbStore.open(folder, 40 * MIB, shard_map_bytes=20 * MIB)
            assert sum(1 for _ in records_of(store.scan())) == 400
            break
        except StoreError as error:
            print(error)
    """
    result = run(code, folder)
    assert result.returncode == 0, result.stderr
    assert "ulimit -n" in result.stdout
    assert [path.name for path in folder.iterdir() if "broken" in path.name] == []


def test_a_shard_without_its_databases_is_set_aside(folder: Path) -> None:
    open_store(folder).close()
    with lmdb.open(os.fspath(folder / "shard-0000.lmdb"), subdir=False, max_dbs=2) as env:
        database = env.open_db(b"index")
        with env.begin(write=True) as txn:
            txn.drop(database)
    store = open_store(folder)
    assert "no database index" in store.notices[0]
    store.close()


def test_a_tree_found_broken_while_running_is_a_store_error(folder: Path) -> None:
    fill_both(folder)
    code = """
    list(store.scan())
    with (folder / "shard-0000.lmdb").open("r+b") as file:
        file.seek(int(sys.argv[2]))
        file.write(bytes(4096))
    calls = [lambda: list(store.scan()), lambda: read(store, 0, key_of(1)), lambda: put(store, 0, {key_of(1): b"x"})]
    for call in calls:
        try:
            call()
            raise SystemExit("no error")
        except StoreError as error:
            print(type(error).__name__)
    assert read(store, 1, key_of(1)) == frame_of(1, 5000)
    """
    result = run(code, folder, index_root(folder / "shard-0000.lmdb"))
    assert (result.returncode, result.stdout) == (0, "StoreError\n" * 3), result.stderr


@pytest.fixture
def with_broken_value(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[LmdbStore, ChunkKey, list[str]]]:
    """A store that has been opened without a look at values, the key of one in shard 0 that is damaged, its reports."""
    fill_both(folder)
    key = ChunkKey(break_value(folder / "shard-0000.lmdb"))
    monkeypatch.setattr(directory, "INSPECT_S", 0.0)
    reports: list[str] = []
    store = LmdbStore.open(folder, 40 * MIB, shard_map_bytes=20 * MIB, report=reports.append)
    yield store, key, reports
    store.close()


def test_a_value_whose_first_page_lies_is_deleted_without_believing_it(
    with_broken_value: tuple[LmdbStore, ChunkKey, list[str]], folder: Path
) -> None:
    """Scenario: it says that it is 64 pages long, not 2; the next frames would be written over its neighbors."""
    store, key, reports = with_broken_value
    put(store, 0, {}, [key])
    put(store, 0, {}, [key])
    for n in range(200, 260):
        put(store, 0, {key_of(n): frame_of(n, 5000)})
    there = {record.key for record in records_of(store.scan()) if record.shard == 0}
    assert there == {key_of(n) for n in range(260)} - {key}
    assert all(read(store, 0, key_of(n)) == frame_of(n, 5000) for n in range(260) if key_of(n) != key)
    assert read(store, 0, key) in (None, b"")
    assert ["shard-0000.lmdb: a frame to be deleted" in line for line in reports] == [True]
    store.close()
    store = LmdbStore.open(folder, 40 * MIB, shard_map_bytes=20 * MIB, inspect=True)
    assert "set aside" in store.notices[0]
    store.close()


def test_a_damaged_value_is_not_replaced_and_the_others_of_its_shard_are(
    with_broken_value: tuple[LmdbStore, ChunkKey, list[str]],
) -> None:
    store, key, _ = with_broken_value
    with pytest.raises(StoreError, match="damaged value"):
        put(store, 0, {key: frame_of(1, 5000), key_of(300): frame_of(300, 5000)})
    assert read(store, 0, key_of(300)) is None
    put(store, 0, {key_of(n): frame_of(n + 1, 5000) for n in range(200) if key_of(n) != key})
    assert all(read(store, 0, key_of(n)) == frame_of(n + 1, 5000) for n in range(200) if key_of(n) != key)


def failing(code: int) -> Callable[..., bytes]:
    def peek(*_: object) -> bytes:
        raise OSError(code, os.strerror(code))

    return peek


def test_a_value_whose_first_page_cannot_be_read_is_left_where_it_is(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_both(folder)
    reports: list[str] = []
    store = LmdbStore.open(folder, 40 * MIB, shard_map_bytes=20 * MIB, report=reports.append)
    with monkeypatch.context() as patch:
        patch.setattr(PageReader, "peek", failing(errno.EIO))
        put(store, 0, {}, [key_of(1), key_of(2)])
    assert {record.key for record in records_of(store.scan()) if record.shard == 0}.isdisjoint({key_of(1), key_of(2)})
    assert len(reports) == 1
    store.close()


@pytest.mark.parametrize(("code", "n_deleted"), [(errno.EIO, MOST_LEFT + 1), (errno.EMFILE, 1)])
def test_when_it_is_not_one_bad_page_nothing_is_deleted_until_that_is_over(
    code: int, n_deleted: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_both(folder)
    store = open_store(folder)
    deletes = [key_of(n) for n in range(n_deleted)]
    with monkeypatch.context() as patch:
        patch.setattr(PageReader, "peek", failing(code))
        with pytest.raises(StoreError, match="cannot be written"):
            put(store, 0, {}, deletes)
    assert all(read(store, 0, key) for key in deletes)
    put(store, 0, {}, deletes)
    with store._shards[0]._env.begin() as txn:
        assert txn.stat(store._shards[0]._frames)["entries"] == 200 - n_deleted
    store.close()


def test_of_what_is_deleted_nothing_is_read_but_the_first_page(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A frame that makes room is seldom in memory: each further page would be one more read of the disk."""
    store = open_store(folder)
    put(store, 0, {key_of(n): frame_of(n, 1_000_000) for n in range(8)})
    store.close()
    shard = folder / "shard-0000.lmdb"
    drop_from_page_cache(shard)
    if pages_of(shard).cached:
        pytest.skip("a file system that is the page cache")
    monkeypatch.setattr(directory, "INSPECT_S", 0.0)
    store = open_store(folder)
    list(store.scan())
    before = pages_of(shard).cached
    put(store, 0, {}, [key_of(n) for n in range(8)])
    assert pages_of(shard).cached - before < 100, "of 1,960"
    store.close()
