"""The table of `kvtier check`, word for word. Run this file itself to write the golden files anew."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kvtier.cli.check_report import Report, examine
from kvtier.config import parse
from kvtier.sizing import DiskSpace, KvShape, Machine

GOLDEN = Path(__file__).parent / "check"
GIB = 1 << 30

SERVER = Machine(
    ram_bytes=512 * GIB,
    ram_available_bytes=480 * GIB,
    shm_bytes=256 * GIB,
    shm_free_bytes=256 * GIB,
    memlock_bytes=None,
    has_gpu=True,
)
CONTAINER = Machine(
    ram_bytes=16 * GIB,
    ram_available_bytes=15 * GIB,
    shm_bytes=64 << 20,
    shm_free_bytes=64 << 20,
    memlock_bytes=8 << 20,
    has_gpu=True,
)
NVME = DiskSpace(
    path=Path("/nvme/kvtier"),
    total_bytes=3500 * GIB,
    free_bytes=3000 * GIB,
    held_bytes=0,
    fs_type="xfs",
    writable=True,
)
LLAMA_8B = KvShape(kind="GQA", n_layers=32, n_heads=8, head_size=256, dtype="bfloat16")


def check(tree: dict[str, object], **given: object) -> Report:
    known: dict[str, object] = {"machine": SERVER, "disk": NVME, "shape": LLAMA_8B, "block_tokens": 16}
    known |= {"device_cache_bytes": None, "name": "kvtier.yaml", "config": parse(tree)}
    return examine(**(known | given))  # type: ignore[arg-type]


AUTO: dict[str, object] = {"disk": {"path": "/nvme/kvtier"}}
SIZED: dict[str, object] = {
    "host": {"capacity": "40%"},
    "disk": {"path": "/nvme/kvtier", "capacity": "2TiB", "write": "evict_only", "codec": "raw"},
    "chunk": {"tokens": 64},
}

CASES = {
    "auto": check(AUTO),
    "auto_without_model": check(AUTO, shape=None),
    "sized": check(SIZED, device_cache_bytes=60 * GIB),
    "disk_off": check({"disk": "off"}, disk=None),
    "default_container": check(
        AUTO, machine=CONTAINER, disk=replace(NVME, fs_type="overlay", writable=False), device_cache_bytes=4 * GIB
    ),
    "busy": check(AUTO, machine=replace(SERVER, ram_available_bytes=100 * GIB)),
    "nothing_fits": check(
        {"host": {"capacity": "300GiB"}, "disk": {"path": "/nvme/kvtier", "capacity": "4TiB"}, "chunk": {"tokens": 100}}
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_table_is_the_golden_one(name):
    assert CASES[name].to_text() + "\n" == (GOLDEN / f"{name}.txt").read_text()


def test_every_golden_file_belongs_to_a_case():
    assert {path.stem for path in GOLDEN.iterdir()} == set(CASES)


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for name, report in CASES.items():
        (GOLDEN / f"{name}.txt").write_text(report.to_text() + "\n")
