"""Shard: one LMDB environment of a store: its file, its databases, and what other processes did to it.

With lmdb.py, which lays out a directory of them, the only module that speaks to lmdb.
"""

from __future__ import annotations

import errno
import os
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

import lmdb

from kvtier.errors import StoreError, StoreFullError
from kvtier.store.base import Change, News
from kvtier.store.changes import LOG_MOST_CHANGES, LOG_TRANSACTIONS, from_others, pack
from kvtier.store.direct import PageReader, PageRun
from kvtier.store.erase import erase_unreachable
from kvtier.store.listing import Listing, listings_of
from kvtier.store.lmdb_index import PAGE_HEADER_BYTES, Entry, header_of, is_page_of, lies_in_leaf, page_of, unpack
from kvtier.store.lmdb_walk import read_index
from kvtier.store.write_behind import Run
from kvtier.types import ChunkKey, Record

_FULL_SHARE = 0.95
"""Pages a shard may have in use, those that a batch replaces included. LMDB needs free pages even to delete: a map
filled to the last page could never be emptied again."""

ERASE_WAIT_S: Final = 10.0
"""How long erasing waits for others to end a read of a shard that began before the last write to it."""

MOST_LEFT: Final = 8
"""So many unreadable values of a shard may be a bad spot of the medium. More of them are a medium that fails: nothing
can be deleted until it heals, and then all of it."""

_BAD_PAGE: Final = frozenset({errno.EIO, errno.EBADMSG, errno.ENODATA, errno.EUCLEAN})
_NEARLY_FULL_BYTES = 16 << 20

Peek = Callable[[int, int], bytes]
"""Bytes of the shard's file: from where, how many. OSError when the medium cannot give them."""

INDEX = b"index"
DATABASES = (b"frames", INDEX)
LOG = b"log"


