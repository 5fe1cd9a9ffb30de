"""LmdbStore: frames in many small LMDB environments under one directory.

Small, because with frames of varying size and random victims the search for free pages grows with the map: 24 GiB falls
from 0.6 to 0.1 GB/s of writes, 1 GiB holds its speed. docs/format.md describes the directory byte by byte.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Final, Self

import lmdb

from kvtier.errors import StoreError
from kvtier.store.base import News
from kvtier.store.borrowed import Borrowed
from kvtier.store.direct import PageReader
from kvtier.store.directory import LOCK, OUR_NAMES, Settled, Summary, lock_path, settle, shard_number, shard_path
from kvtier.store.listing import Listing
from kvtier.store.lmdb_file import find_damage
from kvtier.store.lmdb_index import PAGE_HEADER_BYTES, Entry, frame_cost
from kvtier.store.lmdb_walk import Walked, find_bad_value, walk_together
from kvtier.store.manifest import MANIFEST, Manifest, check_capacity, pid_namespace, read_manifest
from kvtier.store.private import DirectoryLock, create_file, secure_directory
from kvtier.store.shard import DATABASES, INDEX, LOG, Shard, explain, open_env
from kvtier.store.write_behind import WriteBehind, fits_page_cache
from kvtier.types import ChunkKey, FilePages, UsePages

SHARD_MAP_BYTES: Final = 512 << 20
"""Shards are this long or up to twice that. Writing under churn with random victims, one thread, flat over six times
the map: frames of 0.65-0.8 MB 1.2 GB/s with maps of 1 GiB, 0.9 with 2 GiB; frames of 0.17-0.2 MB 0.8 and 0.6."""

LIVE_SHARE: Final = 0.8
"""Live bytes per map byte. The rest absorbs what LMDB frees one transaction late, free-list pages and fragmentation."""

FRAMES_PER_SHARD: Final = 256
"""A map must hold so many frames for the holes that some leave to be large enough for others. Writes in batches of 8
that found none, at random replacement, sizes within 5 %: none of 821 at 256, 2 of 642 at 200; in batches of 4: 18 of
641 at 100, 177 of 411 at 64."""


_OUT_OF_FILES: Final = frozenset({errno.EMFILE, errno.ENFILE})


def shard_map_bytes_for(chunk_bytes: int) -> int:
    """What an engine whose chunks are `chunk_bytes` should ask `LmdbStore.open` for."""
    return max(SHARD_MAP_BYTES, FRAMES_PER_SHARD * chunk_bytes)


def _nobody(_: str) -> None:
    return None


class LmdbStore:
    """The disk store. Made by `LmdbStore.open`; the files never exceed the capacity given there, whatever happens.

    Reads and writes come from any thread; LMDB lets one writer per shard at a time in and makes the others wait.
    Several processes may have one directory open. No store may be carried over a fork or opened twice in a process.
    """

    def __init__(
        self,
        shards: list[Shard],
        lock: DirectoryLock,
        settled: Settled,
        files: _Files,
        clock_ns: Callable[[], int],
        *,
        report: Callable[[str], None] = _nobody,
    ) -> None:
        self._shards = shards
        self._writing = [threading.Lock() for _ in shards]
        self._lock = lock
        self._clock_ns = clock_ns
        self._report = report
        self._said: set[int] = set()  # shards of which that was reported
        self._walked = files.walked
        self.page_bytes: Final = shards[0].page_bytes
        """Of the trees' pages."""
        self._map_bytes = settled.manifest.map_bytes
        self._reader = PageReader([shard.path for shard in shards], self._map_bytes)
        self.capacity_bytes: Final = settled.manifest.capacity_bytes
        """Bound of all files together, as the process that settled the directory was given it."""
        self._behind = WriteBehind(self._reader, keep=fits_page_cache(self.capacity_bytes))
        self.notices: Final = settled.notices
        """What the operator should know of this opening, one line each; the caller logs them."""
        self.dropped_frames: Final = settled.dropped_frames
        """Frames removed by this opening because the capacity is smaller than before."""
        self.opened_alone: Final = settled.alone
        """Whether no other process had the directory open."""

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
        report: Callable[[str], None] = _nobody,
    ) -> Self:
        """Open the store at `path`, creating, growing or shrinking it to `capacity_bytes` if nobody else has it open.

        Shards are one to two times `shard_map_bytes` long, as makes the most of the capacity, and longer when that
        would take more than 256. Their trees are walked first, and damaged shards set aside. Where values begin is
        looked at as far as `INSPECT_S` goes; in every shard if the machine was restarted since the last use, because
        power may have been lost, or if `inspect` asks for it.
        With `sync_commits` every write returns when it would survive a loss of power, and leaves a whole tree behind.
        `report` prints how far it is when that takes long, and what the operator should know of later on, a line at a
        time; any thread that writes.
        Blocks for up to two minutes while another process opens the same directory.

        Raises ConfigError for a capacity below 16 MiB. Raises StoreError when the directory cannot be used: a symlink,
        another user's, not writable, or of a newer format.
        """
        check_capacity(capacity_bytes)
        secure_directory(path, OUR_NAMES)
        lock = DirectoryLock(path / LOCK)
        with _opening(path, lock) as shards:
            files = _Files()
            settled = _settle(path, capacity_bytes, shard_map_bytes, lock, files, inspect=inspect, report=report)
            for number in settled.manifest.shards:
                file = shard_path(path, number)
                shards.append(Shard(file, settled.manifest.map_bytes, sync_commits=sync_commits))
            return cls(shards, lock, settled, files, clock_ns, report=report)

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
        notices: list[str] = []
        with _opening(path, lock) as shards:
            files = _Files()
            alone = lock.acquire()
            if not alone:
                _refuse_strangers(path, manifest)
            for number in manifest.shards:
                file = shard_path(path, number)
                damage = find_damage(file, manifest.map_bytes) or (files.walk([file])[0] if alone else None)
                if damage is None:
                    shards.append(Shard(file, manifest.map_bytes))
                else:
                    notices.append(f"{file}: {damage}; the next engine to start sets it aside")
            if not shards:
                raise StoreError(f"{path} has no shard that can be opened: {'; '.join(notices)}")
            if alone and manifest.pid_namespace == pid_namespace():
                lock.share()  # else engines, which may be in another container, wait until this process has ended
            return cls(shards, lock, Settled(manifest, notices, 0, alone=alone), files, clock_ns)

    @property
    def n_shards(self) -> int:
        """Number of environments."""
        return len(self._shards)

    @property
    def shard_bytes(self) -> int:
        """Live bytes per environment: `LIVE_SHARE` of its map."""
        return int(self._map_bytes * LIVE_SHARE)

    def frame_cost(self, n_bytes: int) -> int:
        """See `lmdb_index.frame_cost`."""
        return frame_cost(n_bytes, self.page_bytes)

    def file_bytes(self) -> int:
        """Disk space the shard files occupy now. They only grow into it: space of deleted frames is used again."""
        try:
            return sum(shard.path.stat().st_blocks * 512 for shard in self._shards)
        except OSError as error:
            raise StoreError(f"{error.filename} is gone: {error.strerror}") from error

    def scan(self) -> Iterator[Listing]:
        """Every frame, shard by shard, from the index alone."""
        for number, shard in enumerate(self._shards):
            yield from shard.listings(number, self._walked.pop(shard.path, None))

    def written_before(self, shard: int, before_ns: int) -> list[ChunkKey]:
        """Keys of the frames in `shard` that were written before `before_ns`; its whole index is read, about 1 ms."""
        return self._shards[shard].written_before(before_ns)

    def is_behind(self, shard: int) -> bool:
        """Whether other processes changed `shard` since its last `news`, or since `scan` read it."""
        return self._shards[shard].is_behind()

    def news(self, shard: int) -> News:
        """What other processes did to `shard`: from its log, or, when that does not go back so far, from its index."""
        return self._shards[shard].news()

    def release_dead(self) -> None:
        """Free the reader slots of killed processes: the pages that those were reading would never be used again."""
        for shard in self._shards:
            shard.release_dead()

    def write(self, shard: int, puts: Sequence[tuple[ChunkKey, memoryview]], deletes: Sequence[ChunkKey]) -> None:
        """Apply deletes, then puts, in one transaction; StoreFullError applies the deletes alone.

        StoreError when another process holds the shard for seconds, as a stopped one does.
        """
        with self._turn(shard):
            runs = self._shards[shard].write(dict(puts), deletes, self._clock_ns(), partial(self._reader.peek, shard))
        self._behind.wrote(shard, runs)
        if self._shards[shard].n_left and shard not in self._said:
            self._said.add(shard)
            self._report(
                f"{self._shards[shard].path}: a frame to be deleted begins with a page that is damaged or cannot be "
                "read; it is left where it is, and a start of the engine that comes across it sets the shard aside"
            )

    @contextmanager
    def _turn(self, shard: int) -> Iterator[None]:
        with self._writing[shard], self._lock.turn(shard_number(self._shards[shard].path)):
            yield

    def read(self, shard: int, key: ChunkKey) -> AbstractContextManager[memoryview | None]:
        """Borrow a frame's bytes. They come from the file: a page that the device cannot give is a StoreError.

        When what is stored contradicts the index the view is empty, which no frame is: it does not verify.
        """
        opened = self._shards[shard]
        return Borrowed(opened, key, lambda entry: opened.read_pages(self._reader, shard, entry))

    def lend(self, wanted: Sequence[tuple[int, ChunkKey]], use: UsePages) -> list[bool]:
        """As `Store` says."""
        with ExitStack() as until_used:
            txns: dict[int, lmdb.Transaction | None] = {}
            return use([self._lent(shard, key, txns, until_used) for shard, key in wanted])

    def _lent(
        self, shard: int, key: ChunkKey, txns: dict[int, lmdb.Transaction | None], until_used: ExitStack
    ) -> FilePages | None:
        """Where a frame lies as long as `until_used` is open; `txns` has those of the shards that were looked at."""
        opened = self._shards[shard]
        try:
            if shard not in txns:
                txns[shard] = None
                txns[shard] = txn = opened.begin()
                until_used.callback(txn.abort)
            if (txn_of_shard := txns[shard]) is None:
                return None
            entry = opened.find(txn_of_shard, key)
            if not isinstance(entry, Entry):
                return None
            offset, n_bytes = entry.page * self.page_bytes, PAGE_HEADER_BYTES + entry.n_bytes
            descriptor, length, cached = until_used.enter_context(self._reader.place(shard, offset, n_bytes))
        except (StoreError, OSError):
            return None
        return FilePages(descriptor, offset, length, PAGE_HEADER_BYTES, entry.n_bytes, cached)

    def erase_deleted(self) -> int:
        """Make unreadable, on the medium too, whatever deleted or replaced frames left behind; bytes that held any.

        Nobody else can write a shard while it is at work there (seconds per GiB of such bytes at worst). StoreError
        when another process keeps reading an old state of a shard for longer than `ERASE_WAIT_S`.
        """
        n_bytes = 0
        for number, shard in enumerate(self._shards):
            with self._turn(number):
                n_bytes += shard.erase_deleted()
        return n_bytes

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


