"""Peers: other ways to do what kvtier does, run on the same bytes in the same run. Chunks in, works to time out."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import zstandard

from kvtier.errors import StoreError


class PlainZstd:
    """zstd as it comes at level 1, over whole chunks; contexts and output reused, as a careful user would."""

    def __init__(self, n_bytes: int) -> None:
        """For chunks of up to `n_bytes`."""
        self._compressor = zstandard.ZstdCompressor(level=1)
        self._decompressor = zstandard.ZstdDecompressor()
        self._room = memoryview(bytearray(n_bytes + (n_bytes >> 7) + 1024))

    def compress(self, chunk: memoryview) -> memoryview:
        """Compress; the view is valid until the next call."""
        n_bytes: int = self._compressor.stream_reader(chunk, size=len(chunk)).readinto(self._room)
        return self._room[:n_bytes]

    def decompress(self, payload: memoryview, out: memoryview) -> None:
        """Decompress into `out`, straight."""
        n_bytes = self._decompressor.stream_reader(payload).readinto(out)
        if n_bytes != len(out):
            raise StoreError(f"zstd gave {n_bytes} bytes of {len(out)}")


class FilePerChunk:
    """Every chunk a file of its own, written beside and renamed, read through the page cache: what most caches do."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, number: int) -> Path:
        """Where chunk `number` is: 256 folders."""
        return self._folder / f"{number & 0xFF:02x}" / f"{number:08x}.bin"

    def write(self, number: int, chunk: memoryview) -> None:
        """Write one; in the page cache afterwards."""
        path = self.path(number)
        path.parent.mkdir(exist_ok=True)
        beside = path.with_suffix(".tmp")
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            if os.write(descriptor, chunk) != len(chunk):
                raise StoreError(f"{beside}: a write came back short; is the disk full?")
        finally:
            os.close(descriptor)
        beside.replace(path)

    def read(self, number: int, out: memoryview) -> None:
        """Read one into `out`, filling it."""
        path = self.path(number)
        descriptor = os.open(path, os.O_RDONLY)
        try:
            if os.readv(descriptor, [out]) != len(out):
                raise StoreError(f"{path}: a read came back short")
        finally:
            os.close(descriptor)


class VllmFs:
    """vLLM's own disk tier, by the two functions that do its reading and writing. `open` where vLLM is installed."""

    def __init__(self, io: Any, folder: Path) -> None:
        self._io = io
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._direct = bool(io.probe_o_direct(str(folder)))  # it asks once at start and goes by the answer, so do we

    @classmethod
    def open(cls, folder: Path) -> VllmFs | None:
        """The tier over `folder`, or None where there is no vLLM, or one whose tier has other functions."""
        try:
            from vllm.v1.kv_offload.tiering.fs import io  # noqa: PLC0415 - an engine is never a requirement
        except ImportError:
            return None
        return cls(io, folder) if all(hasattr(io, name) for name in ("batch_load_block", "probe_o_direct")) else None

    def path(self, number: int) -> str:
        """Where chunk `number` is, two folders deep as the tier has it."""
        return str(self._folder / f"{number & 0xFF:03x}" / f"{number >> 8 & 0xFF:02x}_g0" / f"{number:016x}.bin")

    def store(self, numbers: Sequence[int], pool: memoryview, chunk_bytes: int) -> None:
        """Write chunks `numbers` from `pool`, where they lie one after the other from the start. Page-aligned."""
        self._io.batch_store_block(
            [self.path(n) for n in numbers], pool, _rows(numbers, chunk_bytes), chunk_bytes, self._direct
        )

    def load(self, numbers: Sequence[int], pool: memoryview, chunk_bytes: int) -> None:
        """Read chunks `numbers` into `pool`, one after the other from the start. Page-aligned."""
        self._io.batch_load_block(
            [self.path(n) for n in numbers], pool, _rows(numbers, chunk_bytes), chunk_bytes, self._direct
        )


def _rows(numbers: Sequence[int], chunk_bytes: int) -> list[int]:
    return [row * chunk_bytes for row in range(len(numbers))]


def in_order(step: Callable[[int], object], n: int) -> Callable[[], None]:
    """Work: `step` for 0 to n - 1."""

    def run() -> None:
        for number in range(n):
            step(number)

    return run
