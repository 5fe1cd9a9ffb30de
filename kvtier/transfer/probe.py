"""LoadProbe: frames of a store just opened in, how fast chunks come up from it out. Once, beside the engine's start.

On as many threads as promote, of which as many decode, but a frame at a time and into memory of its own: reads and
verifies a sample of what is stored, spread over all of it, so that as much of the sample is in the page cache as of the
rest. The quick quarter tells the speed: the others were slowed down by an engine that is starting, or by their first
touch of memory. A disk that is slow is slow for all of them.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING

from kvtier.codec.frame import open_into
from kvtier.codec.guard import PLAIN

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvtier.codec.guard import Guard
    from kvtier.residency import Frame
    from kvtier.store.base import Store

PROBE_BYTES = 64 << 20
"""Chunk bytes it brings up at most, and no fewer than one chunk for each thread."""

PROBE_S = 0.5
"""No read begins later than this after the first."""

STOP_TIMEOUT_S = 5.0


class LoadProbe:
    """Owns its threads. `start` once, `stop` before the store is closed."""

    def __init__(
        self,
        store: Store,
        frames: list[Frame],
        chunk_bytes: int,
        *,
        guard: Guard = PLAIN,
        n_threads: int,
        n_processors: int,
        tell: Callable[[float], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Bring up `frames` with `n_threads`, of which `n_processors` are verifying and decoding at a time.

        `tell` gets bytes per second, from one of the threads, unless nothing could be read.
        """
        self._store = store
        self._frames = deque(frames)
        self._chunk_bytes = chunk_bytes
        self._guard = guard
        self._tell = tell
        self._clock = clock
        self._lock = threading.Lock()
        self._took_s: list[float] = []  # of whole chunks
        self._opening_s: list[float] = []  # of that
        self._n_opening = min(n_threads, n_processors)
        self._n_running = n_threads
        self._began_s = 0.0
        self._stopping = False
        self._threads = [
            threading.Thread(target=self._run, name=f"kvtier-probe-{i}", daemon=True) for i in range(n_threads)
        ]

    def start(self) -> None:
        """Begin; returns at once."""
        if not self._frames:
            self._threads.clear()
            return
        self._began_s = self._clock()
        for thread in self._threads:
            thread.start()

    def stop(self) -> bool:
        """End after the frame each thread is at; False if one is stuck in the store, which then must not be closed."""
        self._stopping = True
        for thread in self._threads:
            thread.join(STOP_TIMEOUT_S)
        return not any(thread.is_alive() for thread in self._threads)

    def _run(self) -> None:
        out = memoryview(bytearray(self._chunk_bytes))
        took_s: list[float] = []
        opening_s: list[float] = []
        while not self._stopping and (reads_s := self._clock()) - self._began_s < PROBE_S:
            try:
                frame = self._frames.popleft()
            except IndexError:
                break
            try:
                with self._store.read(frame.shard, frame.key) as stored:
                    if stored is None:
                        continue
                    read_s = self._clock()
                    open_into(stored, out, key=frame.key, guard=self._guard)
                    opened_s = self._clock()
            except Exception:  # noqa: BLE001, S112 - what cannot be read is for a promotion to find out and to report
                continue
            took_s.append(opened_s - reads_s)
            opening_s.append(opened_s - read_s)
        with self._lock:
            self._took_s += took_s
            self._opening_s += opening_s
            self._n_running -= 1
            if not self._n_running and self._took_s and not self._stopping:
                chunk_s = max(_quick(self._took_s) / len(self._threads), _quick(self._opening_s) / self._n_opening)
                if chunk_s > 0:
                    self._tell(self._chunk_bytes / chunk_s)


def _quick(took_s: list[float]) -> float:
    return sorted(took_s)[len(took_s) // 4]
