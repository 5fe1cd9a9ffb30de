"""LmdbStore: frames in many small LMDB environments under one directory. The only module that speaks to lmdb.

Small, because with frames of varying size and random victims the search for free pages grows with the map: 24 GiB falls
from 0.6 to 0.1 GB/s of writes, 1 GiB holds its speed. docs/format.md describes the directory byte by byte.
"""

from __future__ import annotations

import errno
import os
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Final, Self

import lmdb

from kvtier.errors import StoreError, StoreFullError
from kvtier.store.borrowed import Borrowed
from kvtier.store.direct import PageReader, PageRun
from kvtier.store.directory import LOCK, OUR_NAMES, Settled, Summary, lock_path, settle, shard_path
from kvtier.store.erase import erase_unreachable
from kvtier.store.lmdb_file import find_damage
from kvtier.store.lmdb_index import PAGE_HEADER_BYTES, Entry, page_of, unpack
from kvtier.store.manifest import MANIFEST, check_capacity, read_manifest
from kvtier.store.private import DirectoryLock, create_file, secure_directory
from kvtier.types import ChunkKey, Record

SHARD_MAP_BYTES: Final = 512 << 20
"""Shards are this long or up to twice that. Writing under churn with random victims, one thread, flat over six times
the map: frames of 0.65-0.8 MB 1.2 GB/s with maps of 1 GiB, 0.9 with 2 GiB; frames of 0.17-0.2 MB 0.8 and 0.6."""

LIVE_SHARE: Final = 0.8
"""Live bytes per map byte. The rest absorbs what LMDB frees one transaction late, free-list pages and fragmentation."""

_FULL_SHARE = 0.95
"""Pages a shard may have in use, those that a batch replaces included. LMDB needs free pages even to delete: a map
filled to the last page could never be emptied again."""

FRAMES_PER_SHARD: Final = 256
"""A map must hold so many frames for the holes that some leave to be large enough for others. Writes in batches of 8
that found none, at random replacement, sizes within 5 %: none of 821 at 256, 2 of 642 at 200; in batches of 4: 18 of
641 at 100, 177 of 411 at 64."""

ERASE_WAIT_S: Final = 10.0
"""How long erasing waits for others to end a read of a shard that began before the last write to it."""

_NEARLY_FULL_BYTES = 16 << 20
_ENTRY_BYTES = 512  # of both B-trees per frame, when pages are as empty as LMDB lets them become
_DATABASES = (b"frames", b"index")
_DAMAGE = (lmdb.CorruptedError, lmdb.InvalidError, lmdb.NotFoundError, lmdb.PageNotFoundError, lmdb.IncompatibleError)


def shard_map_bytes_for(chunk_bytes: int) -> int:
    """What an engine whose chunks are `chunk_bytes` should ask `LmdbStore.open` for."""
    return max(SHARD_MAP_BYTES, FRAMES_PER_SHARD * chunk_bytes)


