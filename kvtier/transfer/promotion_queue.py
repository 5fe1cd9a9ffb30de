"""PromotionQueue: what promotion threads take their work from, and how many of them may be at it."""

from __future__ import annotations

import threading
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kvtier.residency import Promotion


class PromotionQueue:
    """Jobs in the order in which they came, for `n_at_work` threads and one more for each that waits for a disk.

    More threads than that are only in each other's way, and in that of the engine's scheduler thread: each that sleeps
    and wakes is owed processor time, which Linux takes from whoever shares a processor with it (ADR 0004).
    """

    def __init__(self, n_at_work: int) -> None:
        self._n_free = n_at_work  # below zero while threads that waited for a disk are back at work
        self._jobs: deque[Promotion] = deque()
        self._changed = threading.Condition(threading.Lock())
        self._closed = False

    def put(self, job: Promotion) -> None:
        """Any thread; never blocks."""
        with self._changed:
            self._jobs.append(job)
            if self._n_free > 0:
                self._changed.notify()

    def jobs(self) -> Iterator[Promotion]:
        """For one of the threads: its next job, once that may be worked at. It is done when the next is asked for.

        Ends when the queue is closed; what is in it then stays there.
        """
        n_mine = 0
        while True:
            with self._changed:
                self._n_free += n_mine
                while not self._closed and not (self._jobs and self._n_free > 0):
                    self._changed.wait()
                if self._closed:
                    return
                job = self._jobs.popleft()
                self._n_free -= 1
                n_mine = 1
            yield job

    @contextmanager
    def at_disk(self) -> Iterator[None]:
        """The calling thread, which has a job, waits for a disk meanwhile: another one may work in its place."""
        with self._changed:
            self._n_free += 1
            if self._jobs:
                self._changed.notify()
        try:
            yield
        finally:
            with self._changed:
                self._n_free -= 1

    def close(self) -> None:
        """No thread gets a job any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
