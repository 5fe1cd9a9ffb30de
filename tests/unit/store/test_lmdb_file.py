import os
import struct
from pathlib import Path

import lmdb
import pytest

from kvtier.store.lmdb_file import cut_back, find_damage, read_meta

MAP_BYTES = 2 << 20


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    path = tmp_path / "s.lmdb"
    with lmdb.open(os.fspath(path), subdir=False, map_size=MAP_BYTES) as env:
        for n in range(5):
            with env.begin(write=True) as txn:
                txn.put(b"%d" % n, bytes(50_000))
    os.truncate(path, MAP_BYTES)
    return path


def overwrite(path: Path, at: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(content)


def page_bytes(path: Path) -> int:
    with path.open("rb") as file:
        return read_meta(file.fileno()).page_bytes


def test_a_whole_file_has_no_damage(shard: Path) -> None:
    assert find_damage(shard, MAP_BYTES) is None


def test_the_meta_says_what_lmdb_says(shard: Path) -> None:
    with shard.open("rb") as file:
        meta = read_meta(file.fileno())
    with lmdb.open(os.fspath(shard), subdir=False, map_size=MAP_BYTES) as env:
        info, stat = env.info(), env.stat()
    assert (meta.last_page, meta.txn_id, meta.page_bytes) == (info["last_pgno"], info["last_txnid"], stat["psize"])


def test_a_file_cut_short_is_damaged_wherever_the_cut(shard: Path) -> None:
    for n_bytes in (MAP_BYTES - 1, MAP_BYTES // 2, 8192, 4096, 100, 1, 0):
        os.truncate(shard, n_bytes)
        assert find_damage(shard, MAP_BYTES) == f"it is {n_bytes} bytes long, expected {MAP_BYTES}"


def test_a_missing_file_is_damaged(tmp_path: Path) -> None:
    assert find_damage(tmp_path / "absent", MAP_BYTES) == "it is missing"


def test_a_directory_is_no_shard(tmp_path: Path) -> None:
    assert find_damage(tmp_path, MAP_BYTES) == "it is not a regular file"


@pytest.mark.parametrize("content", [os.urandom(MAP_BYTES), bytes(MAP_BYTES)])
def test_bytes_that_are_no_database_are_damaged(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "s").write_bytes(content)
    assert find_damage(tmp_path / "s", MAP_BYTES) == "its first page is not an LMDB meta page"


def test_a_second_meta_page_that_is_gone_is_damage(shard: Path) -> None:
    overwrite(shard, page_bytes(shard), bytes(4096))
    assert find_damage(shard, MAP_BYTES) == "its second page is not an LMDB meta page"


@pytest.mark.parametrize(
    ("at", "field", "damage"),
    [
        (16 + 4, struct.pack("=I", 3), "data version 3"),
        (16 + 24, struct.pack("=I", 4095), "pages of 4095 bytes"),
        (16 + 24, struct.pack("=I", 1 << 30), "pages of 1073741824 bytes"),
        (16 + 120, struct.pack("=QQ", 1 << 40, 1 << 60), "claims"),
    ],
    ids=["version", "odd page size", "huge page size", "last page beyond the map"],
)
def test_a_meta_page_that_would_lead_lmdb_astray_is_damage(at: int, field: bytes, damage: str, shard: Path) -> None:
    overwrite(shard, at, field)
    assert damage in (find_damage(shard, MAP_BYTES) or "")


def test_a_lengthened_file_is_cut_back_to_what_it_was(shard: Path) -> None:
    os.truncate(shard, 3 * MAP_BYTES)
    cut_back(shard, MAP_BYTES)
    assert find_damage(shard, MAP_BYTES) is None


def test_a_file_that_uses_more_than_it_should_is_left_alone(shard: Path) -> None:
    cut_back(shard, 100_000)
    assert shard.stat().st_size == MAP_BYTES
    assert find_damage(shard, 100_000) == f"it is {MAP_BYTES} bytes long, expected 100000"


def test_cutting_back_nothing_is_no_error(tmp_path: Path) -> None:
    cut_back(tmp_path / "absent", 1)