class LmdbStore:
    """The disk store. Made by `LmdbStore.open`; the files never exceed the capacity given there, whatever happens.

    Reads and writes come from any thread; LMDB lets one writer per shard at a time in and makes the others wait.
    Several processes may have one directory open. No store may be carried over a fork or opened twice in a process.
    """

    def __init__(
        self, shards: list[_Shard], lock: DirectoryLock, settled: Settled, clock_ns: Callable[[], int]
    ) -> None:
        self._shards = shards
        self._lock = lock
        self._clock_ns = clock_ns
        self._page_bytes = shards[0].page_bytes
        self._map_bytes = settled.manifest.map_bytes
        self._reader = PageReader([shard.path for shard in shards], self._map_bytes)
        self.capacity_bytes: Final = settled.manifest.capacity_bytes
        """Bound of all files together, as the process that settled the directory was given it."""
        self.notices: Final = settled.notices
        """What the operator should know of this opening, one line each; the caller logs them."""
        self.dropped_frames: Final = settled.dropped_frames
        """Frames removed by this opening because the capacity is smaller than before."""

    @classmethod
    def open(
        cls,
        path: Path,
        capacity_bytes: int,
        *,
        shard_map_bytes: int = SHARD_MAP_BYTES,
        inspect: bool = False,
        sync_commits: bool = False,
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> Self:
        """Open the store at `path`, creating, growing or shrinking it to `capacity_bytes` if nobody else has it open.

        Shards are one to two times `shard_map_bytes` long, as makes the most of the capacity, and longer when that
        would take more than 256. The structure of shards is walked first (60 ms per GiB), as far as `INSPECT_S` goes;
        of every shard if the machine was restarted since the last use, because power may have been lost, or if
        `inspect` asks for it. Damaged shards are set aside.
        With `sync_commits` every write returns when it would survive a loss of power, and leaves a whole tree behind.
        Blocks for up to 30 s while another process opens the same directory.

        Raises ConfigError for a capacity below 16 MiB. Raises StoreError when the directory cannot be used: a symlink,
        another user's, not writable, or of a newer format.
        """
        check_capacity(capacity_bytes)
        secure_directory(path, OUR_NAMES)
        lock = DirectoryLock(path / LOCK)
        shards: list[_Shard] = []
        try:
            settled = _settle(path, capacity_bytes, shard_map_bytes, lock, inspect=inspect)
            for number in settled.manifest.shards:
                file = shard_path(path, number)
                shards.append(_Shard(file, settled.manifest.map_bytes, sync_commits=sync_commits))
            return cls(shards, lock, settled, clock_ns)
        except BaseException as error:
            for shard in shards:
                shard.close()
            lock.release()
            if isinstance(error, OSError):
                raise StoreError(f"{path} cannot be opened as a store: {error}") from error
            raise

    @classmethod
    def attach(cls, path: Path, *, clock_ns: Callable[[], int] = time.time_ns) -> Self:
        """Open the store at `path` as it stands, for a tool: nothing is laid out anew, engines may have it open too.

        Damaged shards are left out and named in `notices`; they are looked for only when no other process has the
        store open. Raises StoreError when there is no store, or it cannot be used.
        """
        manifest = read_manifest(path)
        if manifest is None:
            raise StoreError(f"{path} holds no kvtier store: there is no readable {MANIFEST} in it")
        secure_directory(path, OUR_NAMES)
        lock = DirectoryLock(path / LOCK)
        shards: list[_Shard] = []
        notices: list[str] = []
        try:
            alone = lock.acquire()
            for number in manifest.shards:
                file = shard_path(path, number)
                damage = find_damage(file, manifest.map_bytes) or (_Files().inspect(file) if alone else None)
                if damage is None:
                    shards.append(_Shard(file, manifest.map_bytes))
                else:
                    notices.append(f"{file}: {damage}; the next engine to start sets it aside")
            if not shards:
                raise StoreError(f"{path} has no shard that can be opened: {'; '.join(notices)}")
            if alone:
                lock.share()
            return cls(shards, lock, Settled(manifest, notices, 0), clock_ns)
        except BaseException as error:
            for shard in shards:
                shard.close()
            lock.release()
            if isinstance(error, OSError):
                raise StoreError(f"{path} cannot be opened as a store: {error}") from error
            raise

    @property
    def n_shards(self) -> int:
        """Number of environments."""
        return len(self._shards)

    @property
    def shard_bytes(self) -> int:
        """Live bytes per environment: `LIVE_SHARE` of its map."""
        return int(self._map_bytes * LIVE_SHARE)

    def frame_cost(self, n_bytes: int) -> int:
        """Whole pages, and the frame's share of both B-trees at their emptiest."""
        return -(-(n_bytes + PAGE_HEADER_BYTES) // self._page_bytes) * self._page_bytes + _ENTRY_BYTES

    def file_bytes(self) -> int:
        """Disk space the shard files occupy now. They only grow into it: space of deleted frames is used again."""
        try:
            return sum(shard.path.stat().st_blocks * 512 for shard in self._shards)
        except OSError as error:
            raise StoreError(f"{error.filename} is gone: {error.strerror}") from error

    def scan(self) -> Iterator[Record]:
        """Every frame, shard by shard, from the index alone."""
        for number, shard in enumerate(self._shards):
            yield from shard.records(number)

    def write(self, shard: int, puts: Sequence[tuple[ChunkKey, memoryview]], deletes: Sequence[ChunkKey]) -> None:
        """Apply deletes, then puts, in one transaction; StoreFullError applies the deletes alone."""
        self._shards[shard].write(dict(puts), deletes, self._clock_ns())

    def read(self, shard: int, key: ChunkKey) -> AbstractContextManager[memoryview | None]:
        """Borrow a frame's bytes. They come from the file: a page that the device cannot give is a StoreError.

        When what is stored contradicts the index the view is empty, which no frame is: it does not verify.
        """
        opened = self._shards[shard]
        return Borrowed(opened, key, lambda entry: opened.read_pages(self._reader, shard, entry))

    def erase_deleted(self) -> int:
        """Make unreadable, on the medium too, whatever deleted or replaced frames left behind; bytes that held any.

        Takes each shard's write lock while it works on it (seconds per GiB of such bytes at worst). StoreError when
        another process keeps reading an old state of a shard for longer than `ERASE_WAIT_S`.
        """
        return sum(shard.erase_deleted() for shard in self._shards)

    def sync(self) -> None:
        """Force what was written since the last call to the medium. Takes as long as the medium needs."""
        for shard in self._shards:
            shard.sync()

    def close(self) -> None:
        """Close all environments. What was written is in the page cache; `sync` first to have it on the medium."""
        self._reader.close()
        for shard in self._shards:
            shard.close()
        self._lock.release()


class _Shard:
    """One environment: its file, its two databases."""

    __slots__ = ("_dirty", "_env", "_file", "_frames", "_full_pages", "_index", "_map_bytes", "page_bytes", "path")

    def __init__(self, path: Path, map_bytes: int, *, sync_commits: bool = False) -> None:
        self.path = path
        self._map_bytes = map_bytes
        self._dirty = False
        try:
            status = path.stat()
            self._file = status.st_dev, status.st_ino
            self._env = _open_env(path, map_bytes, sync_commits=sync_commits)
            self._frames, self._index = (self._env.open_db(name, create=False) for name in _DATABASES)
            self._env.reader_check()  # a killed process left its reader's slot; its pages would never be used again
            self.page_bytes: int = self._env.stat()["psize"]
            self._full_pages = int(map_bytes * _FULL_SHARE) // self.page_bytes
        except (lmdb.Error, OSError) as error:
            raise StoreError(_explain(path, "cannot be opened", error)) from error

    def begin(self) -> lmdb.Transaction:
        """A read transaction. StoreError when the file is not what was opened."""
        try:
            self._check_file()
            return self._env.begin(buffers=True)
        except (lmdb.Error, OSError) as error:
            raise StoreError(_explain(self.path, "cannot be read", error)) from error

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
            raise StoreError(_explain(self.path, "cannot be read", error)) from error
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
            raise StoreError(_explain(self.path, "cannot be read", error)) from error

    def records(self, number: int) -> list[Record]:
        try:
            self._check_file()
            with self._env.begin() as txn, txn.cursor(db=self._index) as cursor:
                return [Record(ChunkKey(key), number, *unpack(entry)[:2]) for key, entry in cursor.iternext()]
        except (lmdb.Error, OSError, struct.error) as error:
            raise StoreError(_explain(self.path, "has an index that cannot be read", error)) from error

    def write(self, puts: dict[ChunkKey, memoryview], deletes: Sequence[ChunkKey], written_ns: int) -> None:
        try:
            self._check_file()
            try:
                self._apply(puts, deletes, written_ns)
            except lmdb.MapFullError:
                if not self._env.reader_check():
                    raise
                self._apply(puts, deletes, written_ns)  # a killed reader had kept freed pages from being used
        except lmdb.MapFullError as error:
            if deletes and puts:
                with suppress(StoreFullError):  # the puts' own says it
                    self.write({}, deletes, written_ns)
            raise StoreFullError(f"{self.path} has no room for {len(puts)} frames; delete more from it") from error
        except (lmdb.Error, OSError) as error:
            raise StoreError(_explain(self.path, "cannot be written", error)) from error

    def _apply(self, puts: dict[ChunkKey, memoryview], deletes: Sequence[ChunkKey], written_ns: int) -> None:
        with self._env.begin(write=True, buffers=True) as txn:
            if puts and self._pages(txn) + sum(map(self._frame_pages, puts.values())) > self._full_pages:
                raise lmdb.MapFullError("this shard's share of pages in use")
            for key in deletes:
                txn.delete(key, db=self._index)
                txn.delete(key, db=self._frames)
            for key, frame in puts.items():
                txn.put(key, frame, db=self._frames)
                stored = memoryview(txn.get(key, b"", db=self._frames))
                page = page_of(stored, key, self.page_bytes)
                txn.put(key, Entry(len(frame), written_ns, page).pack(), db=self._index)
            self._dirty = True

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
            raise StoreError(_explain(self.path, "cannot be erased", error)) from error

    def _readers(self) -> list[tuple[int, int]]:
        """(process, transaction it sees) of every read under way."""
        rows = (line.split() for line in self._env.readers().splitlines())
        return [(int(row[0]), int(row[2])) for row in rows if len(row) == 3 and row[0].isdigit() and row[2].isdigit()]

    def _pages(self, txn: lmdb.Transaction) -> int:
        """Pages in use, those of the trees twice: a batch that deletes everything writes each of them anew."""
        trees = (txn.stat(database) for database in (self._frames, self._index))
        return sum(2 * (tree["branch_pages"] + tree["leaf_pages"]) + tree["overflow_pages"] for tree in trees)

    def _frame_pages(self, frame: memoryview) -> int:
        return -(-(len(frame) + PAGE_HEADER_BYTES) // self.page_bytes)

    def sync(self) -> None:
        if not self._dirty:
            return
        self._dirty = False
        try:
            self._env.sync(True)
        except (lmdb.Error, OSError) as error:
            self._dirty = True
            raise StoreError(_explain(self.path, "cannot be synced", error)) from error

    def close(self) -> None:
        self._env.close()

    def _check_file(self) -> None:
        """The mapping outlives its file: reading past a new end is SIGBUS, writing to a removed file leads nowhere."""
        status = os.stat(self.path)  # noqa: PTH116 - once per read; Path.stat doubles its 1.5 us
        if (status.st_dev, status.st_ino) != self._file:
            raise OSError("the file was replaced since it was opened")
        if status.st_size < self._map_bytes:
            raise OSError(f"the file was cut to {status.st_size} bytes since it was opened")


class _Files:
    """What `settle` asks of LMDB."""

    def create(self, path: Path, map_bytes: int) -> None:
        lock_path(path).unlink(missing_ok=True)
        create_file(path)
        create_file(lock_path(path))
        try:
            with _open_env(path, map_bytes) as env:
                for name in _DATABASES:
                    env.open_db(name)
                # From birth as long as its map: a file that is shorter later on has lost something. Takes no disk.
                os.truncate(path, map_bytes)
                env.sync(True)
        except (lmdb.Error, OSError) as error:
            raise StoreError(_explain(path, "cannot be created", error)) from error

    def probe(self, path: Path, map_bytes: int) -> str | None:
        try:
            _Shard(path, map_bytes).close()
        except StoreError as error:
            if isinstance(error.__cause__, _DAMAGE):
                return str(error.__cause__)
            raise  # too many open files, no memory: setting the shard aside for that would throw the cache away
        return None

    def summarize(self, path: Path, map_bytes: int) -> Summary:
        shard = _Shard(path, map_bytes)
        try:
            records = shard.records(0)
        finally:
            shard.close()
        return Summary(len(records), max((record.written_ns for record in records), default=0))

    def inspect(self, path: Path) -> str | None:
        try:
            from lmdb.verify import VerifyError, verify  # noqa: PLC0415 - lmdb before 3.0 has none
        except ImportError:
            return None
        try:
            return next(iter(verify(os.fspath(path), subdir=False)), None)
        except (VerifyError, OSError) as error:
            return str(error)


def _open_env(path: Path, map_bytes: int, *, sync_commits: bool = False) -> lmdb.Environment:
    return lmdb.open(
        os.fspath(path),
        subdir=False,
        map_size=map_bytes,
        max_dbs=len(_DATABASES),
        mode=0o600,
        sync=sync_commits,  # else `LmdbStore.sync` does it, on a timer; a killed process loses nothing without
        writemap=False,  # a full disk would be SIGBUS instead of an error
        readahead=False,  # frames are read from the file; around a tree page the kernel would read 8 MiB of them
        lock=True,
        max_spare_txns=8,  # as many reads at once reuse their transaction; each keeps one of 126 reader slots
    )


def _settle(path: Path, capacity_bytes: int, target_map_bytes: int, lock: DirectoryLock, *, inspect: bool) -> Settled:
    """Settle the directory if nobody else has it open, then hold it together with others."""
    settled = None
    if lock.acquire():
        settled = settle(path, capacity_bytes, target_map_bytes, _Files(), inspect=inspect)
        lock.share()
    manifest = read_manifest(path)  # as it is now: another process may have come between
    if manifest is None:
        raise StoreError(f"{path} lost its manifest while it was opened; stop its other users and start again")
    notices = settled.notices if settled else []
    if manifest.capacity_bytes != capacity_bytes:
        notices.append(
            f"{path} is in use by another process with a capacity of {manifest.capacity_bytes} bytes; "
            f"{capacity_bytes} takes effect when it is opened alone"
        )
    return Settled(manifest, notices, settled.dropped_frames if settled else 0)


def _explain(path: Path, what: str, error: Exception) -> str:
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    if errno.EMFILE in (getattr(error, "errno", 0), getattr(error, "code", 0)):
        said += "; raise the limit on open files (ulimit -n): the store takes two for each shard"
    # LMDB reports a write that the disk cut short as an I/O error.
    with suppress(OSError):
        space = os.statvfs(path.parent)
        if isinstance(error, lmdb.DiskError) or space.f_bavail * space.f_frsize < _NEARLY_FULL_BYTES:
            said += "; the disk is full: free space or lower the disk capacity"
    return f"{path} {what}: {said}"
