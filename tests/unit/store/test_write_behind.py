"""WriteBehind: of a large store only what was written last stays in the page cache; of a small one all of it."""

import os
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from random import Random

import pytest

from kvtier.machine import Machine
from kvtier.store import lmdb
from kvtier.store.direct import PageReader
from kvtier.store.lmdb import LmdbStore
from kvtier.store.write_behind import RECENT_BYTES, Run, WriteBehind, fits_page_cache
from kvtier.testing.contracts import key_of, put, read
from kvtier.types import ChunkKey
from tests.rigs.lmdb_store import MIB, open_store
from tests.rigs.page_cache import drop_from_page_cache, pages_of

PAGE = 4096
FRAME = 16 * PAGE
N_FRAMES = 8


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Frames that the page cache has; skips where it never gives anything up, as for files in memory."""
    path = tmp_path / "file"
    path.write_bytes(bytes(PAGE))
    drop_from_page_cache(path)
    if pages_of(path).cached:
        pytest.skip("a file system that is the page cache")
    path.write_bytes(b"")
    with path.open("r+b", buffering=0) as opened:
        for n_bytes in (
            PAGE,
            *(N_FRAMES * [FRAME]),
        ):  # one by one, as a store does, and nowhere on a boundary of FRAME:
            opened.write(bytes(n_bytes))  # a large folio leaves as a whole or not at all
    return path


@pytest.fixture
def behind(file: Path) -> Iterator[Callable[..., WriteBehind]]:
    reader = PageReader([file], PAGE + N_FRAMES * FRAME)
    yield lambda *, keep: WriteBehind(reader, keep=keep, recent_bytes=2 * FRAME)
    reader.close()


def run_of(n: int) -> Run:
    return Run(PAGE + n * FRAME, FRAME)


def write_all(behind: WriteBehind) -> None:
    for n in range(N_FRAMES):
        behind.wrote(0, [run_of(n)])


def test_of_a_large_store_what_was_written_before_the_last_leaves_the_page_cache(
    file: Path, behind: Callable[..., WriteBehind]
) -> None:
    write_all(behind(keep=False))
    assert pages_of(file, run_of(N_FRAMES - 3).offset + PAGE, FRAME - PAGE).cached == 0


def test_the_last_frames_stay_until_the_disk_has_had_time_for_them(
    file: Path, behind: Callable[..., WriteBehind]
) -> None:
    write_all(behind(keep=False))
    assert pages_of(file, run_of(N_FRAMES - 2).offset, 2 * FRAME).cached == 2 * FRAME // PAGE


def test_the_first_page_of_a_frame_stays_for_whoever_deletes_it(file: Path, behind: Callable[..., WriteBehind]) -> None:
    write_all(behind(keep=False))
    assert pages_of(file, run_of(0).offset, PAGE).cached == 1


def test_a_small_store_stays_in_the_page_cache(file: Path, behind: Callable[..., WriteBehind]) -> None:
    write_all(behind(keep=True))
    assert pages_of(file).cached == 1 + N_FRAMES * FRAME // PAGE


def test_what_was_written_anew_meanwhile_is_not_lost(file: Path, behind: Callable[..., WriteBehind]) -> None:
    large = behind(keep=False)
    large.wrote(0, [run_of(0)])
    with file.open("r+b") as opened:
        opened.seek(PAGE)
        opened.write(b"n" * FRAME)
    write_all(large)
    fd = os.open(file, os.O_RDONLY)
    assert os.pread(fd, FRAME, PAGE) == b"n" * FRAME
    os.close(fd)


def test_a_file_that_cannot_be_opened_is_left_to_the_sync_to_report(tmp_path: Path) -> None:
    reader = PageReader([tmp_path / "gone"], FRAME)
    WriteBehind(reader, keep=False, recent_bytes=0).wrote(0, [run_of(0), run_of(1)])
    reader.close()


def test_a_store_that_a_quarter_of_the_memory_could_not_hold_is_a_large_one() -> None:
    ram_bytes = Machine.here().ram_bytes
    assert fits_page_cache(ram_bytes // 5)
    assert not fits_page_cache(ram_bytes // 3)


def test_a_large_store_gives_its_frames_from_the_disk_and_keeps_few_in_the_page_cache(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lmdb, "fits_page_cache", lambda _: False)
    store = open_store(tmp_path / "store", 200 * MIB)
    frames = {key_of(n): os.urandom(4 * MIB) for n in range(2 * RECENT_BYTES // (4 * MIB))}
    for n, (key, frame) in enumerate(frames.items()):
        put(store, n % store.n_shards, {key: frame})
    cached = sum(pages_of(path).cached for path in (tmp_path / "store").glob("shard-*"))
    assert cached * PAGE < RECENT_BYTES * 1.2
    assert all(read(store, n % store.n_shards, key) == frame for n, (key, frame) in enumerate(frames.items()))
    store.close()


def test_frames_that_were_handed_over_as_one_leave_as_one(file: Path, behind: Callable[..., WriteBehind]) -> None:
    drop_from_page_cache(file)
    with file.open("r+b", buffering=0) as opened:
        opened.seek(PAGE)
        opened.write(bytes(4 * FRAME))  # in pieces that end where no frame does
    large = behind(keep=False)
    large.wrote(0, [run_of(n) for n in (3, 1, 0, 2)])
    assert pages_of(file, PAGE, 4 * FRAME).cached <= 4 + 1  # the first piece may be two pages long


def test_the_first_pages_of_all_of_them_are_there_for_whoever_deletes_them(
    file: Path, behind: Callable[..., WriteBehind]
) -> None:
    behind(keep=False).wrote(0, [run_of(n) for n in range(4)])
    assert [pages_of(file, run_of(n).offset, PAGE).cached for n in range(4)] == [1, 1, 1, 1]


def test_what_a_large_store_reads_to_replace_a_frame_keeps_no_other_in_the_page_cache(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lmdb, "fits_page_cache", lambda _: False)
    store = LmdbStore.open(tmp_path / "store", 400 * MIB, shard_map_bytes=200 * MIB)
    numbers, rng = count(), Random(0)
    stored: list[ChunkKey] = []
    for _ in range(8 * RECENT_BYTES // (3 * 700_000)):
        rng.shuffle(stored)
        full = len(stored) * 700_000 > 2 * RECENT_BYTES
        frames = {key_of(next(numbers)): os.urandom(700_000) for _ in range(3)}
        put(store, 0, frames, [stored.pop() for _ in range(3 * full)])
        stored += frames
    cached = sum(pages_of(path).cached for path in (tmp_path / "store").glob("shard-*"))
    assert cached * PAGE < RECENT_BYTES * 1.2
    assert all(read(store, 0, key) is not None for key in stored)
    store.close()
