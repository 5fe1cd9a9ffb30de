"""PromotionQueue: what promotion threads take their work from, several jobs at a time."""

from __future__ import annotations

import queue
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvtier.residency import Promotion


class PromotionQueue:
    """Jobs in the order in which they came. Takes no lock of its own; any thread."""

    def __init__(self, n_threads: int, most: int) -> None:
        """For so many threads, which take `most` jobs at a time."""
        self._jobs: queue.SimpleQueue[Promotion | None] = queue.SimpleQueue()
        self._n_threads = n_threads
        self._most = most
        self._closed = False

    def put(self, job: Promotion) -> None:
        """Never blocks."""
        self._jobs.put(job)

    def take(self) -> list[Promotion]:
        """The next jobs, once there are any: as many as leave the other threads their share. [] once it is closed."""
        jobs: list[Promotion] = []
        n = 1
        while len(jobs) < n:
            try:
                job = self._jobs.get(block=not jobs)
            except queue.Empty:
                break
            if job is None or self._closed:
                return []
            jobs.append(job)
            if len(jobs) == 1:
                n = max(1, min(self._most, (1 + self._jobs.qsize()) // self._n_threads))
        return jobs

    def close(self) -> None:
        """No job is begun any more, and all threads end."""
        self._closed = True
        for _ in range(self._n_threads):
            self._jobs.put(None)
