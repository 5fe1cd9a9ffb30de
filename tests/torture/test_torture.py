"""The short form of `make torture`: every scenario, a fraction of its faults."""

from pathlib import Path

import pytest

from tests.torture.report import as_table
from tests.torture.scenario import Setting
from tests.torture.scenarios import SCENARIOS

SEED = 20261121


@pytest.mark.parametrize("name", SCENARIOS)
def test_no_fault_breaks_a_promise(name: str, tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    rows = list(SCENARIOS[name](Setting(SEED, tmp_path, short=True)))
    print(as_table(rows))
    assert [promise for row in rows for promise in row.violations] == []
    assert any(row.injected or row.requests for row in rows)
