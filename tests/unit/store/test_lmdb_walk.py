"""The walk of a shard's trees finds what lmdb.verify finds, and lists what LMDB lists."""

import os
import random
import shutil
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import lmdb
import pytest
from lmdb.verify import VerifyError, verify

from kvtier.store.lmdb_file import read_meta
from kvtier.store.lmdb_walk import Walked, find_bad_value, read_index, walk, walk_together
from kvtier.store.shard import DATABASES, INDEX
from kvtier.testing.contracts import frame_of, key_of, put
from tests.rigs.lmdb_store import open_store

LATER = float("inf")


@pytest.fixture(name="shard")
def churned_shard(folder: Path) -> Path:
    """Frames in leaves and on pages of their own, several levels, free pages."""
    store = open_store(folder)
    rng = random.Random(1)
    for n in range(0, 1500, 50):
        sizes = {m: rng.choice((20, 700, 5000, 9000)) for m in range(n, n + 50)}
        put(store, 0, {key_of(m): frame_of(m, size) for m, size in sizes.items()}, [key_of(n - 60), key_of(n - 70)])
    store.close()
    return folder / "shard-0000.lmdb"


def damage(path: Path) -> str | None:
    with path.open("rb") as file:
        try:
            walked = walk(file.fileno(), DATABASES, INDEX)
            list(walked.listed)
            return find_bad_value(file.fileno(), walked, LATER)
        except ValueError as error:
            return str(error)


def verified(path: Path) -> str | None:
    try:
        return next(iter(verify(os.fspath(path), subdir=False)), None)
    except VerifyError as error:
        return str(error)


