"""Index entries, and that the page they name is where the frame lies."""

import os
import random
import struct
from pathlib import Path

import lmdb
import pytest

from kvtier.errors import StoreError
from kvtier.store import direct
from kvtier.store.listing import records_of
from kvtier.store.lmdb import LmdbStore
from kvtier.store.lmdb_index import PAGE_HEADER_BYTES, Entry, is_page_of, unpack
from kvtier.testing.contracts import frame_of, key_of, put, read
from tests.rigs.lmdb_store import open_store, run


def entry_of(store: LmdbStore, key: bytes, shard: int = 0) -> Entry:
    opened = store._shards[shard]
    with opened._env.begin() as txn:
        return unpack(txn.get(key, db=opened._index))


def change_entry(store: LmdbStore, key: bytes, entry: bytes) -> None:
    opened = store._shards[0]
    with opened._env.begin(write=True) as txn:
        txn.put(key, entry, db=opened._index)


def in_file(store: LmdbStore, entry: Entry, shard: int = 0) -> bytes:
    opened = store._shards[shard]
    with opened.path.open("rb") as file:
        file.seek(entry.page * opened.page_bytes + PAGE_HEADER_BYTES)
        return file.read(entry.n_bytes)


@pytest.mark.parametrize("entry", [Entry(1, 2, 3), Entry(2**40, 2**63, 2**48), Entry(0, 0, 0)])
def test_an_entry_unpacks_to_what_was_packed(entry: Entry) -> None:
    assert unpack(entry.pack()) == entry


def test_an_entry_from_before_pages_were_noted_names_none() -> None:
    assert unpack(struct.pack("<QQ", 7, 8)) == Entry(7, 8, 0)


@pytest.mark.parametrize("stored", [b"", b"x" * 8, b"x" * 25])
def test_other_lengths_are_no_entry(stored: bytes) -> None:
    with pytest.raises(struct.error):
        unpack(stored)


def test_the_first_page_of_a_value_is_told_by_its_number_kind_and_length() -> None:
    header = struct.pack("=QHHI", 9, 0, 4, 3)
    assert is_page_of(header, 9, 3 * 4096 - 16, 4096)
    assert is_page_of(header, None, 2 * 4096 - 15, 4096)
    assert not is_page_of(header, 8, 3 * 4096 - 16, 4096)
    assert not is_page_of(header, 9, 3 * 4096 - 15, 4096)
    assert not is_page_of(header, 9, 2 * 4096 - 16, 4096)
    assert not is_page_of(struct.pack("=QHHI", 9, 0, 2, 3), 9, 3 * 4096 - 16, 4096)
    assert not is_page_of(header[:15], 9, 3 * 4096 - 16, 4096), "the file ends there"


@pytest.mark.parametrize("n_bytes", [1, 500, 1900, 2000, 2038, 4080, 4081, 100_000])
def test_every_frame_outside_the_tree_is_found_in_the_file_by_its_page(n_bytes: int, store: LmdbStore) -> None:
    put(store, 0, {key_of(n): frame_of(n, n_bytes) for n in range(5)})
    for n in range(5):
        entry = entry_of(store, key_of(n))
        assert entry.n_bytes == n_bytes
        assert (entry.page > 0) == (n_bytes >= 2000)
        if entry.page:
            assert in_file(store, entry) == frame_of(n, n_bytes)
        assert read(store, 0, key_of(n)) == frame_of(n, n_bytes)


def test_pages_stay_true_under_replacement_and_random_victims(store: LmdbStore) -> None:
    rng = random.Random(11)
    live: dict[int, int] = {}
    for n in range(1200):
        deletes = [live_key for live_key in list(live) if rng.random() < 0.02 or len(live) > 150][:8]
        for victim in deletes:
            del live[victim]
        batch = {rng.randrange(400): rng.randint(1000, 60_000) for _ in range(3)}
        put(
            store,
            0,
            {key_of(m): frame_of(m + size, size) for m, size in batch.items()},
            [key_of(victim) for victim in deletes],
        )
        live |= batch
        if n % 100 == 99:
            for m, size in live.items():
                entry = entry_of(store, key_of(m))
                assert entry.page == 0 or in_file(store, entry) == frame_of(m + size, size)
                assert read(store, 0, key_of(m)) == frame_of(m + size, size)


def test_frames_written_before_pages_were_noted_are_still_read(store: LmdbStore) -> None:
    put(store, 0, {key_of(1): frame_of(1, 50_000)})
    change_entry(store, key_of(1), struct.pack("<QQ", 50_000, 1))
    assert read(store, 0, key_of(1)) == frame_of(1, 50_000)
    assert [record.n_bytes for record in records_of(store.scan())] == [50_000]


