"""Batch: what a call waits for, and what can no longer touch its memory when it has ended."""

import threading
from collections.abc import Iterator

import pytest

from kvtier.transfer.batch import Batch, Workers, in_parallel

SOON_S, PATIENCE_S = 0.02, 20.0


@pytest.fixture
def workers() -> Iterator[Workers]:
    threads = Workers(3, "test")
    yield threads
    threads.stop()


def test_every_item_is_handled_once_whoever_comes(workers: Workers) -> None:
    handled: list[int] = []

    def step(_: Batch, i: int) -> bool:
        handled.append(i)
        return True

    batch = Batch(100, step)
    workers.give(batch, 100)
    batch.work()
    assert batch.join(PATIENCE_S) == 100
    assert sorted(handled) == list(range(100))


def test_what_follows_a_failure_is_handled_and_does_not_count() -> None:
    batch = Batch(10, lambda _, i: i not in (3, 5))
    batch.work()
    assert batch.join(0.0) == 3
    assert batch.n_begun == 10


def test_a_step_that_hangs_ends_the_call_on_time_and_gets_no_claim_later(workers: Workers) -> None:
    free, refused = threading.Event(), threading.Event()

    def step(batch: Batch, i: int) -> bool:
        if i == 1:
            free.wait(PATIENCE_S)
        with batch.claim() as mine:
            if not mine:
                refused.set()
            return mine

    batch = Batch(5, step)
    workers.give(batch, 5)
    assert batch.join(SOON_S) == 1
    free.set()
    assert refused.wait(PATIENCE_S)


def test_the_end_waits_for_claims_that_are_out(workers: Workers) -> None:
    claimed, free, done = threading.Event(), threading.Event(), threading.Event()

    def step(batch: Batch, _: int) -> bool:
        with batch.claim():
            claimed.set()
            free.wait(PATIENCE_S)
            done.set()
        return True

    batch = Batch(1, step)
    workers.give(batch, 1)
    assert claimed.wait(PATIENCE_S)
    threading.Timer(SOON_S, free.set).start()
    batch.join(0.0)
    assert done.is_set()


def test_nothing_to_do_is_done() -> None:
    assert Batch(0, lambda *_: True).join(0.0) == 0


def test_what_is_made_in_parallel_comes_in_the_order_of_what_was_given(workers: Workers) -> None:
    assert in_parallel(workers, pow, [(n, 2) for n in range(50)]) == [n * n for n in range(50)]
    assert in_parallel(workers, pow, []) == []


def test_an_error_of_a_step_is_raised_when_all_steps_have_ended(workers: Workers) -> None:
    ended: list[int] = []

    def step(n: int) -> None:
        if n == 3:
            raise ValueError("the third")
        ended.append(n)

    with pytest.raises(ValueError, match="the third"):
        in_parallel(workers, step, [(n,) for n in range(10)])
    assert sorted(ended) == [0, 1, 2, 4, 5, 6, 7, 8, 9]
