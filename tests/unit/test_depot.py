"""LocalDepot: what the plan and its process make of its threads."""

from dataclasses import replace
from pathlib import Path

import pytest

from kvtier.bench.traffic import plan_for
from kvtier.depot import LocalDepot
from kvtier.transfer.slots import Slots

CHUNK_BYTES = 64 << 10


@pytest.mark.parametrize(
    ("steps_back", "runs_idle", "yields"), [(True, True, True), (True, False, False), (False, True, False)]
)
def test_only_threads_that_run_idle_yield_after_each_chunk(
    tmp_path: Path, *, steps_back: bool, runs_idle: bool, yields: bool
):
    plan = replace(plan_for(tmp_path / "store", 8, CHUNK_BYTES, "bfloat16", 1), runs_idle=runs_idle)
    depot = LocalDepot(
        plan, Slots(memoryview(bytearray(CHUNK_BYTES)), CHUNK_BYTES), steps_back=steps_back, report=lambda _: None
    )
    assert depot._mover._yields is yields
    assert depot.stop()
