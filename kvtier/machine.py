"""What this machine has: /proc, cgroups and statvfs -> numbers. Reads only; decides nothing."""

from __future__ import annotations

import os
import re
import resource
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

_NETWORK_FS: Final = re.compile(
    r"9p|afs|beegfs|ceph|cifs|fuse\..+|gfs2|glusterfs|gpfs|lustre|nfs\d?|ocfs2|orangefs|smb\d?|smbfs|wekafs"
)
_MEMORY_FS: Final = re.compile(r"tmpfs|ramfs|devtmpfs")
_LAYER_FS: Final = re.compile(r"overlay|aufs|fuse\.fuse-overlayfs")
_CAP_IPC_LOCK: Final = 1 << 14
_UNLIMITED: Final = 1 << 60  # cgroup v1 says "no limit" with a number near 2^63
_ROOT: Final = Path("/")


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Memory of this machine, or of the container this process is in, at one instant."""

    ram_bytes: int  # physical, or the memory limit of the container when that is less
    ram_available_bytes: int  # to be had now without swapping or passing a container's limit
    shm_bytes: int  # size of /dev/shm; 0 when there is none
    shm_free_bytes: int
    memlock_bytes: int | None  # RLIMIT_MEMLOCK; None = unlimited, or this process may exceed it
    has_gpu: bool

    @classmethod
    def here(cls, root: Path = _ROOT) -> Self:
        """Read it now. `root` is where proc, sys and dev are looked up."""
        meminfo = dict(re.findall(r"(?m)^(\w+):\s+(\d+) kB$", _text(root / "proc/meminfo")))
        ram = int(meminfo.get("MemTotal", 0)) << 10 or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        available = int(meminfo["MemAvailable"]) << 10 if "MemAvailable" in meminfo else ram
        for limit, used in _cgroup_memory(root):
            ram = min(ram, limit)
            available = min(available, max(0, limit - used))
        shm_bytes, shm_free_bytes = _space(root / "dev/shm")
        return cls(
            ram_bytes=ram,
            ram_available_bytes=available,
            shm_bytes=shm_bytes,
            shm_free_bytes=shm_free_bytes,
            memlock_bytes=_memlock(root),
            has_gpu=any((root / "dev" / name).exists() for name in ("nvidiactl", "nvidia0", "kfd")),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskSpace:
    """The file system under a directory that need not exist yet, at one instant."""

    path: Path
    total_bytes: int
    free_bytes: int  # to be had by this user
    held_bytes: int  # what files below `path` occupy already
    fs_type: str  # as the kernel names it: "ext4", "nfs4", "tmpfs"; "" when it cannot be told
    writable: bool  # this user can create the directory, or files in it

    @property
    def is_memory(self) -> bool:
        """It lives in RAM and is gone after a restart of the machine."""
        return bool(_MEMORY_FS.fullmatch(self.fs_type))

    @property
    def is_layer(self) -> bool:
        """It is the writable layer of a container and is gone with it."""
        return bool(_LAYER_FS.fullmatch(self.fs_type))

    @property
    def is_network(self) -> bool:
        """Its files are on another machine, or behind a program: mapping and locking them is slow or unsafe."""
        return not self.is_layer and bool(_NETWORK_FS.fullmatch(self.fs_type))

    @classmethod
    def at(cls, path: Path, root: Path = _ROOT) -> Self:
        """Look at `path`, or at the nearest directory above it that exists. `root` is where proc is looked up."""
        place = path.absolute()
        while not os.path.lexists(place) and place != place.parent:
            place = place.parent
        total_bytes, free_bytes = _space(place)
        return cls(
            path=path,
            total_bytes=total_bytes,
            free_bytes=free_bytes,
            held_bytes=_occupied(path),
            fs_type=_fs_type(Path(os.path.realpath(place)), root),
            writable=place.is_dir() and os.access(place, os.W_OK | os.X_OK),
        )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _space(path: Path) -> tuple[int, int]:
    """(size, free) of the file system at `path`; (0, 0) when there is none."""
    try:
        fs = os.statvfs(path)
    except OSError:
        return 0, 0
    return fs.f_frsize * fs.f_blocks, fs.f_frsize * fs.f_bavail


def _occupied(path: Path) -> int:
    n_bytes = 0
    for folder, _, names in os.walk(path):
        for name in names:
            try:
                n_bytes += os.lstat(os.path.join(folder, name)).st_blocks * 512  # noqa: PTH118 - hot for big stores
            except OSError:
                continue  # gone since it was listed
    return n_bytes


def _memlock(root: Path) -> int | None:
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    capable = re.search(r"(?m)^CapEff:\s*([0-9a-f]+)$", _text(root / "proc/self/status"))
    if soft == resource.RLIM_INFINITY or (capable and int(capable[1], 16) & _CAP_IPC_LOCK):
        return None
    return soft


def _cgroup_memory(root: Path) -> list[tuple[int, int]]:
    """(limit, bytes in use that cannot be reclaimed) of every memory cgroup this process is in, innermost first."""
    found = []
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers == "":  # v2
            mount, names = root / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            mount = root / "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        # Inside a container the path may be the host's, of which only the mount itself is visible here.
        group = mount / path.strip("/")
        for folder in [group, *group.parents]:
            if folder != mount and mount not in folder.parents:
                break
            limit = _text(folder / names[0]).strip()
            if limit.isdigit() and int(limit) < _UNLIMITED:
                usage = _text(folder / names[1]).strip()
                cache = re.search(rf"(?m)^{names[2]} (\d+)$", _text(folder / "memory.stat"))
                used = (int(usage) if usage.isdigit() else 0) - (int(cache[1]) if cache else 0)
                found.append((int(limit), max(0, used)))
    return found


def _fs_type(path: Path, root: Path) -> str:
    """Type of the mount that holds the resolved `path`: the longest mount point above it, the last of equals."""
    best, best_type = -1, ""
    for line in _text(root / "proc/self/mountinfo").splitlines():
        fields, _, rest = line.partition(" - ")
        parts = fields.split(" ")
        if len(parts) < 5 or not rest:
            continue
        point = Path(re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), parts[4]))
        if (point == path or point in path.parents) and len(point.parts) >= best:
            best, best_type = len(point.parts), rest.split(" ")[0]
    return best_type
