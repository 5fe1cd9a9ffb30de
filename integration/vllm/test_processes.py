"""Ending an engine ends all of it: children, and the shared memory that nobody else would unlink."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from integration.vllm.processes import host_pools, kill_group

FAMILY = """
import mmap, os, subprocess, sys, time
from multiprocessing.shared_memory import SharedMemory
segment = SharedMemory(create=True, size=4096)
pools = [f"/dev/shm/vllm_offload_test-{os.getpid()}-{name}.mmap" for name in ("named", "nameless")]
maps = []
for pool in pools:
    with open(pool, "w+b") as file:
        file.truncate(4096)
        maps.append(mmap.mmap(file.fileno(), 4096))
os.unlink(pools[1])
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(segment.name, child.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture
def family():
    process = subprocess.Popen([sys.executable, "-c", FAMILY], stdout=subprocess.PIPE, start_new_session=True)
    with process:
        segment, child = process.stdout.readline().decode().split()
        yield process, Path("/dev/shm", segment), int(child)
        kill_group(process.pid)
        process.wait()
        Path(f"/dev/shm/vllm_offload_test-{process.pid}-named.mmap").unlink()


def test_children_die_with_the_leader(family) -> None:
    process, _, child = family
    kill_group(process.pid)
    process.wait()
    # Nobody may be left to reap the orphan here: a zombie is dead, too.
    stat = Path(f"/proc/{child}/stat")
    assert not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"


def test_shared_memory_of_the_group_is_unlinked(family) -> None:
    process, segment, _ = family
    assert segment.exists()
    kill_group(process.pid)
    process.wait()
    assert not segment.exists()


def test_shared_memory_of_others_stays(family, tmp_path) -> None:
    process, _, _ = family
    other = Path(f"/dev/shm/psm_kvtier_{os.getpid()}")
    other.write_bytes(b"x")
    try:
        kill_group(process.pid)
        process.wait()
        assert other.exists()
    finally:
        other.unlink()


def test_host_pools_are_those_that_the_group_mapped_with_and_without_a_name(family) -> None:
    process, _, _ = family
    named, nameless = (Path(f"/dev/shm/vllm_offload_test-{process.pid}-{name}.mmap") for name in ("named", "nameless"))
    other = Path(f"/dev/shm/vllm_offload_test-{process.pid}-other.mmap")
    other.write_bytes(bytes(4096))
    try:
        assert host_pools(process.pid) == {named, nameless}
        assert not nameless.exists()
        kill_group(process.pid)
        process.wait()
        assert named.exists(), "whoever looks for a leak must find it"
    finally:
        other.unlink()
