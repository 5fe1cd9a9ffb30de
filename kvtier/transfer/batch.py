"""Batch: one call's pages, handled by a few threads at a time; nothing touches the caller's memory once it has ended.

A step may block for ever in what leads up to the caller's memory, as reading from a disk may. What it does with that
memory it does under a claim, and a batch that has ended gives none: so a call can end on time and be sure.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from queue import SimpleQueue
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_Given = TypeVar("_Given")
_Made = TypeVar("_Made")


class Batch:
    """Items 0 to n-1, begun in order, whatever becomes of those before. One thread calls `join`, once.

    After that `n_begun` stays what it is: the steps of so many items have run, or are still running.
    """

    def __init__(self, n: int, step: Callable[[Batch, int], bool]) -> None:
        """`step(batch, i)` handles item `i`, on whichever thread, and says whether that worked; it must not raise."""
        self._step = step
        self.n_begun = 0
        self._done = bytearray(n)
        self._n_good = n  # items in front of the first that failed
        self._n_claims = 0
        self._ended = n == 0
        self._changed = threading.Condition(threading.Lock())

    def work(self) -> None:
        """Handle items until there are no more. Any thread, also several at once."""
        i, worked = -1, True
        while True:
            with self._changed:
                if i >= 0:
                    self._done[i] = True
                    if not worked:
                        self._n_good = min(self._n_good, i)
                    if self._is_through():
                        self._changed.notify_all()
                if self._ended or self.n_begun == len(self._done):
                    return
                i = self.n_begun
                self.n_begun += 1
            worked = self._step(self, i)

    @contextmanager
    def claim(self) -> Iterator[bool]:
        """Whether the caller's memory may be touched, until the block ends. Nothing in the block may wait."""
        with self._changed:
            mine = not self._ended
            self._n_claims += mine
        try:
            yield mine
        finally:
            if mine:
                with self._changed:
                    self._n_claims -= 1
                    if self._ended:
                        self._changed.notify_all()

    def join(self, timeout_s: float) -> int:
        """Wait until all is done, or time is up; end the batch.

        Returns how many items worked from the first on. Takes as long as the claims that were out then.
        """
        with self._changed:
            self._changed.wait_for(self._is_through, max(0.0, timeout_s))
            self._ended = True
            self._changed.wait_for(lambda: not self._n_claims)
            first_open = self._done.find(0)
            return self._n_good if first_open < 0 else min(first_open, self._n_good)

    def _is_through(self) -> bool:
        return self._done.find(0) < 0


class Workers:
    """Threads that work on the batches they are given. `stop` once."""

    def __init__(self, n: int, name: str, *, prepare: Callable[[], None] = lambda: None) -> None:
        """Start `n` threads; each calls `prepare` first."""
        self._batches: SimpleQueue[Batch | None] = SimpleQueue()
        self._prepare = prepare
        self.n = n
        self.threads = [threading.Thread(target=self._loop, name=f"{name}-{i}", daemon=True) for i in range(n)]
        for thread in self.threads:
            thread.start()

    def give(self, batch: Batch, n_items: int) -> None:
        """Have the threads that are free, or come free, work on `batch`. Never blocks."""
        for _ in range(min(self.n, n_items)):
            self._batches.put(batch)

    def stop(self) -> None:
        """End the threads after what each is at, without waiting for them."""
        for _ in range(self.n):
            self._batches.put(None)

    def _loop(self) -> None:
        self._prepare()
        while (batch := self._batches.get()) is not None:
            batch.work()


def in_parallel(workers: Workers, step: Callable[..., _Made], items: Sequence[tuple[_Given, ...]]) -> list[_Made]:
    """`step(*item)` of each, in the order of `items`. The calling thread works too, and waits for the last.

    What a step raises is raised here when all have ended.
    """
    made: dict[int, _Made] = {}
    errors: list[Exception] = []

    def one(_: Batch, i: int) -> bool:
        try:
            made[i] = step(*items[i])
        except Exception as error:  # noqa: BLE001 - raised again below
            errors.append(error)
        return True

    batch = Batch(len(items), one)
    workers.give(batch, len(items) - 1)
    batch.work()
    batch.join(threading.TIMEOUT_MAX)
    if errors:
        raise errors[0]
    return [made[i] for i in range(len(items))]
