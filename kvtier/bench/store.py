"""Store: frames to disk and back through LMDB on one thread, beside a file per chunk, O_DIRECT and vLLM's disk tier."""

from __future__ import annotations

import hashlib
import mmap
import shutil
from collections.abc import Iterator
from dataclasses import replace

from kvtier.bench import kv
from kvtier.bench.base import Conditions, Result, Timings, Work, time_in_turns
from kvtier.bench.ceilings import DirectFile, aligned, cached_share, drop_page_cache, fsync_tree, has_direct_io
from kvtier.bench.peers import FilePerChunk, VllmFs, in_order
from kvtier.codec.frame import frame_bound, open_into, seal_into
from kvtier.codec.registry import codec_for
from kvtier.errors import StoreError
from kvtier.store.lmdb import LmdbStore, shard_map_bytes_for
from kvtier.types import NAMESPACE_BYTES, ChunkKey

_MAX_DATA_BYTES = 512 << 20
"""KV in one round. Every way writes and reads it once a round, so more would be minutes and say the same."""

_BATCH = 8
"""Frames in one write transaction, as the spill thread has them."""


def key_of(number: int) -> ChunkKey:
    """Key of the chunk `number`: what a benchmark writes it under."""
    return ChunkKey(b"bench".ljust(NAMESPACE_BYTES, b"\0") + hashlib.sha256(number.to_bytes(8, "little")).digest())


def run(conditions: Conditions) -> Iterator[Result]:
    """The same chunks through every way, written, read hot and read cold. GB/s are of KV, before compression."""
    conditions = replace(conditions, data_bytes=min(conditions.data_bytes, _MAX_DATA_BYTES))
    ways = _Ways(conditions)
    n_rounds = min(conditions.n_repeats, 5)
    n_bytes = ways.n_chunks * conditions.chunk_bytes
    try:
        conditions.progress(f"writing {ways.n_chunks} chunks, {n_rounds} rounds")
        yield from _results("store.write", time_in_turns(ways.writes(), n_rounds, warm=False), n_bytes)
        conditions.progress(f"reading them from the page cache, {n_rounds} rounds")
        yield from _results("store.read_hot", time_in_turns(ways.reads(cold=False), n_rounds), n_bytes)
        conditions.progress(f"reading them from the disk, {n_rounds} rounds")
        yield from _results("store.read_cold", time_in_turns(ways.reads(cold=True), n_rounds, warm=False), n_bytes)
        if ways.warmest > 0.02:
            conditions.note(f"store.read_cold: up to {ways.warmest:.0%} of the store was still in the page cache")
        yield Result("store.file_bytes_per_kv_byte", ways.file_bytes() / n_bytes, "x", {"file_per_chunk": 1.0})
    finally:
        ways.close()


def _results(name: str, timings: Timings, n_bytes: int) -> Iterator[Result]:
    peers = {peer: timings.rate(peer, n_bytes) for peer in timings.seconds if peer != "kvtier"}
    yield Result(name, timings.rate("kvtier", n_bytes), "GB/s", peers)


