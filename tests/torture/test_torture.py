"""The short form of `make torture`: every scenario, a fraction of its faults."""

import time
from pathlib import Path

import pytest

from tests.torture import soak
from tests.torture.report import as_table
from tests.torture.scenario import Setting
from tests.torture.scenarios import SCENARIOS

SEED = 20261121


@pytest.mark.parametrize("name", [name for name in SCENARIOS if name != "server"])
def test_no_fault_breaks_a_promise(name: str, tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    rows = list(SCENARIOS[name](Setting(SEED, tmp_path, short=True)))
    print(as_table(rows))
    assert [promise for row in rows for promise in row.violations] == []
    assert any(row.injected or row.requests for row in rows)


def test_some_seconds_of_the_soak_break_no_promise(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    rows = soak.run(Setting(SEED, tmp_path, short=True), time.monotonic() + 5.0, max_episodes=8)
    print(as_table(rows))
    assert [promise for row in rows for promise in row.violations] == []
    assert rows[0].requests > 100