def tree_pages(path: Path) -> list[int]:
    with path.open("rb") as file:
        content = file.read((read_meta(file.fileno()).last_page + 1) * 4096)
    flags = ((n, struct.unpack_from("=H", content, n * 4096 + 10)[0]) for n in range(2, len(content) // 4096))
    return [n for n, flag in flags if flag in (1, 2, 4)]


def test_a_whole_shard_is_whole(shard: Path):
    assert verified(shard) is None
    assert damage(shard) is None


def test_an_empty_shard_is_whole(folder: Path):
    open_store(folder).close()
    assert damage(folder / "shard-0000.lmdb") is None


def test_the_walk_lists_what_lmdb_lists(shard: Path):
    with lmdb.open(os.fspath(shard), subdir=False, max_dbs=3) as env, env.begin() as txn:
        index = txn.cursor(db=env.open_db(b"index", txn))
        expected = [(key, *struct.unpack_from("=QQ", entry)) for key, entry in index.iternext()]
        txn_id = txn.id()
    with shard.open("rb") as file:
        walked = walk(file.fileno(), DATABASES, INDEX)
        again = read_index(file.fileno(), txn_id, INDEX)
        assert read_index(file.fileno(), txn_id - 2, INDEX) is None
    assert again == walked.listed
    assert walked.txn_id == txn_id
    (listing,) = walked.listed
    assert [(r.key, r.n_bytes, r.written_ns) for r in listing.records()] == expected


@pytest.mark.parametrize("seed", range(4))
def test_every_flipped_bit_that_lmdb_verify_finds_is_found(seed: int, shard: Path, tmp_path: Path):
    rng = random.Random(seed)
    pages = tree_pages(shard)
    broken = tmp_path / "broken"
    shutil.copy(shard, broken)
    n_found = 0
    with broken.open("r+b", buffering=0) as file:
        for _ in range(60):
            at = rng.choice(pages) * 4096 + rng.choice((rng.randrange(16), rng.randrange(200), rng.randrange(4096)))
            before = os.pread(file.fileno(), 1, at)
            os.pwrite(file.fileno(), bytes([before[0] ^ 1 << rng.randrange(8)]), at)
            expected = verified(broken)
            if expected is not None:
                n_found += 1
                assert damage(broken) is not None, (at, expected)
            os.pwrite(file.fileno(), before, at)
    assert damage(broken) is None
    assert n_found > 5


def test_pages_of_an_earlier_time_are_found(shard: Path, folder: Path, tmp_path: Path):
    """Scenario: after a loss of power a page is what it was some transactions ago."""
    old = shard.read_bytes()
    store = open_store(folder)
    put(store, 0, {key_of(n): frame_of(n, 700) for n in range(3000, 3100)}, [key_of(n) for n in range(200)])
    put(store, 0, {key_of(n): frame_of(n, 700) for n in range(3100, 3200)}, [key_of(n) for n in range(200, 400)])
    store.close()
    new = shard.read_bytes()
    broken = tmp_path / "broken"
    shutil.copy(shard, broken)
    changed = [n for n in range(2 * 4096, len(new), 4096) if new[n : n + 4096] != old[n : n + 4096]]
    n_found = 0
    with broken.open("r+b", buffering=0) as file:
        for at in random.Random(2).sample(changed, 60):
            os.pwrite(file.fileno(), old[at : at + 4096], at)
            if verified(broken) is not None:
                n_found += 1
                assert damage(broken) is not None, at
            os.pwrite(file.fileno(), new[at : at + 4096], at)
    assert n_found > 3


def test_where_values_begin_is_looked_at_only_until_then(shard: Path):
    with shard.open("r+b") as file:
        walked = walk(file.fileno(), DATABASES, INDEX)
        os.pwrite(file.fileno(), b"\xff", int(walked.values[0][0]) * 4096 + 12)
        assert find_bad_value(file.fileno(), walked, 0.0) is None
        assert "first of a value" in str(find_bad_value(file.fileno(), walked, time.monotonic() + 600))
        assert "first of a value" in str(find_bad_value(file.fileno(), walked, LATER))


@pytest.fixture(name="shards")
def three_shards(shard: Path, tmp_path: Path) -> Iterator[list[int]]:
    fds = [os.open(shutil.copy(shard, tmp_path / str(n)), os.O_RDWR) for n in range(3)]
    yield fds
    for fd in fds:
        os.close(fd)


def test_a_root_beyond_any_file_is_damage(shard: Path):
    with shard.open("r+b", buffering=0) as file:
        meta = read_meta(file.fileno())
        places = [(page, meta.main.root) for page in (0, 1)]  # of the tree of databases, in a meta page
        places += [(meta.main.root, root) for root in tree_pages(shard)]  # of a database
        n_found = 0
        for page, root in places:
            content = os.pread(file.fileno(), 4096, page * 4096)
            at = content.find(struct.pack("=Q", root), 16)
            if at < 0:
                continue
            os.pwrite(file.fileno(), b"\x80", page * 4096 + at + 7)  # the highest byte of it
            n_found += damage(shard) is not None
            os.pwrite(file.fileno(), content, page * 4096)
    assert n_found >= 1 + len(DATABASES)


def test_walked_together_a_damaged_shard_does_not_hide_the_others(shards: list[int]):
    whole = walk(shards[0], DATABASES, INDEX)
    os.pwrite(shards[1], b"\xff" * 8, read_meta(shards[1]).main.root * 4096)
    first, second, third = walk_together(shards, DATABASES, INDEX)
    assert isinstance(second, ValueError)
    for walked in (first, third):
        assert isinstance(walked, Walked)
        assert (walked.txn_id, walked.listed) == (whole.txn_id, whole.listed)


def test_the_disk_is_asked_for_pages_of_all_shards_before_one_is_waited_for(shards: list[int], monkeypatch):
    events: list[tuple[str, int]] = []
    advise, preadv = os.posix_fadvise, os.preadv
    monkeypatch.setattr(os, "posix_fadvise", lambda fd, *rest: (events.append(("ask", fd)), advise(fd, *rest)))
    monkeypatch.setattr(os, "preadv", lambda fd, *rest: (events.append(("read", fd)), preadv(fd, *rest))[1])
    walk_together(shards, DATABASES, INDEX)
    asked: set[int] = set()
    for event, fd in events:
        if event == "read":
            break
        asked.add(fd)
    assert asked == set(shards)
