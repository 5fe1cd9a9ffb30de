"""WriteBehind: frames just written -> the disk, soon; and out of the page cache, where that could not hold the store.

A frame that replaces one the page cache has is copied into memory that is there. One that replaces a frame the cache
has let go of needs fresh memory, and somebody else's has to be taken for it: several times the work of the copy. So
the pages of a large store go round in a small circle. docs/performance.md, "Churn", has the figures.
"""

from __future__ import annotations

import mmap
import threading
from collections import deque
from collections.abc import Sequence
from typing import Final, NamedTuple

from kvtier.machine import Machine
from kvtier.store.direct import PageReader

PAGE_CACHE_SHARE: Final = 0.25
"""Of the machine's memory: a store that may grow beyond it is not kept in the page cache. The host pool and the engine
have most of the rest."""

RECENT_BYTES: Final = 64 << 20
"""Of frames written to a large store stay in the page cache until the disk has had the time to take them."""


class Run(NamedTuple):
    """Bytes of a file that belong to one frame, in whole pages."""

    offset: int
    n_bytes: int


def fits_page_cache(capacity_bytes: int) -> bool:
    """Whether a store of so many bytes should stay in the page cache as far as the kernel likes. Reads /proc."""
    return capacity_bytes <= Machine.here().ram_bytes * PAGE_CACHE_SHARE


class WriteBehind:
    """What was written of a store's files and when it leaves the page cache. Any thread, several at a time."""

    def __init__(self, reader: PageReader, *, keep: bool, recent_bytes: int = RECENT_BYTES) -> None:
        """Frames in the files of `reader`. With `keep` they stay in the page cache for as long as the kernel likes."""
        self._reader = reader
        self._keep = keep
        self._recent_bytes = recent_bytes
        self._lock = threading.Lock()
        self._recent: deque[tuple[int, list[Run]]] = deque()
        self._n_recent_bytes = 0

    def wrote(self, file: int, runs: Sequence[Run]) -> None:
        """A write to `file` has ended that put frames at `runs`. Never raises.

        Waits for the disk only when that is `recent_bytes` behind: whoever writes faster than the disk is held here,
        and not with all of the machine's memory dirty.
        """
        self._reader.start_writeback(file)
        if self._keep:
            return
        for old_file, neighbours in self._outgrown(file, runs):
            # LMDB reads a frame's first page to free the others; from the disk that would take longer than the write.
            start, end = neighbours[0].offset + mmap.PAGESIZE, neighbours[-1].offset + neighbours[-1].n_bytes
            self._reader.drop(old_file, start, end - start)
            for run in neighbours[1:]:
                self._reader.fetch(old_file, run.offset, mmap.PAGESIZE)

    def _outgrown(self, file: int, runs: Sequence[Run]) -> list[tuple[int, list[Run]]]:
        """The oldest, which the newest leave no room for."""
        with self._lock:
            self._recent.extend((file, neighbours) for neighbours in _neighbours(runs))
            self._n_recent_bytes += sum(run.n_bytes for run in runs)
            outgrown = []
            while self._n_recent_bytes > self._recent_bytes:
                outgrown.append(self._recent.popleft())
                self._n_recent_bytes -= sum(run.n_bytes for run in outgrown[-1][1])
            return outgrown


def _neighbours(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs that follow one another without a gap, together.

    LMDB hands them to the kernel at once, which then keeps and drops their pages in pieces that know no frame.
    """
    together: list[list[Run]] = []
    for run in sorted(runs):
        if together and together[-1][-1].offset + together[-1][-1].n_bytes == run.offset:
            together[-1].append(run)
        else:
            together.append([run])
    return together
