"""PromotionQueue: what promotion threads take their work from, and how many of them may be at it."""

from __future__ import annotations

import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kvtier.residency import Promotion


class PromotionQueue:
    """Jobs in the order in which they came, for threads that have one of `n_places`.

    A thread that is about to wait for a disk gives its place to another. More threads than that are only in each
    other's way, and in that of the engine's scheduler thread: each that sleeps and wakes is owed processor time, which
    Linux takes from whoever shares a processor with it (ADR 0004).
    """

    def __init__(self, n_places: int) -> None:
        self._jobs: SimpleQueue[Promotion | None] = SimpleQueue()
        self._places: SimpleQueue[None] = SimpleQueue()
        self._thread = threading.local()
        self._closed = False
        for _ in range(n_places):
            self._places.put(None)

    def put(self, job: Promotion) -> None:
        """Any thread, the scheduler's too: takes no lock."""
        self._jobs.put(job)

    def jobs(self) -> Iterator[Promotion]:
        """For one of the threads: its next job, when there is one and a place for it. Ends when the queue is closed."""
        while True:
            self._places.get()
            self._thread.has_place = True
            while self._thread.has_place:
                job = self._jobs.get()
                if job is None or self._closed:
                    return
                yield job

    def give_place(self) -> None:
        """Called by a thread that will wait for a disk now. It goes on with its job, and gets a place for the next."""
        if self._thread.has_place:
            self._thread.has_place = False
            self._places.put(None)

    def close(self, n_threads: int) -> None:
        """No job is begun any more, and so many threads end."""
        self._closed = True
        for _ in range(n_threads):
            self._places.put(None)
            self._jobs.put(None)
