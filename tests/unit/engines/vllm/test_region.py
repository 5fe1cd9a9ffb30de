"""The host pool's file: made whole, found by all, and never left behind by an engine that is dead."""

import fcntl
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("vllm")

from kvtier.engines.vllm import compat, region
from kvtier.engines.vllm.region import create, map_pool, open_region, sweep, unpinned
from kvtier.errors import ConfigError
from kvtier.machine import Machine

MIB = 1 << 20
KILLED_WHILE_STARTING = """
import os, signal, sys
from pathlib import Path
from kvtier.engines.vllm.region import create
create(Path(sys.argv[1]), 1 << 20)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def shm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands in for /dev/shm, which engines of this machine may be using."""
    monkeypatch.setattr(compat, "_REGION_PATH", f"{tmp_path}/vllm_offload_{{region_id}}.mmap")
    return tmp_path


def left_behind(shm: Path) -> Path:
    path = Path(compat.region_path("dead"))
    subprocess.run([sys.executable, "-c", KILLED_WHILE_STARTING, str(path)], check=False)
    assert path.stat().st_size == MIB
    return path


def test_the_pool_of_an_engine_that_was_killed_while_starting_is_removed_by_the_next(shm: Path) -> None:
    path = left_behind(shm)
    sweep(shm)
    assert not path.exists()


def test_the_pool_of_an_engine_that_is_starting_stays(shm: Path) -> None:
    path = Path(compat.region_path("alive"))
    lock = create(path, MIB)
    assert lock is not None
    sweep(shm)
    assert path.exists()
    os.close(lock)


def test_files_that_are_not_ours_stay(shm: Path) -> None:
    (shm / "vllm_offload_another.mmap").write_bytes(b"x")
    (shm / "vllm_offload_kvtier-link.mmap").symlink_to(shm / "vllm_offload_another.mmap")
    sweep(shm)
    assert len(list(shm.iterdir())) == 2


def test_only_one_rank_makes_the_file_and_it_has_its_length_at_once(shm: Path) -> None:
    path = Path(compat.region_path("two"))
    first, second = create(path, MIB), create(path, MIB)
    assert (first is None, second is None) == (False, True)
    assert path.stat().st_size == MIB
    assert path.stat().st_mode & 0o777 == 0o600
    os.close(first)


def test_a_pool_larger_than_the_room_says_what_is_needed(shm: Path) -> None:
    free = os.statvfs(shm).f_bavail * os.statvfs(shm).f_frsize
    with pytest.raises(
        ConfigError, match=r"the host pool takes .* free: `mount -o remount,size=.*, or lower host.capacity"
    ):
        create(Path(compat.region_path("big")), free + (1 << 40))
    assert list(shm.iterdir()) == []


def test_workers_and_scheduler_share_the_bytes_and_nothing_is_left() -> None:
    name = f"test-{os.getpid()}"
    path = Path(compat.region_path(name))
    ranks = [open_region(name, num_chunks=4, rank=r, bytes_per_chunk=8192, page_bytes=4096) for r in (0, 1)]
    try:
        with path.open("rb") as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        pool = map_pool(name, 4 * 8192)
        assert not path.exists()
        for rank, mapped in enumerate(ranks):
            mapped.create_next_worker_view(4096)[2].fill_(7 + rank)
        assert os.pread(pool.fd, 4096, 2 * 8192) == bytes([7]) * 4096, "who gets the descriptor sees the same"
        os.close(pool.fd)
        assert bytes(pool.view[2 * 8192 : 3 * 8192]) == bytes([7]) * 4096 + bytes([8]) * 4096
    finally:
        path.unlink(missing_ok=True)
        for mapped in ranks:
            mapped.cleanup()


def test_a_failure_to_map_leaves_no_file(shm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(**_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(region, "SharedOffloadRegion", no_memory)
    with pytest.raises(MemoryError):
        open_region("failing", num_chunks=1, rank=0, bytes_per_chunk=4096, page_bytes=4096)
    assert list(shm.iterdir()) == []


@pytest.mark.parametrize(
    ("memlock", "says"),
    [
        (8 * MIB, "RLIMIT_MEMLOCK is only 8 MiB, and host.capacity needs 64 MiB: `ulimit -l unlimited`"),
        (None, "the driver refused to pin 64 MiB"),
    ],
)
def test_a_pool_that_is_not_pinned_says_why(memlock: int | None, says: str) -> None:
    machine = Machine(
        ram_bytes=1, ram_available_bytes=1, shm_bytes=1, shm_free_bytes=1, memlock_bytes=memlock, has_gpu=True
    )
    assert re.search(says, unpinned(machine, 64 * MIB))
