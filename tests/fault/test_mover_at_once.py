"""Promotions that native code reads, verifies and decodes in one call; whatever is unusual goes the long way."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest

from kvtier.codec.opener import best_opener
from kvtier.codec.planes import BytePlanes
from kvtier.store.lmdb import LmdbStore
from kvtier.types import ChunkKey, Miss, Source
from tests.rigs import mover as mover_rig
from tests.rigs.lmdb_store import open_store
from tests.rigs.mover import CHUNK_BYTES, Rig, key

pytestmark = pytest.mark.skipif(best_opener() is None, reason="kvtier was installed without its native code")


class Counting(LmdbStore):
    n_reads = 0

    def read(self, shard: int, key: ChunkKey) -> AbstractContextManager[memoryview | None]:
        self.n_reads += 1
        return super().read(shard, key)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Counting]:
    store = open_store(tmp_path / "store")
    store.__class__ = Counting
    assert isinstance(store, Counting)
    yield store
    store.close()


def like_kv(key: ChunkKey) -> bytes:
    values = np.random.default_rng(list(key)).standard_normal(CHUNK_BYTES // 2, np.float32).view(np.uint32) >> 16
    return values.astype("<u2").tobytes()


@pytest.fixture
def rig(store: Counting, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    monkeypatch.setattr(mover_rig, "content", like_kv)
    rig = Rig(store, codec=BytePlanes())
    yield rig
    assert rig.mover.stop()
    rig.cache.check()


def shard_of(tmp_path: Path, rig: Rig, name: str) -> tuple[Path, int]:
    """The file with a chunk's frame, and where in it that begins."""
    frame = rig.disk.get(key(name))
    assert frame is not None
    path = tmp_path / "store" / f"shard-{frame.shard:04}.lmdb"
    with rig.store.inner.read(frame.shard, frame.key) as stored:
        assert stored is not None
        return path, path.read_bytes().index(bytes(stored))


def test_a_chunk_comes_up_whole_without_a_read_of_its_own(rig: Rig, store: Counting):
    rig.stored_and_evicted("abc")
    assert set(rig.request("abc").sources.values()) == {Source.DISK}
    assert store.n_reads == 0
    rig.check_all_quiet()


@pytest.mark.parametrize("at", [0, 30, 50, 64, 900])
def test_a_flipped_bit_is_a_counted_miss_that_heals(rig: Rig, tmp_path: Path, at: int):
    rig.stored_and_evicted("abc")
    path, begins = shard_of(tmp_path, rig, "b")
    with path.open("r+b") as file:
        file.seek(begins + at)
        byte = file.read(1)[0] ^ 4
        file.seek(begins + at)
        file.write(bytes([byte]))
    chain = rig.request("abc")
    assert chain.miss is Miss.CORRUPT
    assert rig.stats.corrupt_frames == 1
    rig.check_all_quiet()
    assert rig.request("abc").miss is None


def test_a_file_that_was_cut_short_is_a_miss_and_no_end_of_the_process(rig: Rig, tmp_path: Path):
    rig.stored_and_evicted("a")
    path, begins = shard_of(tmp_path, rig, "a")
    os.truncate(path, begins)
    assert rig.request("a").miss is Miss.LOAD_FAILED


def test_a_frame_that_is_gone_from_the_store_is_a_miss(rig: Rig, store: Counting):
    rig.stored_and_evicted("a")
    frame = rig.disk.get(key("a"))
    assert frame is not None
    store.write(frame.shard, [], [frame.key])
    assert rig.request("a").miss is Miss.EVICTED
