"""Measuring this machine: real bytes, nothing left behind, and no measurement of memory that calls itself a disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvtier.errors import ConfigError
from kvtier.machine import DiskSpace
from kvtier.planning.probe import BLOCK_BYTES, probe_copy, probe_disk

HERE = Path(__file__).parent  # the checkout is on a disk more often than /tmp


def direct(folder: Path) -> bool:
    try:
        probe_disk(folder, lambda what, part: None, file_bytes=BLOCK_BYTES)
    except ConfigError:
        return False
    return True


@pytest.mark.skipif(not direct(HERE), reason="no direct I/O under the checkout")
def test_a_disk_is_measured_with_progress_and_nothing_stays():
    before, said = set(HERE.iterdir()), []
    write_gbps, read_gbps = probe_disk(HERE, lambda what, part: said.append((what, part)), file_bytes=8 * BLOCK_BYTES)
    assert 0.001 < write_gbps < 1000
    assert 0.001 < read_gbps < 1000
    assert set(HERE.iterdir()) == before
    assert {what for what, part in said if part == 1.0} == {"writing", "reading"}


def test_memory_is_measured():
    assert 0.05 < probe_copy(lambda what, part: None) < 10_000


@pytest.mark.parametrize("name", ["gone", "file"])
def test_a_place_that_cannot_be_measured_is_named_with_the_remedy(tmp_path, name):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError) as error:
        probe_disk(tmp_path / name, lambda what, part: None)
    assert str(error.value).startswith(f"--probe {tmp_path / name}: ")
    assert "name a" in str(error.value)


@pytest.mark.skipif(not DiskSpace.at(Path("/dev/shm")).is_memory, reason="/dev/shm is no tmpfs")
def test_memory_is_not_taken_for_a_disk():
    with pytest.raises(ConfigError, match=r"that is memory \(tmpfs\), not a disk"):
        probe_disk(Path("/dev/shm"), lambda what, part: None)


def test_a_full_disk_is_not_filled(tmp_path):
    with pytest.raises(ConfigError, match=r"MiB free there|that is memory"):
        probe_disk(tmp_path, lambda what, part: None, file_bytes=1 << 50)
