"""What LmdbStore does beyond the Store contract: bounds, privacy, crashes, other processes."""

import os
import random
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from kvtier.codec.frame import open_into
from kvtier.errors import ConfigError, FrameCorruptError, StoreError, StoreFullError
from kvtier.store.listing import records_of
from kvtier.store.lmdb import FRAMES_PER_SHARD, LmdbStore, shard_map_bytes_for
from kvtier.testing.contracts import frame_of, key_of, put, read
from tests.rigs.lmdb_store import MIB, PRELUDE, file_bytes, fill_both, open_store, pretend_reboot, run, sealed


def test_files_together_have_the_length_of_the_capacity_from_birth_and_take_no_disk(folder: Path) -> None:
    store = open_store(folder, 400 * MIB)
    assert 397 * MIB < file_bytes(folder) <= 400 * MIB
    assert store.file_bytes() < MIB
    store.close()


def test_churn_with_random_victims_finds_room_and_never_lengthens_a_file(folder: Path) -> None:
    rng = random.Random(3)
    pool = memoryview(rng.randbytes(MIB))
    store = LmdbStore.open(folder, 64 * MIB, shard_map_bytes=32 * MIB)
    live: list[list[tuple[int, int]]] = [[], []]
    used = [0, 0]
    for n in range(0, 6000, 2):
        shard = rng.randrange(2)
        sizes = {m: rng.randint(30_000, 32 * MIB // FRAMES_PER_SHARD) for m in (n, n + 1)}
        need = sum(map(store.frame_cost, sizes.values()))
        deletes = []
        while used[shard] + need > store.shard_bytes:
            victim, cost = live[shard].pop(rng.randrange(len(live[shard])))
            deletes.append(key_of(victim))
            used[shard] -= cost
        store.write(shard, [(key_of(m), pool[:n_bytes]) for m, n_bytes in sizes.items()], deletes)
        live[shard] += [(m, store.frame_cost(n_bytes)) for m, n_bytes in sizes.items()]
        used[shard] += need
    assert file_bytes(folder) <= 64 * MIB
    assert store.file_bytes() <= 64 * MIB
    listed = {(record.shard, record.key) for record in records_of(store.scan())}
    store.close()
    assert listed == {(shard, key_of(n)) for shard in (0, 1) for n, _ in live[shard]}


def test_live_bytes_within_the_stated_share_of_the_map(store: LmdbStore) -> None:
    assert store.shard_bytes == pytest.approx(0.8 * 20 * MIB, rel=0.01)


def test_a_shard_filled_beyond_its_stated_bytes_can_still_be_emptied(store: LmdbStore) -> None:
    n = 0
    try:
        while True:
            put(store, 0, {key_of(n): frame_of(n, 3000)})
            n += 1
    except StoreFullError:
        pass
    assert n * 4096 > store.shard_bytes
    store.write(0, [], [key_of(m) for m in range(n)])
    assert list(records_of(store.scan())) == []


@pytest.mark.parametrize("chunk_bytes", [1, 2 * MIB, 64 * MIB])
def test_large_chunks_ask_for_large_shards(chunk_bytes: int) -> None:
    assert shard_map_bytes_for(chunk_bytes) == max(512 * MIB, FRAMES_PER_SHARD * chunk_bytes)


def test_a_tiny_capacity_is_a_configuration_error(folder: Path) -> None:
    with pytest.raises(ConfigError, match="at least 16 MiB"):
        open_store(folder, 15 * MIB)
    assert not folder.exists()


# Privacy


def test_everything_is_private_whatever_the_umask(folder: Path) -> None:
    before = os.umask(0)
    try:
        store = open_store(folder)
        put(store, 0, {key_of(1): b"x"})
        store.close()
    finally:
        os.umask(before)
    assert folder.stat().st_mode & 0o777 == 0o700
    names = {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()}
    assert len(names) == 6  # two shards, their lock files, the manifest, the directory's lock
    assert set(names.values()) == {0o600}


def test_files_that_were_opened_to_others_are_closed_again(folder: Path) -> None:
    open_store(folder).close()
    (folder / "shard-0000.lmdb").chmod(0o644)
    (folder / "shard-0000.lmdb-lock").chmod(0o666)
    open_store(folder).close()
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}


def test_a_shard_that_is_a_symlink_is_not_followed(folder: Path, tmp_path: Path) -> None:
    open_store(folder).close()
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (folder / "shard-0000.lmdb").unlink()
    (folder / "shard-0000.lmdb").symlink_to(victim)
    store = open_store(folder)
    put(store, 0, {key_of(1): b"x"})
    store.close()
    assert victim.read_bytes() == b"precious"
    assert not (folder / "shard-0000.lmdb").is_symlink()


def test_a_symlinked_directory_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    folder.symlink_to(tmp_path / "real")
    with pytest.raises(StoreError, match="is a symlink"):
        open_store(folder)
    assert list((tmp_path / "real").iterdir()) == []


# Crashes


def test_everything_acknowledged_before_a_kill_is_there_afterwards(folder: Path) -> None:
    code = """
    n = 0
    while True:
        frames = {key_of(n): frame_of(n, 1000 + n * 37 % 30_000), key_of(-1): frame_of(n, 50)}
        put(store, n % 2, frames, [key_of(n - 300)])
        n += 1
        print(n, flush=True)
    """
    command = [sys.executable, "-c", PRELUDE + textwrap.dedent(code), str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        for line in writer.stdout:
            if int(line) == 700:
                break
        writer.send_signal(signal.SIGKILL)
        done = max([700, *(int(line) for line in writer.stdout if line.endswith("\n"))])
    store = open_store(folder)
    assert store.notices == []
    for n in range(done - 299, done):
        assert read(store, n % 2, key_of(n)) == frame_of(n, 1000 + n * 37 % 30_000)
    listed = {record.key for record in records_of(store.scan())} - {key_of(-1), key_of(done), key_of(done - 300)}
    assert listed == {key_of(n) for n in range(done - 299, done)}  # of the one write in flight, all or nothing
    assert file_bytes(folder) <= 40 * MIB
    store.close()


def test_a_killed_reader_does_not_keep_pages_from_being_used(store: LmdbStore, folder: Path) -> None:
    code = """
    put(store, 0, {key_of(999): frame_of(1, 1000)})
    borrowed = store.read(0, key_of(999))
    borrowed.__enter__()
    os.kill(os.getpid(), 9)
    """
    assert run(code, folder).returncode == -signal.SIGKILL
    for n in range(60):  # three times the map
        put(store, 0, {key_of(n): frame_of(0, 1_000_000)}, [key_of(n - 8)])
    assert sum(1 for _ in records_of(store.scan())) == 9


def test_a_failed_sync_is_an_error_and_is_still_owed(store: LmdbStore) -> None:
    put(store, 0, {key_of(1): b"x"})
    store._shards[0]._env.close()
    for _ in range(2):
        with pytest.raises(StoreError, match="cannot be synced"):
            store.sync()


def test_without_a_verifier_a_shard_is_opened_as_it_is(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill_both(folder)
    pretend_reboot(folder)
    monkeypatch.setitem(sys.modules, "lmdb.verify", None)
    store = open_store(folder)
    assert (store.notices, sum(1 for _ in records_of(store.scan()))) == ([], 400)
    store.close()


def test_a_frame_that_contradicts_its_index_does_not_verify(store: LmdbStore) -> None:
    frame = sealed(1)
    for n in (1, 2, 3):
        put(store, 0, {key_of(n): frame})
    shard = store._shards[0]
    with shard._env.begin(write=True) as txn:
        txn.put(key_of(1), frame + b"tail", db=shard._frames)
        txn.delete(key_of(2), db=shard._index)
        txn.delete(key_of(3), db=shard._frames)
    for n in (1, 2, 3):
        assert read(store, 0, key_of(n)) == b""
        with pytest.raises(FrameCorruptError), store.read(0, key_of(n)) as view:
            open_into(view, memoryview(bytearray(1000)), key=key_of(n))


def test_an_error_that_still_holds_an_array_over_the_view_comes_out_as_it_is(store: LmdbStore) -> None:
    frame = bytearray(sealed(1))
    frame[-1] ^= 1
    put(store, 0, {key_of(1): frame})
    held = []
    with pytest.raises(FrameCorruptError, match="checksum"), store.read(0, key_of(1)) as view:
        open_into(view, memoryview(bytearray(1000)), key=held.append(memoryview(view)) or key_of(1))
    held[0].release()


def test_what_lmdb_cannot_store_is_a_store_error(store: LmdbStore) -> None:
    for key in (b"", b"k" * 600):
        with pytest.raises(StoreError, match="cannot be written"):
            put(store, 0, {key: b"x"})


def test_a_closed_store_answers_with_store_errors(folder: Path) -> None:
    store = open_store(folder)
    store.close()
    for call in (
        lambda: read(store, 0, key_of(1)),
        lambda: put(store, 0, {key_of(1): b"x"}),
        lambda: list(store.scan()),
    ):
        with pytest.raises(StoreError):
            call()


# Other processes


def test_two_processes_see_each_others_frames(store: LmdbStore, folder: Path) -> None:
    put(store, 0, {key_of(1): frame_of(1, 1000)})
    code = """
    assert read(store, 0, key_of(1)) == frame_of(1, 1000)
    put(store, 1, {key_of(2): frame_of(2, 1000)})
    print(store.notices)
    """
    result = run(code, folder)
    assert (result.returncode, result.stdout) == (0, "[]\n"), result.stderr
    assert read(store, 1, key_of(2)) == frame_of(2, 1000)


def test_a_second_process_takes_the_shards_as_they_are_and_says_so(store: LmdbStore, folder: Path) -> None:
    code = """
    store.close()
    other = LmdbStore.open(folder, 400 * MIB)
    print(other.n_shards, other.capacity_bytes == 40 * MIB, other.notices[0])
    """
    result = run(code, folder)
    assert result.stdout.startswith("2 True "), result.stderr
    assert "takes effect when it is opened alone" in result.stdout


def test_opening_a_store_twice_in_one_process_is_refused_and_leaves_the_first_alone(
    store: LmdbStore, folder: Path
) -> None:
    with pytest.raises(StoreError, match="already open in this process"):
        open_store(folder)
    put(store, 0, {key_of(1): b"x"})
    assert read(store, 0, key_of(1)) == b"x"


def test_a_directory_of_a_newer_format_is_refused_untouched(folder: Path) -> None:
    open_store(folder).close()
    manifest = folder / "kvtier-store.json"
    manifest.write_text(manifest.read_text().replace('"format": 1', '"format": 2'))
    before = sorted((path.name, path.stat().st_mtime_ns) for path in folder.glob("shard-*.lmdb"))
    with pytest.raises(StoreError, match="directory format 2"):
        open_store(folder)
    assert sorted((path.name, path.stat().st_mtime_ns) for path in folder.glob("shard-*.lmdb")) == before


def test_every_file_is_closed_again_when_opening_fails(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_store(folder).close()
    before = sum(1 for _ in Path("/proc/self/fd").iterdir())

    def fails(*_: object, **_named: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(LmdbStore, "__init__", fails)
    with pytest.raises(StoreError, match="Too many open files"):
        open_store(folder)
    assert sum(1 for _ in Path("/proc/self/fd").iterdir()) == before
    monkeypatch.undo()
    open_store(folder).close()


def test_the_flags_that_the_figures_rest_on_are_set(store: LmdbStore) -> None:
    flags = store._shards[0]._env.flags()
    assert {name: flags[name] for name in ("sync", "writemap", "readahead", "lock", "subdir")} == {
        "sync": False,
        "writemap": False,
        "readahead": False,
        "lock": True,
        "subdir": False,
    }


def test_commits_are_synced_when_that_is_asked_for_and_only_then(folder: Path) -> None:
    flags = []
    for sync_commits in (False, True):
        store = LmdbStore.open(folder, 40 * MIB, shard_map_bytes=20 * MIB, sync_commits=sync_commits)
        flags.append([shard._env.flags()["sync"] for shard in store._shards])
        put(store, 0, {key_of(1): frame_of(1, 5000)})
        assert read(store, 0, key_of(1)) == frame_of(1, 5000)
        store.close()
    assert flags == [[False, False], [True, True]]