class _Ways:
    """The store and its peers, over the same chunks. Writing includes waiting until the disk has everything."""

    def __init__(self, conditions: Conditions) -> None:
        self._data = kv.kv_for(conditions)
        self._chunk_bytes = conditions.chunk_bytes
        self._codec = codec_for(self._data.dtype)
        self._room = [memoryview(bytearray(frame_bound(self._chunk_bytes, self._codec))) for _ in range(_BATCH)]
        self._slot = memoryview(bytearray(self._chunk_bytes))
        self.n_chunks = conditions.n_chunks
        self.warmest = 0.0  # largest share of the store that was in the page cache when it should have been cold
        self._path = conditions.folder / "kvtier"
        # Frames never take more than a chunk each; a third on top for what LMDB keeps free.
        self._capacity_bytes = (
            64 * mmap.PAGESIZE * 256 + self.n_chunks * (self._chunk_bytes + 3 * mmap.PAGESIZE) * 4 // 3
        )
        self._store: LmdbStore | None = None
        self._shard_of: list[int] = []
        self._files = FilePerChunk(conditions.folder / "files")
        self._direct = None
        if has_direct_io(conditions.folder):
            self._direct = DirectFile(conditions.folder / "direct.bin", self.n_chunks * self._chunk_bytes)
        else:
            conditions.note("no O_DIRECT on this file system: no ceiling of the disk; name a disk with --dir")
        self._vllm = VllmFs.open(conditions.folder / "vllm")
        if self._vllm is None:
            conditions.note("vLLM is not installed: no comparison with its disk tier")
        elif self._chunk_bytes % mmap.PAGESIZE:
            self._vllm = None
            conditions.note(f"chunks are no multiple of {mmap.PAGESIZE} bytes: no comparison with vLLM's disk tier")
        self._pool = aligned(self.n_chunks * self._chunk_bytes if self._vllm else 0)
        if self._vllm:
            for number in range(self.n_chunks):
                self._pool[number * self._chunk_bytes : (number + 1) * self._chunk_bytes] = self._chunk(number)

    def writes(self) -> dict[str, Work]:
        """Every way to write all chunks, into nothing, until the disk has them."""
        works = {
            "kvtier": Work(self._write, prepare=self._begin_anew),
            "file_per_chunk": Work(self._write_files, prepare=lambda: self._clear("files")),
        }
        if self._direct is not None:
            works["odirect"] = Work(self._direct.write)
        if (vllm := self._vllm) is not None:
            numbers = range(self.n_chunks)
            works["vllm_fs"] = Work(
                lambda: vllm.store(numbers, self._pool, self._chunk_bytes), prepare=lambda: self._clear("vllm")
            )
        return works

    def reads(self, *, cold: bool) -> dict[str, Work]:
        """Every way to read all chunks, in the order they were written, verified where that is part of the way."""
        read_files = in_order(lambda number: self._files.read(number, self._slot), self.n_chunks)
        works = {
            "kvtier": Work(self._read, prepare=self._reopen_cold if cold else None),
            "file_per_chunk": Work(read_files, prepare=(lambda: self._drop("files")) if cold else None),
        }
        if self._direct is not None:
            works["odirect"] = Work(self._direct.read)
        if (vllm := self._vllm) is not None:
            numbers = range(self.n_chunks)
            works["vllm_fs"] = Work(
                lambda: vllm.load(numbers, self._pool, self._chunk_bytes),
                prepare=(lambda: self._drop("vllm")) if cold else None,
            )
        return works

    def file_bytes(self) -> int:
        """What the store takes on disk now."""
        return self._open_store.file_bytes()

    def close(self) -> None:
        """Let go of the files."""
        if self._store is not None:
            self._store.close()
            self._store = None

    @property
    def _open_store(self) -> LmdbStore:
        assert self._store is not None
        return self._store

    def _chunk(self, number: int) -> memoryview:
        return self._data.chunks[number % len(self._data.chunks)]

    def _begin_anew(self) -> None:
        self.close()
        self._clear("kvtier")
        self._open()

    def _open(self) -> None:
        shard_map_bytes = shard_map_bytes_for(self._chunk_bytes)
        self._store = LmdbStore.open(self._path, self._capacity_bytes, shard_map_bytes=shard_map_bytes)

    def _write(self) -> None:
        store = self._open_store
        self._shard_of = []
        for first in range(0, self.n_chunks, _BATCH):
            numbers = range(first, min(first + _BATCH, self.n_chunks))
            puts = [
                (key_of(number), self._sealed(number, room)) for number, room in zip(numbers, self._room, strict=False)
            ]
            shard = first // _BATCH % store.n_shards
            store.write(shard, puts, [])
            self._shard_of += [shard] * len(puts)
        store.sync()

    def _sealed(self, number: int, room: memoryview) -> memoryview:
        return room[: seal_into(self._chunk(number), room, key=key_of(number), codec=self._codec)]

    def _read(self) -> None:
        store = self._open_store
        for number, shard in enumerate(self._shard_of):
            with store.read(shard, key_of(number)) as frame:
                if frame is None:
                    raise StoreError(f"{self._path}: chunk {number} is gone")
                open_into(frame, self._slot, key=key_of(number))

    def _reopen_cold(self) -> None:
        self.close()
        drop_page_cache(self._path)
        self.warmest = max(self.warmest, cached_share(self._path))
        self._open()

    def _write_files(self) -> None:
        for number in range(self.n_chunks):
            self._files.write(number, self._chunk(number))
        fsync_tree(self._path.with_name("files"))

    def _clear(self, name: str) -> None:
        folder = self._path.with_name(name)
        shutil.rmtree(folder, ignore_errors=True)
        if name != "kvtier":
            folder.mkdir()

    def _drop(self, name: str) -> None:
        drop_page_cache(self._path.with_name(name))