@contextmanager
def _opening(path: Path, lock: DirectoryLock) -> Iterator[list[Shard]]:
    """The shards opened so far, which are closed and the directory let go of if the rest fails."""
    shards: list[Shard] = []
    try:
        yield shards
    except BaseException as error:
        for shard in shards:
            shard.close()
        lock.release()
        if isinstance(error, OSError):
            raise StoreError(f"{path} cannot be opened as a store: {error}") from error
        raise


class _Files:
    """What `settle` asks of LMDB."""

    def __init__(self) -> None:
        self.walked: dict[Path, tuple[int, list[Listing]]] = {}
        """Of the shards that were found whole: the last transaction, and what the index listed after it."""
        self._found: dict[Path, Walked] = {}  # not looked at yet

    def create(self, path: Path, map_bytes: int) -> None:
        lock_path(path).unlink(missing_ok=True)
        create_file(path)
        create_file(lock_path(path))
        try:
            with open_env(path, map_bytes) as env:
                for name in (*DATABASES, LOG):
                    env.open_db(name)
                # From birth as long as its map: a file that is shorter later on has lost something. Takes no disk.
                os.truncate(path, map_bytes)
                env.sync(True)
        except (lmdb.Error, OSError) as error:
            raise StoreError(explain(path, "cannot be created", error)) from error

    def summarize(self, path: Path, map_bytes: int) -> Summary:
        shard = Shard(path, map_bytes)
        try:
            return Summary(*shard.summarize())
        finally:
            shard.close()

    def walk(self, paths: Sequence[Path]) -> list[str | None]:
        files: dict[Path, int] = {}
        damages: dict[Path, str | None] = dict.fromkeys(paths)
        with ExitStack() as stack:
            for path in paths:
                try:
                    files[path] = stack.enter_context(path.open("rb", buffering=0)).fileno()
                except OSError as error:
                    if error.errno in _OUT_OF_FILES:
                        raise
                    damages[path] = str(error)
            ends = walk_together(list(files.values()), DATABASES, INDEX)
        for path, walked in zip(files, ends, strict=True):
            if isinstance(walked, Walked):
                self._found[path] = walked
                self.walked[path] = walked.txn_id, walked.listed
            else:
                damages[path] = str(walked)
        return list(damages.values())

    def look(self, path: Path, until_s: float) -> str | None:
        walked = self._found.pop(path)
        try:
            with path.open("rb", buffering=0) as file:
                return find_bad_value(file.fileno(), walked, until_s)
        except OSError as error:
            return str(error)


