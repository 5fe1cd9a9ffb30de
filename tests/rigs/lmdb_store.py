"""Stores of two small shards, processes that may die of them, and ways to damage them."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import lmdb

from kvtier.codec.frame import frame_bound, seal_into
from kvtier.codec.registry import codec_for
from kvtier.store.lmdb import LmdbStore
from kvtier.testing.contracts import frame_of, key_of, put

MIB = 1 << 20


def open_store(folder: Path, capacity_bytes: int = 40 * MIB) -> LmdbStore:
    """Two shards of 20 MiB, unless the capacity says otherwise."""
    return LmdbStore.open(folder, capacity_bytes, shard_map_bytes=20 * MIB)


def file_bytes(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.iterdir())


def run(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """In a process of its own, which a SIGBUS may kill."""
    command = [sys.executable, "-c", PRELUDE + textwrap.dedent(code), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


PRELUDE = """
import os, sys
from pathlib import Path
from kvtier.errors import StoreError
from kvtier.store.listing import records_of
from kvtier.store.lmdb import LmdbStore
from kvtier.testing.contracts import frame_of, key_of, put, read
MIB = 1 << 20
folder = Path(sys.argv[1])
store = LmdbStore.open(folder, 40 * MIB, shard_map_bytes=20 * MIB)
"""


# Bounds


def sealed(n: int) -> bytes:
    codec = codec_for("bfloat16")
    room = memoryview(bytearray(frame_bound(1000, codec)))
    return bytes(room[: seal_into(memoryview(frame_of(n, 1000)), room, key=key_of(n), codec=codec)])


def fill_both(folder: Path) -> None:
    store = open_store(folder)
    for shard in (0, 1):
        put(store, shard, {key_of(n): frame_of(n, 5000) for n in range(200)})
    store.close()


def break_tree(shard: Path) -> None:
    """Zero the root page of the index, as when it never reached the disk."""
    with shard.open("r+b") as file:
        file.seek(index_root(shard))
        file.write(bytes(4096))


def break_value(shard: Path) -> bytes:
    """Make the first page of a frame say that it is longer than it is, as a flipped bit might; the frame's key."""
    with lmdb.open(os.fspath(shard), subdir=False, max_dbs=3) as env, env.begin() as txn:
        with txn.cursor(db=env.open_db(b"index", txn)) as cursor:
            entries = ((key, int.from_bytes(entry[16:], sys.byteorder)) for key, entry in cursor.iternext())
            key, page = next((bytes(key), page) for key, page in entries if page)
        page_bytes = int(env.stat()["psize"])
    with shard.open("r+b") as file:
        file.seek(page * page_bytes + 12)
        file.write(b"\x40")
    return key


def index_root(shard: Path) -> int:
    """Where in the file the root page of the index lies."""
    with lmdb.open(os.fspath(shard), subdir=False, max_dbs=2) as env, env.begin() as txn:
        return int.from_bytes(txn.get(b"index")[40:48], sys.byteorder) * int(env.stat()["psize"])


def pretend_reboot(folder: Path) -> None:
    manifest = folder / "kvtier-store.json"
    manifest.write_text(manifest.read_text().replace('"boot_id": "', '"boot_id": "earlier-'))