class Shard:
    """One environment: its file, its three databases, and how far what other processes do to it is known here."""

    __slots__ = (
        "_dirty", "_env", "_file", "_frames", "_full_pages", "_index", "_known_txn", "_log", "_map_bytes", "_own_txns",
        "n_left", "page_bytes", "path",
    )  # fmt: skip

    def __init__(self, path: Path, map_bytes: int, *, sync_commits: bool = False) -> None:
        self.path = path
        self._map_bytes = map_bytes
        self._dirty = False
        self._known_txn = 0
        self.n_left = 0  # deletes that left the frame's pages where they are
        self._own_txns: set[int] = set()  # later than `_known_txn`
        try:
            status = path.stat()
            self._file = status.st_dev, status.st_ino
            self._env = open_env(path, map_bytes, sync_commits=sync_commits)
            self._frames, self._index = (self._env.open_db(name, create=False) for name in DATABASES)
            try:
                self._log = self._env.open_db(LOG, create=False)
            except lmdb.NotFoundError:
                self._log = self._env.open_db(LOG)
            self._env.reader_check()  # a killed process left its reader's slot; its pages would never be used again
            self.page_bytes: int = self._env.stat()["psize"]
            self._full_pages = int(map_bytes * _FULL_SHARE) // self.page_bytes
        except (lmdb.Error, OSError) as error:
            raise StoreError(explain(path, "cannot be opened", error)) from error

    def begin(self) -> lmdb.Transaction:
        """A read transaction. StoreError when the file is not what was opened."""
        try:
            self._check_file()
            return self._env.begin(buffers=True)
        except (lmdb.Error, OSError) as error:
            raise StoreError(explain(self.path, "cannot be read", error)) from error

    def find(self, txn: lmdb.Transaction, key: ChunkKey) -> Entry | memoryview | None:
        """Where the frame of `key` lies: its entry when in pages of its own, itself when in a tree; None when absent.

        Empty when index and frame do not agree.
        """
        try:
            stored = txn.get(key, db=self._index)
            entry = unpack(stored) if stored is not None else None
            if entry is not None and entry.page:
                # A damaged length or page must not be followed beyond the file.
                inside = entry.page * self.page_bytes + PAGE_HEADER_BYTES + entry.n_bytes <= self._map_bytes
                return entry if inside else memoryview(b"")
            frame = txn.get(key, db=self._frames)
        except lmdb.Error as error:
            raise StoreError(explain(self.path, "cannot be read", error)) from error
        except struct.error:
            return memoryview(b"")
        if entry is None and frame is None:
            return None
        if entry is None or frame is None or entry.n_bytes != len(frame):
            return memoryview(b"")
        return memoryview(frame)

    def read_pages(self, reader: PageReader, number: int, entry: Entry) -> PageRun:
        """The pages of a frame, page header first, while a transaction keeps them from being used again."""
        try:
            return reader.read(number, entry.page * self.page_bytes, PAGE_HEADER_BYTES + entry.n_bytes)
        except OSError as error:
            raise StoreError(explain(self.path, "cannot be read", error)) from error

    def listings(self, number: int, walked: tuple[int, list[Listing]] | None) -> Iterator[Listing]:
        """Every frame, as of shard `number`; what others do from then on is news.

        `walked` is what the index listed after some transaction, used if none came later.
        """
        try:
            self._check_file()
            with self._env.begin() as txn:
                if walked is None or walked[0] != txn.id():
                    with self.path.open("rb", buffering=0) as file:
                        listings = read_index(file.fileno(), txn.id(), INDEX)
                    walked = txn.id(), list(listings_of(self._records(txn))) if listings is None else listings
                self._know(txn.id())
        except (lmdb.Error, OSError, struct.error, ValueError) as error:
            raise StoreError(explain(self.path, "has an index that cannot be read", error)) from error
        return (replace(listing, shard=number) for listing in walked[1])

    def _records(self, txn: lmdb.Transaction) -> Iterator[Record]:
        with txn.cursor(db=self._index) as cursor:
            for key, entry in cursor.iternext():
                yield Record(ChunkKey(bytes(key)), 0, *unpack(entry)[:2])

    def summarize(self) -> tuple[int, int]:
        """How many frames there are, and when the youngest was written; 0 when there is none."""
        try:
            self._check_file()
            with self._env.begin() as txn:
                written = [record.written_ns for record in self._records(txn)]
                return len(written), max(written, default=0)
        except (lmdb.Error, OSError, struct.error) as error:
            raise StoreError(explain(self.path, "has an index that cannot be read", error)) from error

    def written_before(self, before_ns: int) -> list[ChunkKey]:
        """Keys of frames written before; others' writes stay news."""
        try:
            self._check_file()
            with self._env.begin() as txn, txn.cursor(db=self._index) as cursor:
                return [ChunkKey(key) for key, entry in cursor.iternext() if unpack(entry)[1] < before_ns]
        except (lmdb.Error, OSError, struct.error) as error:
            raise StoreError(explain(self.path, "has an index that cannot be read", error)) from error

    def is_behind(self) -> bool:
        """Whether others have written since `records` or `news`."""
        try:
            last_txn: int = self._env.info()["last_txnid"]
        except lmdb.Error as error:
            raise StoreError(explain(self.path, "cannot be read", error)) from error
        return last_txn != self._known_txn

    def news(self) -> News:
        """What others have written since; see `SharedStore.news`."""
        try:
            self._check_file()
            with self._env.begin() as txn:
                last = txn.id()
                changes = from_others(self._logged(txn), self._own_txns, self._known_txn, last)
                news = News(changes, whole=False) if changes is not None else News(self._all(txn), whole=True)
            self._know(last)
        except (lmdb.Error, OSError, struct.error) as error:
            raise StoreError(explain(self.path, "has a log or index that cannot be read", error)) from error
        return news

    def _logged(self, txn: lmdb.Transaction) -> dict[int, bytes]:
        with txn.cursor(db=self._log) as cursor:
            if not cursor.set_range(_log_key(self._known_txn + 1)):
                return {}
            return {int.from_bytes(key, "big"): bytes(value) for key, value in cursor.iternext()}

    def _all(self, txn: lmdb.Transaction) -> list[Change]:
        with txn.cursor(db=self._index) as cursor:
            return [Change(ChunkKey(bytes(key)), unpack(entry).n_bytes) for key, entry in cursor.iternext()]

    def _know(self, txn_id: int) -> None:
        """Everything up to this transaction is known; own ones that follow it at once are no news either."""
        self._known_txn = txn_id
        self._own_txns = {own for own in self._own_txns if own > txn_id}
        while self._known_txn + 1 in self._own_txns:
            self._known_txn += 1
            self._own_txns.remove(self._known_txn)

    def release_dead(self) -> None:
        """Free the reader slots of killed processes."""
        try:
            self._env.reader_check()
        except lmdb.Error as error:
            raise StoreError(explain(self.path, "has a table of readers that cannot be checked", error)) from error

    def write(
        self, puts: dict[ChunkKey, memoryview], deletes: Sequence[ChunkKey], written_ns: int, peek: Peek
    ) -> list[Run]:
        """See `Store.write`. Returns where the frames lie that have pages of their own."""
        try:
            self._check_file()
            try:
                return self._apply(puts, deletes, written_ns, peek)
            except lmdb.MapFullError:
                if not self._env.reader_check():
                    raise
                # A killed reader had kept freed pages from being used.
                return self._apply(puts, deletes, written_ns, peek)
        except lmdb.MapFullError as error:
            if deletes and puts:
                with suppress(StoreFullError):  # the puts' own says it
                    self.write({}, deletes, written_ns, peek)
            raise StoreFullError(f"{self.path} has no room for {len(puts)} frames; delete more from it") from error
        except (lmdb.Error, OSError) as error:
            raise StoreError(explain(self.path, "cannot be written", error)) from error

    def _apply(
        self, puts: dict[ChunkKey, memoryview], deletes: Sequence[ChunkKey], written_ns: int, peek: Peek
    ) -> list[Run]:
        runs, n_left = [], self.n_left
        with self._env.begin(write=True, buffers=True) as txn:
            if puts and self._pages(txn) + sum(map(self._frame_pages, puts.values())) > self._full_pages:
                raise lmdb.MapFullError("this shard's share of pages in use")
            changes: list[Change] = []
            for key in deletes:
                may_go = self._may_free(txn, key, peek, n_left)
                n_left += not may_go
                was_listed = txn.delete(key, db=self._index)
                if (may_go and txn.delete(key, db=self._frames)) or was_listed:
                    changes.append(Change(key, None))
            for key, frame in puts.items():
                if not self._may_free(txn, key, peek, n_left):
                    raise StoreError(f"{self.path} has a damaged value where {key.hex()} is to be written")
                txn.put(key, frame, db=self._frames)
                stored = memoryview(txn.get(key, b"", db=self._frames))
                page = page_of(stored, key, self.page_bytes)
                txn.put(key, Entry(len(frame), written_ns, page).pack(), db=self._index)
                changes.append(Change(key, len(frame)))
                if page:
                    runs.append(Run(page * self.page_bytes, self._frame_pages(frame) * self.page_bytes))
            if changes:
                self._log_changes(txn, changes)
            self._dirty = True
            number = txn.id()
        self.n_left = n_left
        if changes:  # LMDB gives the number of a transaction that changed nothing to the next one
            self._own_txns.add(number)
            self._know(self._known_txn)
        return runs

    def _may_free(self, txn: lmdb.Transaction, key: ChunkKey, peek: Peek, n_left: int) -> bool:
        """Whether what is stored of `key`, if anything, can be given to LMDB to delete or replace.

        A value whose first page is not what it was, or cannot be read, is better left where it is: LMDB would give away
        pages of other frames, or end the process. It is nobody's then, and the walk of a start finds it. OSError when
        that has been enough, or it is not the page's fault.
        """
        page, n_bytes = 0, -1
        with suppress(struct.error):
            n_bytes, _, page = unpack(txn.get(key, b"", db=self._index))
        header = b""
        if page:
            try:  # LMDB is going to look there as well: it is not read twice
                header = peek(page * self.page_bytes, PAGE_HEADER_BYTES)
            except OSError as error:
                if error.errno not in _BAD_PAGE or n_left >= MOST_LEFT:
                    raise
                return False
            if is_page_of(header, page, n_bytes, self.page_bytes):
                return True
        value = txn.get(key, db=self._frames)  # reads all of it: only where the index does not know
        if value is None or lies_in_leaf(key, len(value), self.page_bytes):
            return True
        return is_page_of(header or header_of(memoryview(value)), page or None, len(value), self.page_bytes)

    def _log_changes(self, txn: lmdb.Transaction, changes: list[Change]) -> None:
        number = txn.id()
        with txn.cursor(db=self._log) as cursor:
            while cursor.first() and int.from_bytes(cursor.key(), "big") <= number - LOG_TRANSACTIONS:
                cursor.delete()
        if len(changes) <= LOG_MOST_CHANGES:
            txn.put(_log_key(number), pack(changes), db=self._log)

    def erase_deleted(self) -> int:
        """See `LmdbStore.erase_deleted`."""
        give_up_s = time.monotonic() + ERASE_WAIT_S
        try:
            self._check_file()
            while True:
                self._env.reader_check()
                with self._env.begin(write=True) as txn:
                    late = [pid for pid, seen in self._readers() if seen < txn.id() - 1]
                    if not late:
                        self._env.sync(True)  # or a power loss could bring back a tree that needs what is erased now
                        with self.path.open("r+b") as file:
                            return erase_unreachable(file.fileno())
                if time.monotonic() > give_up_s:
                    raise StoreError(f"{self.path} is being read by process {late[0]}; stop it and try again")
                time.sleep(0.01)
        except (lmdb.Error, OSError, ValueError) as error:
            raise StoreError(explain(self.path, "cannot be erased", error)) from error

    def _readers(self) -> list[tuple[int, int]]:
        """(process, transaction it sees) of every read under way."""
        rows = (line.split() for line in self._env.readers().splitlines())
        return [(int(row[0]), int(row[2])) for row in rows if len(row) == 3 and row[0].isdigit() and row[2].isdigit()]

    def _pages(self, txn: lmdb.Transaction) -> int:
        """Pages in use, those of the trees twice: a batch that deletes everything writes each of them anew."""
        trees = (txn.stat(database) for database in (self._frames, self._index, self._log))
        return sum(2 * (tree["branch_pages"] + tree["leaf_pages"]) + tree["overflow_pages"] for tree in trees)

    def _frame_pages(self, frame: memoryview) -> int:
        return -(-(len(frame) + PAGE_HEADER_BYTES) // self.page_bytes)

    def sync(self) -> None:
        """Force what was written since the last call to the medium."""
        if not self._dirty:
            return
        self._dirty = False
        try:
            self._env.sync(True)
        except (lmdb.Error, OSError) as error:
            self._dirty = True
            raise StoreError(explain(self.path, "cannot be synced", error)) from error

    def close(self) -> None:
        """Close the environment."""
        self._env.close()

    def _check_file(self) -> None:
        """The mapping outlives its file: reading past a new end is SIGBUS, writing to a removed file leads nowhere."""
        status = os.stat(self.path)  # noqa: PTH116 - once per read; Path.stat doubles its 1.5 us
        if (status.st_dev, status.st_ino) != self._file:
            raise OSError("the file was replaced since it was opened")
        if status.st_size < self._map_bytes:
            raise OSError(f"the file was cut to {status.st_size} bytes since it was opened")


def _log_key(number: int) -> bytes:
    return number.to_bytes(8, "big")


def open_env(path: Path, map_bytes: int, *, sync_commits: bool = False) -> lmdb.Environment:
    """The environment at `path`, with the flags that the figures rest on."""
    return lmdb.open(
        os.fspath(path),
        subdir=False,
        map_size=map_bytes,
        max_dbs=len(DATABASES) + 1,
        mode=0o600,
        sync=sync_commits,  # else `LmdbStore.sync` does it, on a timer; a killed process loses nothing without
        writemap=False,  # a full disk would be SIGBUS instead of an error
        readahead=False,  # frames are read from the file; around a tree page the kernel would read 8 MiB of them
        lock=True,
        max_spare_txns=8,  # as many reads at once reuse their transaction; each keeps one of 126 reader slots
    )


def explain(path: Path, what: str, error: Exception) -> str:
    """One line for the operator, with the remedy where there is one."""
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    if errno.EMFILE in (getattr(error, "errno", 0), getattr(error, "code", 0)):
        said += "; raise the limit on open files (ulimit -n): the store takes two for each shard"
    # LMDB reports a write that the disk cut short as an I/O error.
    with suppress(OSError):
        space = os.statvfs(path.parent)
        if isinstance(error, lmdb.DiskError) or space.f_bavail * space.f_frsize < _NEARLY_FULL_BYTES:
            said += "; the disk is full: free space or lower the disk capacity"
    return f"{path} {what}: {said}"
