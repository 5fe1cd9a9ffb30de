"""Region: the file behind the host pool, mapped by workers and scheduler. No death leaves it in /dev/shm for good.

The scheduler removes the name once everyone has mapped the file. Until then the file is locked by those who use it; a
start that finds one nobody has locked knows that its engine was killed before it came so far, and removes it.
"""

from __future__ import annotations

import fcntl
import logging
import mmap
import os
import shutil
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from vllm.distributed.device_communicators.shm_broadcast import check_shm_free_space
from vllm.v1.kv_offload.cpu.shared_offload_region import SharedOffloadRegion

from kvtier.depot import SharedPool
from kvtier.engines.vllm import compat
from kvtier.errors import ConfigError
from kvtier.sizing import enlarge_shm
from kvtier.units import format_bytes

if TYPE_CHECKING:
    from kvtier.machine import Machine

_LOG = logging.getLogger("vllm.kvtier")


def open_region(
    engine_id: str, *, num_chunks: int, rank: int, bytes_per_chunk: int, page_bytes: int
) -> SharedOffloadRegion:
    """Map this rank's part of the pool, making the file if no other rank has. Called once in each worker.

    Raises ConfigError when /dev/shm has no room for it.
    """
    path = Path(compat.region_path(engine_id))
    sweep(path.parent)
    lock = create(path, num_chunks * bytes_per_chunk)
    try:
        region = SharedOffloadRegion(
            engine_id=compat.region_id(engine_id),
            num_chunks=num_chunks,
            rank=rank,
            kv_bytes_per_chunk=bytes_per_chunk,
            cpu_page_size=page_bytes,
        )
        fcntl.flock(region.fd, fcntl.LOCK_SH)
    except BaseException:
        if lock is not None:
            path.unlink(missing_ok=True)
        raise
    finally:
        if lock is not None:
            os.close(lock)
    return region


def create(path: Path, n_bytes: int) -> int | None:
    """Make the file of the pool; None when another rank has. Returns a descriptor that holds its lock.

    It gets its name when it has its length and its lock, so that nobody finds it without.
    """
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if path.exists():
            return None
        free_bytes = shutil.disk_usage(path.parent).free
        if n_bytes > free_bytes:
            raise ConfigError(
                f"the host pool takes {format_bytes(n_bytes)}, but {path.parent} has only {format_bytes(free_bytes)} "
                f"free: {enlarge_shm(n_bytes)}, or lower host.capacity"
            )
        check_shm_free_space(
            n_bytes, os.fspath(path.parent), allocation_name="kvtier's host pool"
        )  # the cgroup's limit
        fd = os.open(path.parent, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_SH)
            os.truncate(fd, n_bytes)
            os.link(f"/proc/self/fd/{fd}", path, src_dir_fd=folder)
        except FileExistsError:
            os.close(fd)
            return None
        except BaseException:
            os.close(fd)
            raise
        return fd
    finally:
        os.close(folder)


def map_pool(engine_id: str, n_bytes: int) -> SharedPool:
    """Map what the workers made and have all mapped, and remove its name. Called once, in EngineCore.

    The descriptor stays open as long as the process: a helper process gets it, and the one after that.
    """
    path = Path(compat.region_path(engine_id))
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        pool = SharedPool(memoryview(mmap.mmap(fd, n_bytes)), fd)
        path.unlink()
    except BaseException:
        os.close(fd)
        raise
    return pool


def sweep(folder: Path) -> None:
    """Remove the pools in `folder` of this user's engines that were killed before they could do so themselves."""
    for path in folder.glob(compat.REGION_GLOB):
        try:
            fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            continue  # gone meanwhile, or another user's
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
                continue
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
            _LOG.warning(
                "kvtier: removed %s, %s of memory that an engine left when it was killed while starting",
                path,
                format_bytes(status.st_size),
            )
        except OSError:
            continue  # in use
        finally:
            os.close(fd)


def unpinned(machine: Machine, n_bytes: int) -> str:
    """What to tell the operator when the driver did not pin the pool."""
    return f"the host pool is not pinned and copies are slow: {why_unpinned(machine, n_bytes)}"


def why_unpinned(machine: Machine, n_bytes: int) -> str:
    """Why the driver pins no more of a pool of `n_bytes`, and what helps."""
    limit = machine.memlock_bytes
    if limit is not None and limit < n_bytes:
        return (
            f"RLIMIT_MEMLOCK is only {format_bytes(limit)}, and host.capacity needs {format_bytes(n_bytes)}: "
            "`ulimit -l unlimited` (systemd: LimitMEMLOCK=infinity, container: --ulimit memlock=-1)"
        )
    return f"the driver refused to pin {format_bytes(n_bytes)}"
