"""Unbounded and Optimal: what no policy can beat, at any size and at a given one.

Optimal is Belady's rule with bypass (L. A. Belady, A study of replacement algorithms for virtual-storage computers, IBM
Systems Journal 5(2), 1966): what is needed again farthest in the future leaves first, of one request's blocks the
deeper. Blocks of a chain are needed together or a head without its tail, so what stays is closed under prefixes and the
rule is exact for blocks of equal size. It knows the future, so the trace is noted in a temporary file, 8 bytes per
block, which one pass from the end turns into next uses.
"""

from __future__ import annotations

import heapq
import tempfile
from array import array
from collections.abc import Iterator
from types import TracebackType
from typing import Final, Self

from kvtier.sim.tally import Tally
from kvtier.sim.trace import Request
from kvtier.types import ChunkKey

_DEPTH_BITS: Final = 24  # a use is a number: which request, then how deep in it
_NEVER: Final = -1
_INT_BYTES: Final = array("q").itemsize
_HEAD_INTS: Final = 3
_IN_MEMORY_BYTES: Final = 32 << 20


class Unbounded:
    """A tier that forgets nothing; satisfies `Simulator`."""

    def __init__(self, tally: Tally, *, keep_partial: bool) -> None:
        """Count into `tally`. Without `keep_partial` the partial tail of a prompt is never kept."""
        self.tally = tally
        self._keep_partial = keep_partial
        self._seen: set[ChunkKey] = set()

    @property
    def n_blocks(self) -> int:
        """Blocks it holds."""
        return len(self._seen)

    def request(self, request: Request) -> None:
        """Replay one request."""
        keys = request.keys if self._keep_partial else request.keys[: request.n_whole]
        seen = self._seen
        n_hit = len(keys)
        for i, key in enumerate(keys):
            if key not in seen:
                n_hit = i
                seen.update(keys)
                break
        self.tally.count(request.n_tokens, len(request.keys), n_hit, 0)


class Future:
    """The uses of all blocks of a trace: noted in trace order, then read back, each with the next use of its block.

    The file holds, per request: blocks noted, tokens, blocks asked, the blocks' numbers or next uses, blocks noted.
    """

    def __init__(self, *, keep_partial: bool) -> None:
        """Note whole blocks, and partial tails if `keep_partial`."""
        self._keep_partial = keep_partial
        self._file = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY_BYTES)  # noqa: SIM115 closed by __exit__
        self._numbers: dict[ChunkKey, int] = {}
        self._n_requests = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def note(self, request: Request) -> None:
        """Note the next request."""
        keys = request.keys if self._keep_partial else request.keys[: request.n_whole]
        numbers = self._numbers
        record = array("q", (len(keys), request.n_tokens, len(request.keys)))
        record.extend([numbers.setdefault(key, len(numbers)) for key in keys])
        record.append(len(keys))
        self._file.write(record.tobytes())
        self._n_requests += 1

    def close(self) -> None:
        """All requests are noted: turn block numbers into next uses, from the end to the beginning."""
        next_use = array("q", [_NEVER]) * len(self._numbers)
        self._numbers.clear()
        end = self._file.seek(0, 2)
        for index in range(self._n_requests - 1, -1, -1):
            (n_noted,) = self._read(end - _INT_BYTES, 1)
            first = end - _INT_BYTES * (n_noted + 1)
            uses = self._read(first, n_noted)
            for depth in range(n_noted - 1, -1, -1):
                number = uses[depth]
                uses[depth] = next_use[number]
                next_use[number] = index << _DEPTH_BITS | depth
            self._file.seek(first)
            self._file.write(uses.tobytes())
            end = first - _HEAD_INTS * _INT_BYTES

    def requests(self) -> Iterator[tuple[int, int, array[int]]]:
        """For each request: tokens, blocks asked, and the next use of each of its noted blocks, or -1."""
        at = 0
        for _ in range(self._n_requests):
            n_noted, n_tokens, n_asked = self._read(at, _HEAD_INTS)
            yield n_tokens, n_asked, self._read(at + _HEAD_INTS * _INT_BYTES, n_noted)
            at += (_HEAD_INTS + n_noted + 1) * _INT_BYTES

    def _read(self, first_byte: int, n: int) -> array[int]:
        self._file.seek(first_byte)
        numbers = array("q")
        numbers.frombytes(self._file.read(_INT_BYTES * n))
        return numbers


def optimal(future: Future, capacity: int, tally: Tally) -> None:
    """Replay a closed `future` in `capacity` blocks that always keep what is needed soonest; count into `tally`."""
    resident: set[int] = set()  # next uses of the blocks that stay; a use names its block
    farthest: list[int] = []  # heap of their negatives; past uses lie at its bottom until it is rebuilt
    for index, (n_tokens, n_asked, next_uses) in enumerate(future.requests()):
        use = index << _DEPTH_BITS
        n_hit = 0
        while n_hit < len(next_uses) and use + n_hit in resident:
            n_hit += 1
        tally.count(n_tokens, n_asked, n_hit, 0)
        for depth, next_use in enumerate(next_uses):
            resident.discard(use + depth)
            if next_use != _NEVER:
                resident.add(next_use)
                heapq.heappush(farthest, -next_use)
        while len(resident) > capacity:
            resident.remove(-heapq.heappop(farthest))
        if len(farthest) > 2 * len(resident) + 1024:
            farthest = [-next_use for next_use in resident]
            heapq.heapify(farthest)
