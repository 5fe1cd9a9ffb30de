import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtier.errors import ConfigError, StoreError
from kvtier.store.manifest import (
    LOCK_FILE_BYTES,
    MANIFEST,
    MAX_SHARDS,
    MIN_CAPACITY_BYTES,
    Manifest,
    Plan,
    boot_id,
    check_capacity,
    plan_shards,
    read_manifest,
    shards_bytes,
    write_manifest,
)

MIB, GIB = 1 << 20, 1 << 30
NONE = Plan(0, 0)
SAMPLE = Manifest(map_bytes=GIB, capacity_bytes=3 * GIB, shards=(0, 2, 5), boot_id="b")
budgets = st.integers(MIN_CAPACITY_BYTES - 128 * 1024, 4 << 40)
targets = st.sampled_from([32 * MIB, GIB, 4 * GIB])


def test_a_manifest_reads_back_as_written(tmp_path: Path) -> None:
    write_manifest(tmp_path, SAMPLE)
    assert read_manifest(tmp_path) == SAMPLE


def test_there_is_none_in_an_empty_directory(tmp_path: Path) -> None:
    assert read_manifest(tmp_path) is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"null",
        b'{"format": 1}',
        b'{"format": "1", "map_bytes": 1, "capacity_bytes": 1, "shards": []}',
        b'{"format": 1, "map_bytes": -1, "capacity_bytes": 1, "shards": []}',
        b'{"format": 1, "map_bytes": 1, "capacity_bytes": 1, "shards": [10000]}',
        b'{"format": 1, "map_bytes": 1, "capacity_bytes": 1, "shards": ["../../etc/passwd"]}',
        b"[" * 60_000,
    ],
)
def test_what_cannot_be_understood_counts_as_none(content: bytes, tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_bytes(content)
    assert read_manifest(tmp_path) is None


def test_a_newer_format_is_refused_whatever_else_it_says(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text(json.dumps({"format": 2, "segments": {}}))
    with pytest.raises(StoreError, match="directory format 2, this build knows 1"):
        read_manifest(tmp_path)


def test_additions_to_a_format_are_ignored(tmp_path: Path) -> None:
    write_manifest(tmp_path, SAMPLE)
    content = json.loads((tmp_path / MANIFEST).read_text())
    (tmp_path / MANIFEST).write_text(json.dumps({**content, "note": "from a later minor release"}))
    assert read_manifest(tmp_path) == SAMPLE


def test_a_tiny_capacity_is_refused() -> None:
    check_capacity(MIN_CAPACITY_BYTES)
    with pytest.raises(ConfigError, match="at least 16 MiB"):
        check_capacity(MIN_CAPACITY_BYTES - 1)


@pytest.mark.parametrize(
    ("budget_bytes", "n_shards"),
    [(16 * MIB, 1), (GIB - 65536, 1), (2 * GIB - 65536, 2), (3 * GIB - 1, 3), (10 * GIB, 10), (1000 * GIB, MAX_SHARDS)],
)
def test_a_budget_of_about_n_targets_gives_n_shards(budget_bytes: int, n_shards: int) -> None:
    assert plan_shards(budget_bytes, GIB, NONE).n_shards == n_shards


@given(st.integers(GIB, 256 * GIB))
def test_a_shard_is_hardly_shorter_than_the_target_and_never_twice_as_long(budget_bytes: int) -> None:
    assert 0.94 * GIB < plan_shards(budget_bytes, GIB, NONE).map_bytes < 2 * GIB


@given(budgets, targets)
def test_a_plan_uses_nearly_all_of_the_budget_and_never_more(budget_bytes: int, target_bytes: int) -> None:
    plan = plan_shards(budget_bytes, target_bytes, NONE)
    used = shards_bytes(*plan)
    assert used <= budget_bytes
    assert budget_bytes - used < plan.n_shards * (64 * 1024 + LOCK_FILE_BYTES)
    assert plan.map_bytes % 65536 == 0


@given(budgets, budgets, targets)
def test_shards_that_fit_are_kept_and_never_shortened(before_bytes: int, budget_bytes: int, target_bytes: int) -> None:
    now = plan_shards(before_bytes, target_bytes, NONE)
    plan = plan_shards(budget_bytes, target_bytes, now)
    assert shards_bytes(*plan) <= budget_bytes
    fitting = min(now.n_shards, budget_bytes // shards_bytes(1, now.map_bytes))
    if fitting:
        assert plan.map_bytes >= now.map_bytes
        assert plan.n_shards >= fitting
    if budget_bytes >= before_bytes:
        assert plan.n_shards >= now.n_shards


@given(budgets, budgets, targets)
def test_planning_again_changes_nothing(before_bytes: int, budget_bytes: int, target_bytes: int) -> None:
    plan = plan_shards(budget_bytes, target_bytes, plan_shards(before_bytes, target_bytes, NONE))
    assert plan_shards(budget_bytes, target_bytes, plan) == plan


def test_the_boot_id_stays_the_same_while_the_machine_runs() -> None:
    assert boot_id() == boot_id()
