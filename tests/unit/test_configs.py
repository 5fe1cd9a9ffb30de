"""Every file in configs/ loads, fits the machine it is meant for, and is explained to an operator."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kvtier.config import load
from kvtier.sizing import DiskSpace, Machine, check_host_fits, disk_bytes, host_bytes

FOLDER = Path(__file__).parents[2] / "configs"
FILES = sorted(FOLDER.glob("*.yaml"))

GIB = 1 << 30


def machine(ram_gib):
    """One with nothing else on it and /dev/shm as Linux sets it up: half of RAM."""
    return Machine(
        ram_bytes=ram_gib * GIB,
        ram_available_bytes=int(ram_gib * 0.92 * GIB),
        shm_bytes=ram_gib * GIB // 2,
        shm_free_bytes=ram_gib * GIB // 2,
        memlock_bytes=None,
        has_gpu=True,
    )


def space(path, total_gib):
    total = total_gib * GIB
    return DiskSpace(
        path=path, total_bytes=total, free_bytes=int(total * 0.8), held_bytes=0, fs_type="ext4", writable=True
    )


# RAM and disk in GiB of the smallest machine each file is meant for.
MEANT_FOR = {
    "demo.yaml": (4, 10),
    "laptop.yaml": (16, 100),
    "single-gpu-24gb.yaml": (64, 500),
    "h100-h200.yaml": (1024, 4000),
    "multi-engine.yaml": (512, 2000),
}


def test_the_files_are_these():
    assert {path.name for path in FILES} == set(MEANT_FOR)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_fits_the_smallest_machine_it_is_meant_for(path):
    ram_gib, disk_gib = MEANT_FOR[path.name]
    config = load(path)
    host = host_bytes(config, machine(ram_gib))
    disk = disk_bytes(config, space(config.disk.path, disk_gib))
    check_host_fits(config, machine(ram_gib))
    assert 0 < host < disk


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_begins_with_what_it_is_for(path):
    assert path.read_text().startswith("# ")


def test_three_engines_with_the_multi_engine_file_fit_one_machine():
    config = load(FOLDER / "multi-engine.yaml")
    host, disk = machine(512), space(config.disk.path, 2000)
    for _ in range(3):
        check_host_fits(config, host)
        taken = host_bytes(config, host)
        host = replace(
            host,
            ram_available_bytes=host.ram_available_bytes - taken,
            shm_free_bytes=host.shm_free_bytes - taken,
        )
    assert min(host.ram_available_bytes, host.shm_free_bytes) > 0
    assert disk_bytes(config, disk) < disk.free_bytes


def test_the_demo_spills_because_its_host_tier_is_smaller_than_its_working_set():
    config = load(FOLDER / "demo.yaml")
    working_set = 20_000 * 23_040
    assert config.host.capacity.n_bytes < working_set < config.disk.capacity.n_bytes


def test_the_demo_keeps_its_disk_tier_beside_configs_and_not_in_it():
    assert load(FOLDER / "demo.yaml").disk.path == FOLDER.parent / ".kvtier-demo/disk"
