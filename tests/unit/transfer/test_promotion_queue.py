"""PromotionQueue: the order of its jobs, and how many of them a thread gets."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from kvtier.transfer.promotion_queue import PromotionQueue
from tests.rigs.mover import PATIENCE_S


def queue_of(jobs: str, *, n_threads: int, most: int) -> PromotionQueue:
    queue = PromotionQueue(n_threads, most)
    for job in jobs:
        queue.put(job)  # type: ignore[arg-type]
    return queue


def test_jobs_are_taken_in_order_and_no_more_at_once_than_was_said():
    queue = queue_of("abcdefg", n_threads=1, most=3)
    assert [queue.take() for _ in range(3)] == [["a", "b", "c"], ["d", "e", "f"], ["g"]]


@pytest.mark.parametrize(
    ("jobs", "taken"),
    [("a", ["a"]), ("abc", ["a", "b", "c"]), ("abcdefgh", ["abcd", "ef", "g", "h"]), ("abcdefghijkl", ["abcd"])],
)
def test_a_thread_leaves_the_others_their_share(jobs: str, taken: list[str]):
    queue = queue_of(jobs, n_threads=2, most=4)
    assert ["".join(queue.take()) for _ in taken] == taken  # type: ignore[arg-type]


def test_whoever_finds_nothing_waits_for_a_job():
    queue = PromotionQueue(1, 4)
    with ThreadPoolExecutor(1) as thread:
        taken = thread.submit(queue.take)
        queue.put("a")  # type: ignore[arg-type]
        assert taken.result(PATIENCE_S) == ["a"]


def test_closing_ends_all_threads_and_leaves_what_was_not_begun():
    queue = queue_of("abc", n_threads=3, most=1)
    with ThreadPoolExecutor(3) as threads:
        assert queue.take() == ["a"]
        queue.close()
        assert [end.result(PATIENCE_S) for end in [threads.submit(queue.take) for _ in range(3)]] == [[]] * 3
