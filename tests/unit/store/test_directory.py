"""Settling a directory: growth, shrinkage, lost manifests, and a crash between any two steps."""

import os
import random
import shutil
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from kvtier.errors import StoreError
from kvtier.store import directory as directory_module
from kvtier.store.listing import records_of
from kvtier.store.lmdb import LmdbStore, _Files
from kvtier.store.manifest import MANIFEST, read_manifest
from kvtier.testing.contracts import frame_of, key_of, put, read
from kvtier.types import ChunkKey

MIB = 1 << 20


class CrashError(BaseException):
    """The process ends here."""


def open_store(folder: Path, capacity_bytes: int, **options: object) -> LmdbStore:
    return LmdbStore.open(folder, capacity_bytes, shard_map_bytes=20 * MIB, **options)


def fill(folder: Path, capacity_bytes: int) -> dict[ChunkKey, bytes]:
    """Ten frames in each shard, shard by shard, so that shard 0 is the oldest."""
    ticks = iter(range(1, 1_000_000))
    store = open_store(folder, capacity_bytes, clock_ns=lambda: next(ticks))
    frames = {}
    for shard in range(store.n_shards):
        for n in range(10):
            number = 100 * shard + n
            frames[key_of(number)] = frame_of(number, 20_000)
            put(store, shard, {key_of(number): frames[key_of(number)]})
    store.close()
    return frames


def contents(store: LmdbStore) -> dict[ChunkKey, bytes | None]:
    return {record.key: read(store, record.shard, record.key) for record in records_of(store.scan())}


def file_bytes(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.iterdir())


