"""Tensor parallel ranks are processes of their own on one directory; under MLA one stores and all load."""

import multiprocessing
import time
from collections.abc import Iterator
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from tests.rigs.sglang import Rank, hashes

NAMES = [f"page {i}" for i in range(8)]
PATIENCE_S = 20.0


def other_rank(folder: Path, mla: bool, stored: Event, done: Event) -> None:
    """Rank 0 in its own process: stores, and keeps the directory open."""
    with pytest.MonkeyPatch.context() as patch:
        rank = Rank(folder, patch, tp_rank=0, tp_size=2, is_mla_model=mla)
        rank.store(NAMES)
        rank.settle()
        stored.set()
        done.wait(PATIENCE_S)
        rank.backend.close()


@pytest.fixture
def ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Rank]:
    """Rank 1, beside a rank 0 that has stored."""
    spawn = multiprocessing.get_context("spawn")
    stored, done = spawn.Event(), spawn.Event()
    process = spawn.Process(target=other_rank, args=(tmp_path / "disk", request.param, stored, done), daemon=True)
    process.start()
    rank = Rank(tmp_path / "disk", monkeypatch, tp_rank=1, tp_size=2, is_mla_model=request.param)
    assert stored.wait(PATIENCE_S)
    yield rank
    done.set()
    process.join(PATIENCE_S)
    rank.backend.close()


@pytest.mark.parametrize("ranks", [True], indirect=True, ids=["mla"])
def test_what_one_rank_stored_another_loads_where_all_hold_the_same(ranks: Rank) -> None:
    give_up_s = time.monotonic() + PATIENCE_S
    while ranks.backend.batch_exists(hashes(NAMES)) < len(NAMES):
        assert time.monotonic() < give_up_s
        time.sleep(0.05)
    assert ranks.load(NAMES) == NAMES


@pytest.mark.parametrize("ranks", [False], indirect=True, ids=["mha"])
def test_a_rank_does_not_take_the_heads_of_another_for_its_own(ranks: Rank) -> None:
    assert ranks.backend.batch_exists(hashes(NAMES)) == 0
    assert ranks.load(NAMES) == [None] * len(NAMES)
    assert ranks.store(NAMES[:2]) == [True, True]
    assert ranks.load(NAMES[:2]) == NAMES[:2]
