"""PromotionQueue: the order of its jobs, and how many threads may be at them."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from kvtier.transfer.promotion_queue import PromotionQueue
from tests.rigs.mover import PATIENCE_S, until


class Threads:
    """Three of them, which tell what they were given and keep it until they are told to do something with it."""

    def __init__(self, queue: PromotionQueue) -> None:
        self.queue = queue
        self.begun: list[object] = []
        self._steps: dict[object, list[str]] = {}
        self._told = threading.Condition()
        self._pool = ThreadPoolExecutor(3)
        self._ends = [self._pool.submit(self._run) for _ in range(3)]

    def _run(self) -> None:
        for job in self.queue.jobs():
            self.begun.append(job)
            while self._next_step(job) == "wait for the disk":
                self.queue.give_place()

    def _next_step(self, job: object) -> str:
        with self._told:
            assert self._told.wait_for(lambda: self._steps.get(job), PATIENCE_S)
            return self._steps[job].pop(0)

    def tell(self, job: object, step: str) -> None:
        with self._told:
            self._steps.setdefault(job, []).append(step)
            self._told.notify_all()

    def ended(self) -> bool:
        return all(end.done() and end.exception() is None for end in self._ends)

    def stop(self) -> None:
        self.queue.close(3)
        for job in "abcd":
            self.tell(job, "end")
        self._pool.shutdown()


@pytest.fixture
def queue() -> PromotionQueue:
    return PromotionQueue(1)


@pytest.fixture
def idle_threads(queue: PromotionQueue) -> Iterator[Threads]:
    threads = Threads(queue)
    yield threads
    threads.stop()


@pytest.fixture
def threads(idle_threads: Threads) -> Threads:
    for job in "abcd":
        idle_threads.queue.put(job)  # type: ignore[arg-type]
    return idle_threads


def stays(condition: Callable[[], bool]) -> bool:
    """Whether it still holds after the threads have had time to change it."""
    return not threading.Event().wait(0.05) and condition()


def test_jobs_are_begun_in_order_and_only_so_many_at_once(threads: Threads):
    until(lambda: threads.begun == ["a"])
    assert stays(lambda: threads.begun == ["a"])
    threads.tell("a", "end")
    until(lambda: threads.begun == ["a", "b"])
    assert stays(lambda: threads.begun == ["a", "b"])


def test_while_one_waits_for_the_disk_another_works_in_its_place(threads: Threads):
    until(lambda: threads.begun == ["a"])
    threads.tell("a", "wait for the disk")
    until(lambda: threads.begun == ["a", "b"])
    assert stays(lambda: threads.begun == ["a", "b"])


def test_who_has_waited_for_the_disk_takes_no_job_until_there_is_a_place(threads: Threads):
    until(lambda: threads.begun == ["a"])
    threads.tell("a", "wait for the disk")
    until(lambda: threads.begun == ["a", "b"])
    threads.tell("a", "end")
    assert stays(lambda: threads.begun == ["a", "b"])
    threads.tell("b", "end")
    until(lambda: threads.begun == ["a", "b", "c"])


def test_who_waits_for_the_disk_twice_gives_one_place(threads: Threads):
    until(lambda: threads.begun == ["a"])
    for _ in range(2):
        threads.tell("a", "wait for the disk")
    until(lambda: threads.begun == ["a", "b"])
    assert stays(lambda: threads.begun == ["a", "b"])


def test_a_job_that_comes_while_all_wait_for_the_disk_is_begun(idle_threads: Threads):
    idle_threads.queue.put("a")  # type: ignore[arg-type]
    until(lambda: idle_threads.begun == ["a"])
    idle_threads.tell("a", "wait for the disk")
    until(lambda: not idle_threads._steps["a"])
    idle_threads.queue.put("b")  # type: ignore[arg-type]
    until(lambda: idle_threads.begun == ["a", "b"])


def test_closing_ends_the_threads_and_leaves_what_was_not_begun(queue: PromotionQueue, threads: Threads):
    until(lambda: threads.begun == ["a"])
    queue.close(3)
    threads.tell("a", "end")
    until(threads.ended)
    assert threads.begun == ["a"]
