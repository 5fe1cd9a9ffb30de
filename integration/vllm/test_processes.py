"""Ending an engine ends all of it: children, and the shared memory that nobody else would unlink."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from integration.vllm.processes import kill_group

FAMILY = """
import subprocess, sys, time
from multiprocessing.shared_memory import SharedMemory
segment = SharedMemory(create=True, size=4096)
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
