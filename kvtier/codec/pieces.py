"""Pieces: one chunk that lies in several places of the engine's memory -> codecs, and back, with no copy in between."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from kvtier.codec.base import Codec
from kvtier.codec.scratch import Scratch

Rows = npt.NDArray[np.uint8]

Segments = Sequence[tuple[int, int]]
"""A chunk in the engine's memory: addresses and lengths, in the order in which they make up the chunk."""


class Pieces:
    """The bytes at `segments`, in order. Whoever makes one sees to it that the memory outlives it.

    Pieces of one length at equal distances, as engines lay out layers, heads, keys and values, become the rows of one
    array: a codec goes over all of them in one call, whatever the layout.
    """

    __slots__ = ("blocks", "n_bytes", "odd")

    def __init__(self, segments: Segments) -> None:
        self.blocks: list[Rows] = [_rows(*grid) for grid in _grids([segment for segment in segments if segment[1]])]
        self.n_bytes = sum(block.size for block in self.blocks)
        self.odd = any(block.shape[-1] % 2 for block in self.blocks)
        """Whether a 16-bit value may lie in two pieces."""

    def __len__(self) -> int:
        return self.n_bytes

    def parts(self) -> Iterator[tuple[int, Rows]]:
        """Each block and where in the chunk it begins."""
        at = 0
        for block in self.blocks:
            yield at, block
            at += block.size

    def gather(self, out: memoryview) -> None:
        """Copy the chunk to `out`, of its length."""
        whole = np.frombuffer(out, dtype=np.uint8)
        for at, block in self.parts():
            np.copyto(whole[at : at + block.size].reshape(block.shape), block)

    def scatter(self, source: memoryview) -> None:
        """Copy `source`, of the chunk's length, to where the chunk lies."""
        whole = np.frombuffer(source, dtype=np.uint8)
        for at, block in self.parts():
            np.copyto(block, whole[at : at + block.size].reshape(block.shape))


Chunk = memoryview | Pieces


@runtime_checkable
class Piecewise(Codec, Protocol):
    """A codec that needs no chunk in one piece. Contracts as of the methods for whole chunks."""

    def encode_pieces(self, pieces: Pieces, out: memoryview) -> int:
        """As `encode_into`."""
        ...

    def decode_pieces(self, payload: memoryview, pieces: Pieces) -> None:
        """As `decode_into`."""
        ...


def encode_chunk(codec: Codec, chunk: Chunk, out: memoryview) -> int:
    """`codec.encode_into`, wherever the chunk lies."""
    if not isinstance(chunk, Pieces):
        return codec.encode_into(chunk, out)
    if isinstance(codec, Piecewise):
        return codec.encode_pieces(chunk, out)
    return codec.encode_into(gathered(chunk), out)


def decode_chunk(codec: Codec, payload: memoryview, out: Chunk) -> None:
    """`codec.decode_into`, wherever the chunk is to lie."""
    if not isinstance(out, Pieces):
        codec.decode_into(payload, out)
    elif isinstance(codec, Piecewise):
        codec.decode_pieces(payload, out)
    else:
        with scattered(out) as whole:
            codec.decode_into(payload, whole)


def in_rows(chunk: Chunk) -> memoryview | Rows | None:
    """Where the chunk lies, if that is one array of whole 16-bit values."""
    if isinstance(chunk, Pieces):
        return chunk.blocks[0] if len(chunk.blocks) == 1 and not chunk.odd else None
    return chunk if len(chunk) and not len(chunk) % 2 else None


def gathered(pieces: Pieces) -> memoryview:
    """A copy of the chunk in one piece, good until this thread's next call here."""
    whole = _scratch.room(len(pieces)).data
    pieces.gather(whole)
    return whole


@contextmanager
def scattered(pieces: Pieces) -> Iterator[memoryview]:
    """Memory in one piece, whose bytes are copied to where the chunk lies when the block has ended without an error."""
    whole = _scratch.room(len(pieces)).data
    yield whole
    pieces.scatter(whole)


class _Run(NamedTuple):
    """Pieces of one length at equal distances."""

    n: int
    distance: int
    n_bytes: int


def _grids(segments: Segments) -> Iterator[tuple[int, int, int, _Run]]:
    """Runs at equal distances: address of the first, how many, their distance, what each is.

    Keys and values of each of many layers are such: two pieces far apart, again and again a little further on.
    """
    runs = list(_runs(segments))
    i = 0
    while i < len(runs):
        address, run = runs[i]
        n, distance = 1, 0
        if i + 1 < len(runs) and runs[i + 1][0] > address:
            distance = runs[i + 1][0] - address
            while i + n < len(runs) and runs[i + n] == (address + n * distance, run):
                n += 1
        yield address, n, distance, run
        i += n


def _runs(segments: Segments) -> Iterator[tuple[int, _Run]]:
    i = 0
    while i < len(segments):
        address, n_bytes = segments[i]
        n, distance = 1, n_bytes
        if i + 1 < len(segments) and segments[i + 1][0] - address >= n_bytes:
            distance = segments[i + 1][0] - address
            while i + n < len(segments) and segments[i + n] == (address + n * distance, n_bytes):
                n += 1
        if n == 1:
            distance = n_bytes
        yield address, _Run(n, distance, n_bytes)
        i += n


def _rows(address: int, n: int, distance: int, run: _Run) -> Rows:
    length = (n - 1) * distance + (run.n - 1) * run.distance + run.n_bytes
    memory = memoryview((ctypes.c_ubyte * length).from_address(address)).cast("B")
    return np.ndarray((n, run.n, run.n_bytes), np.uint8, memory, 0, (distance, run.distance, 1))


_scratch = Scratch()