@pytest.mark.parametrize(
    "page", [1, 2, 3, 10_000_000, 2**62], ids=["meta page", "elsewhere", "elsewhere, too", "behind the end", "huge"]
)
def test_a_page_that_is_not_the_frames_reads_as_nothing_that_verifies(page: int, store: LmdbStore) -> None:
    put(store, 0, {key_of(n): frame_of(n, 50_000) for n in range(3)})
    assert entry_of(store, key_of(1)).page != page
    change_entry(store, key_of(1), Entry(50_000, 1, page).pack())
    assert read(store, 0, key_of(1)) in (b"", frame_of(0, 50_000), frame_of(2, 50_000))


@pytest.mark.parametrize("n_bytes", [60_000, 2**40, 2**63])
def test_a_length_beyond_the_frames_pages_reads_as_nothing_that_verifies(n_bytes: int, store: LmdbStore) -> None:
    put(store, 0, {key_of(1): frame_of(1, 50_000)})
    change_entry(store, key_of(1), Entry(n_bytes, 1, entry_of(store, key_of(1)).page).pack())
    assert read(store, 0, key_of(1)) == b""


def test_an_unreadable_page_is_a_store_error_that_names_the_shard(store: LmdbStore) -> None:
    put(store, 0, {key_of(n): frame_of(n, 50_000) for n in range(2)})

    def broken(fd: int, buffers: object, offset: int) -> int:
        raise OSError(5, "Input/output error")

    whole, store._reader._preadv = store._reader._preadv, broken
    with pytest.raises(StoreError, match=r"shard-0000\.lmdb cannot be read: Input/output error"):
        read(store, 0, key_of(1))
    store._reader._preadv = whole
    assert read(store, 0, key_of(1)) == frame_of(1, 50_000)
    put(store, 0, {key_of(2): frame_of(2, 50_000)})  # no transaction was left open


def test_a_file_that_ends_within_a_frame_is_a_store_error(store: LmdbStore, tmp_path: Path) -> None:
    put(store, 0, {key_of(1): frame_of(1, 50_000)})
    cut = tmp_path / "cut"
    cut.write_bytes(store._shards[0].path.read_bytes()[: entry_of(store, key_of(1)).page * 4096 + 30_000])
    store._reader.close()  # it has the whole file open
    store._reader._paths[0] = os.fspath(cut)
    with pytest.raises(StoreError, match="ends within a frame"):
        read(store, 0, key_of(1))


def test_frames_are_not_read_through_the_map(folder: Path) -> None:
    """A frame's pages stay unmapped: what is not mapped cannot end the process."""
    code = """
    store.close()
    store = LmdbStore.open(folder, 40 * MIB, shard_map_bytes=20 * MIB)
    for n in range(10):
        assert read(store, 0, key_of(n)) == frame_of(n, 1_000_000)
    lines = open("/proc/self/smaps").read().split("shard-0000.lmdb")
    resident = sum(int(part.split("Rss:")[1].split()[0]) for part in lines[1:] if "Rss:" in part)
    print(resident)
    """
    store = open_store(folder)
    put(store, 0, {key_of(n): frame_of(n, 1_000_000) for n in range(10)})
    store.close()
    result = run(code, folder)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) < 1000  # KiB, of 10,000


def test_a_store_reads_while_many_threads_share_few_descriptors(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct, "MAX_OPEN_FILES", 1)
    store = open_store(folder)
    for shard in (0, 1):
        put(store, shard, {key_of(n): frame_of(n + shard, 30_000) for n in range(4)})
    for _ in range(20):
        for shard in (0, 1):
            assert read(store, shard, key_of(2)) == frame_of(2 + shard, 30_000)
    store.close()


def test_lmdb_keeps_a_value_of_its_own_pages_in_place_when_other_keys_change(tmp_path: Path) -> None:
    """What entries rely on, of LMDB itself."""
    with lmdb.open(os.fspath(tmp_path / "data"), subdir=False, map_size=1 << 24) as env:
        with env.begin(write=True) as txn:
            txn.put(b"k", b"v" * 100_000)
        at = (tmp_path / "data").read_bytes().index(b"v" * 100_000)
        for n in range(200):
            with env.begin(write=True) as txn:
                txn.put(f"other {n % 50}".encode(), os.urandom(3000 + n))
        assert (tmp_path / "data").read_bytes().index(b"v" * 100_000) == at
