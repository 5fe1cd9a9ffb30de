"""Ends a whole engine: the leader of a process group goes in, nothing of the group is left, no shared memory either."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

_WAIT_S = 20.0
_SEGMENTS = ("psm_", "sem.mp-", "mp-", "vllm_dist_")
_POOL = "/dev/shm/vllm_offload_"
_NAMELESS = " (deleted)"


def kill_group(group: int) -> None:
    """SIGKILL every process of a process group and return when all are gone; fine when they already are.

    The leader, whose pid `group` is, began a session of its own; whoever started it reaps it. Segments of Python's
    multiprocessing and of vLLM's workers that the group had mapped are unlinked, as whoever would do so dies too;
    anything else left in /dev/shm is a leak that a test may look for.
    Raises TimeoutError when a process outlives the signal.
    """
    segments = _python_segments(group)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
    deadline = time.monotonic() + _WAIT_S
    while alive := _members(group):
        if time.monotonic() > deadline:
            raise TimeoutError(f"processes {alive} outlived SIGKILL for {_WAIT_S:.0f} s")
        time.sleep(0.02)
    for path in segments:
        path.unlink(missing_ok=True)


def host_pools(group: int) -> set[Path]:
    """Names under which the live processes of a group mapped vLLM's host pools, whether these still have them or not.

    Every engine's has another name, so that one which is there afterwards was left by this group.
    """
    mapped = (line.split(maxsplit=5)[5].removesuffix(_NAMELESS) for line in _shm_maps(group))
    return {Path(name) for name in mapped if name.startswith(_POOL)}


def cpu_s(session: int) -> float:
    """Processor seconds that the live processes of a session have used so far, in steps of 10 ms.

    Not of a group: kvtier's helper process is in one of its own.
    """
    ticks = 0
    for pid in _members(session, by="session"):
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def go_first(session: int) -> bool:
    """Put a session before what else the machine does, where the kernel groups by session; False if it may not be."""
    try:
        for pid in _members(session, by="session"):
            Path(f"/proc/{pid}/autogroup").write_text("-15")
    except OSError:
        return False
    return True


def _members(leader: int, *, by: str = "group") -> list[int]:
    """Live processes of a process group, or of a session; zombies are not live."""
    members = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            # The command name in parentheses may hold spaces: count fields from the last parenthesis.
            state, _, group, session = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
            if int(group if by == "group" else session) == leader and state != "Z":
                members.append(int(folder.name))
    return members


def _python_segments(group: int) -> set[Path]:
    """Segments of Python's multiprocessing that the group has mapped; by inode, as a mapping may have no name."""
    inodes = {int(line.split(maxsplit=5)[4]) for line in _shm_maps(group)}
    found = set()
    for path in Path("/dev/shm").glob("*"):
        with contextlib.suppress(OSError):
            if path.name.startswith(_SEGMENTS) and path.stat().st_ino in inodes:
                found.add(path)
    return found


def _shm_maps(group: int) -> Iterator[str]:
    """Lines of /proc/PID/maps of all live processes of a group that tell of /dev/shm."""
    for pid in _members(group):
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
            yield from (line for line in lines if "/dev/shm/" in line)