def _refuse_strangers(path: Path, manifest: Manifest) -> None:
    """LMDB takes a reader whose process id it does not find for dead, and gives the pages it reads to a writer."""
    if manifest.pid_namespace != pid_namespace():
        raise StoreError(
            f"{path} is in use by a process in another container; start the containers so that they share the host's "
            f"process ids (docker --pid=host, hostPID: true), or give each its own disk directory"
        )


def _settle(
    path: Path,
    capacity_bytes: int,
    target_map_bytes: int,
    lock: DirectoryLock,
    files: _Files,
    *,
    inspect: bool,
    report: Callable[[str], None],
) -> Settled:
    """Settle the directory if nobody else has it open, then hold it together with others."""
    settled = None
    if lock.acquire():
        settled = settle(path, capacity_bytes, target_map_bytes, files, inspect=inspect, report=report)
        lock.share()
    manifest = read_manifest(path)  # as it is now: another process may have come between
    if manifest is None:
        raise StoreError(f"{path} lost its manifest while it was opened; stop its other users and start again")
    _refuse_strangers(path, manifest)
    notices = settled.notices if settled else []
    if manifest.capacity_bytes != capacity_bytes:
        notices.append(
            f"{path} is in use by another process with a capacity of {manifest.capacity_bytes} bytes; "
            f"{capacity_bytes} takes effect when it is opened alone"
        )
    return Settled(manifest, notices, settled.dropped_frames if settled else 0, alone=settled is not None)