def numbers(kept: dict[ChunkKey, bytes | None], frames: dict[ChunkKey, bytes]) -> set[int]:
    return {n for n in range(2000) if key_of(n) in kept and kept[key_of(n)] == frames[key_of(n)]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


def test_growing_keeps_every_frame_and_adds_shards(folder: Path) -> None:
    frames = fill(folder, 60 * MIB)
    store = open_store(folder, 200 * MIB)
    assert contents(store) == frames
    assert (store.n_shards, store.notices, store.dropped_frames) == (10, [], 0)
    store.close()


def test_growing_lengthens_shards_that_are_far_too_short(folder: Path) -> None:
    frames = fill(folder, 20 * MIB)
    store = LmdbStore.open(folder, 10_000 * MIB, shard_map_bytes=1000 * MIB)
    assert contents(store) == frames
    assert store.n_shards == 10
    for n in range(300, 340):
        put(store, 0, {key_of(n): frame_of(0, 1_000_000)})  # more than the shard could hold before
    store.close()


def test_shrinking_drops_the_shards_whose_youngest_frame_is_oldest_and_says_how_many(folder: Path) -> None:
    frames = fill(folder, 100 * MIB)
    store = open_store(folder, 60 * MIB)
    kept = contents(store)
    assert numbers(kept, frames) == {100 * shard + n for shard in (2, 3, 4) for n in range(10)}
    assert store.dropped_frames == 20
    assert "2 of 5 shards and 20 frames dropped" in store.notices[0]
    assert file_bytes(folder) <= 60 * MIB
    store.close()


def test_age_counts_by_the_youngest_frame_not_by_the_number_of_the_shard(folder: Path) -> None:
    frames = fill(folder, 60 * MIB)
    store = open_store(folder, 60 * MIB, clock_ns=lambda: 10**9)
    put(store, 0, {key_of(1999): b"young"})
    store.close()
    frames[key_of(1999)] = b"young"
    store = open_store(folder, 40 * MIB)
    assert numbers(contents(store), frames) == {*range(10), *range(200, 210), 1999}
    store.close()


def test_shrinking_below_one_shard_begins_anew_within_the_new_capacity(folder: Path) -> None:
    fill(folder, 60 * MIB)
    store = open_store(folder, 17 * MIB)
    assert (store.n_shards, list(records_of(store.scan())), store.dropped_frames) == (1, [], 30)
    assert file_bytes(folder) <= 17 * MIB
    store.close()


def test_opening_again_with_the_same_capacity_changes_nothing(folder: Path) -> None:
    frames = fill(folder, 100 * MIB)
    before = {path.name: path.stat().st_ino for path in folder.iterdir()}
    store = open_store(folder, 100 * MIB)
    assert contents(store) == frames
    store.close()
    assert {path.name: path.stat().st_ino for path in folder.iterdir()} == before


def test_any_sequence_of_capacities_stays_within_each_and_serves_only_whole_frames(folder: Path) -> None:
    rng = random.Random(11)
    frames: dict[ChunkKey, bytes] = {}
    for step in range(25):
        capacity_bytes = rng.randint(16, 300) * MIB
        store = open_store(folder, capacity_bytes)
        kept = contents(store)
        assert all(kept[key] == frames[key] for key in kept)
        assert len(frames) == len(kept) + store.dropped_frames
        assert file_bytes(folder) <= capacity_bytes
        frames = {key: frames[key] for key in kept}
        for n in range(5):
            key = key_of(1000 * step + n)
            frames[key] = frame_of(n, 9000)
            put(store, rng.randrange(store.n_shards), {key: frames[key]})
        store.close()


@pytest.mark.parametrize("content", [None, b"", b"{"], ids=["lost", "empty", "cut short"])
def test_without_a_readable_manifest_the_shards_are_found_by_name(content: bytes | None, folder: Path) -> None:
    frames = fill(folder, 60 * MIB)
    (folder / MANIFEST).unlink()
    if content is not None:
        (folder / MANIFEST).write_bytes(content)
    store = open_store(folder, 60 * MIB)
    assert contents(store) == frames
    assert "written anew from 3 shard files" in store.notices[0]
    store.close()


def test_a_shard_that_is_gone_is_begun_anew(folder: Path) -> None:
    frames = fill(folder, 60 * MIB)
    (folder / "shard-0001.lmdb").unlink()
    store = open_store(folder, 60 * MIB)
    assert numbers(contents(store), frames) == {*range(10), *range(200, 210)}
    assert "it is missing; its frames are lost, begun anew" in store.notices[0]
    assert store.n_shards == 3
    store.close()


def test_a_garbage_lock_file_of_a_shard_does_no_harm(folder: Path) -> None:
    frames = fill(folder, 40 * MIB)
    (folder / "shard-0000.lmdb-lock").write_bytes(os.urandom(8192))
    store = open_store(folder, 40 * MIB)
    assert contents(store) == frames
    store.close()


def steps(monkeypatch: pytest.MonkeyPatch, crash_at: int) -> Iterator[str]:
    """Crash before the change number `crash_at` that settling makes to the directory; yields the steps taken."""
    taken: list[str] = []

    def counted(name: str, do: object) -> object:
        def step(*arguments: object) -> object:
            if len(taken) == crash_at:
                raise CrashError
            taken.append(name)
            return do(*arguments)  # type: ignore[operator]

        return step

    monkeypatch.setattr(directory_module, "write_manifest", counted("manifest", directory_module.write_manifest))
    for method in ("_remove", "_create", "_set_aside"):
        monkeypatch.setattr(
            directory_module._Settling, method, counted(method, getattr(directory_module._Settling, method))
        )
    monkeypatch.setattr(directory_module.os, "truncate", counted("truncate", os.truncate))
    return iter(taken)


@pytest.mark.parametrize(
    ("before_mib", "during_mib", "target_mib"),
    [(0, 80, 20), (60, 160, 20), (20, 900, 300), (160, 60, 20), (60, 17, 20)],
    ids=["first start", "adding shards", "lengthening shards", "dropping shards", "beginning anew"],
)
def test_a_crash_between_any_two_steps_is_settled_by_the_next_start(
    before_mib: int, during_mib: int, target_mib: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = tmp_path / "original"
    frames = fill(original, before_mib * MIB) if before_mib else {}
    for crash_at in range(100):
        for next_mib in {before_mib or during_mib, during_mib}:
            folder = tmp_path / f"{crash_at}-{next_mib}"
            if before_mib:
                shutil.copytree(original, folder)
            with monkeypatch.context() as patch:
                steps(patch, crash_at)
                try:
                    LmdbStore.open(folder, during_mib * MIB, shard_map_bytes=target_mib * MIB).close()
                    crashed = False
                except CrashError:
                    crashed = True
            store = LmdbStore.open(folder, next_mib * MIB, shard_map_bytes=target_mib * MIB)
            kept = contents(store)
            assert all(kept[key] == frames[key] for key in kept)
            assert "set aside" not in " ".join(store.notices)
            if next_mib == during_mib > before_mib:
                assert len(kept) == len(frames)
            assert file_bytes(folder) <= next_mib * MIB
            put(store, store.n_shards - 1, {key_of(1500): b"goes on"})
            store.close()
            shutil.rmtree(folder)
        if not crashed:
            return
    pytest.fail("settling never came to an end")


def test_a_crash_while_setting_a_damaged_shard_aside_is_settled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = tmp_path / "original"
    frames = fill(original, 100 * MIB)
    os.truncate(original / "shard-0002.lmdb", 5 * MIB)
    for crash_at in range(20):
        folder = tmp_path / str(crash_at)
        shutil.copytree(original, folder)
        with monkeypatch.context() as patch:
            steps(patch, crash_at)
            try:
                open_store(folder, 100 * MIB).close()
                crashed = False
            except CrashError:
                crashed = True
        store = open_store(folder, 100 * MIB)
        assert numbers(contents(store), frames) == {100 * shard + n for shard in (0, 1, 3, 4) for n in range(10)}
        assert file_bytes(folder) <= 100 * MIB
        store.close()
        if not crashed:
            return
    pytest.fail("settling never came to an end")


def test_an_unreadable_shard_is_the_first_to_go(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(folder, 60 * MIB)
    summarize = directory_module._Settling._summarize

    def failing(self: object, number: int, map_bytes: int) -> object:
        if number == 2:
            monkeypatch.setattr(self._shards, "summarize", lambda *_: (_ for _ in ()).throw(StoreError("EIO")))  # type: ignore[attr-defined]
            return summarize(self, number, map_bytes)
        return directory_module.Summary(1, number + 1)

    monkeypatch.setattr(directory_module._Settling, "_summarize", failing)
    store = open_store(folder, 40 * MIB)
    store.close()
    manifest = read_manifest(folder)
    assert manifest is not None
    assert manifest.shards == (0, 1)


def test_trees_are_walked_while_values_are_looked_at(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(folder, 100 * MIB)
    walk, look = _Files.walk, _Files.look
    walked: list[Path] = []
    all_walked = threading.Event()
    waited: list[bool] = []

    def walk_some(self: _Files, paths: Sequence[Path]) -> list[str | None]:
        damages = walk(self, paths)
        walked.extend(paths)
        if len(walked) == 5:
            all_walked.set()
        return damages

    def look_last(self: _Files, path: Path, until_s: float) -> str | None:
        waited.append(all_walked.wait(10))
        return look(self, path, until_s)

    monkeypatch.setattr(directory_module, "WALKED_TOGETHER", 2)
    monkeypatch.setattr(_Files, "walk", walk_some)
    monkeypatch.setattr(_Files, "look", look_last)
    open_store(folder, 100 * MIB).close()
    assert waited == [True] * 5


def test_a_start_that_takes_long_says_how_far_it_is(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(folder, 60 * MIB)
    monkeypatch.setattr(directory_module, "PROGRESS_S", 0.0)
    lines: list[str] = []
    open_store(folder, 60 * MIB, report=lines.append).close()
    assert lines == [f"{folder}: {n} of 3 shards looked at" for n in range(3)]


def test_of_several_damaged_shards_each_is_set_aside_and_the_others_serve(folder: Path) -> None:
    frames = fill(folder, 200 * MIB)
    for number in (1, 4, 8):
        os.truncate(folder / f"shard-{number:04}.lmdb", 5 * MIB)
    store = open_store(folder, 200 * MIB)
    assert sum("set aside" in notice for notice in store.notices) == 3
    assert numbers(contents(store), frames) == {100 * shard + n for shard in (0, 2, 3, 5, 6, 7, 9) for n in range(10)}
    store.close()
