"""Files that are this user's alone: directories 0700, files 0600, nothing reached through a symlink."""

from __future__ import annotations

import fcntl
import os
import re
import stat
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from kvtier.errors import StoreError

TURN_TIMEOUT_S = 3.0
"""How long a writer waits for another process. Writes take milliseconds, so that one is stopped or its disk hangs."""

SETTLE_TIMEOUT_S = 120.0
"""How long an opening waits for another one. After a reboot that walks all shards, at 60 ms per GiB and more."""

_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_FLOCK = struct.Struct("hhqqi4x")  # struct flock of 64-bit Linux: type, whence, start, length, pid


def secure_directory(path: Path, ours: re.Pattern[str]) -> None:
    """Make `path` a directory that only this user can enter, or raise StoreError with what stands in the way.

    An existing directory is closed to others only if everything in it has a name that `ours` matches: a user who points
    at a home directory by mistake must not lose the use of it. Nothing is created below a directory in which any user
    could put another in its place.
    """
    try:
        _refuse_open_ancestors(path)
        for missing in [parent for parent in reversed(path.parents) if not parent.exists()]:
            missing.mkdir(mode=0o700, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)
        status = path.lstat()
        if stat.S_ISLNK(status.st_mode):
            raise StoreError(f"{path} is a symlink; name the directory that it points to")
        if status.st_uid != os.geteuid():
            raise StoreError(
                f"{path} belongs to user {status.st_uid}, not to {os.geteuid()}; use a directory of your own"
            )
        if status.st_mode & _OTHERS:
            strangers = sorted(entry.name for entry in path.iterdir() if not ours.fullmatch(entry.name))
            if strangers:
                raise StoreError(
                    f"{path} is open to other users and holds {strangers[0]!r}, which is not kvtier's; "
                    f"use a directory for kvtier alone, or chmod 700 it yourself"
                )
            path.chmod(0o700)
    except OSError as error:
        raise StoreError(f"{path} cannot be used as a directory: {error.strerror or error}") from error


def _refuse_open_ancestors(path: Path) -> None:
    """StoreError when a directory above `path`, as it is written or behind links, may be written by everyone.

    The sticky bit, which /tmp has, keeps users from moving each other's directories.
    """
    for ancestor in dict.fromkeys((*path.absolute().parents, *path.resolve().parents)):
        try:
            mode = ancestor.stat().st_mode
        except FileNotFoundError:
            continue
        if mode & (stat.S_IWOTH | stat.S_ISVTX) == stat.S_IWOTH:
            raise StoreError(
                f"{ancestor} can be written by everyone, who could replace what is in it; use another place for {path}"
            )


def create_file(path: Path) -> None:
    """Create an empty file that only this user can read; FileExistsError when anything is there already."""
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))


def keep_private(path: Path) -> None:
    """Close an existing file to others; remove what is at `path` if it is no regular file of ours."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
        path.unlink()
    elif status.st_mode & _OTHERS:
        path.chmod(0o600)


class DirectoryLock:
    """Who may use a directory: many share it, or one alone rearranges it. Ends with the process, however that ends.

    A flock belongs to the open file, so two holders in one process exclude each other like two processes do.
    """

    def __init__(self, path: Path) -> None:
        flags = os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            self._fd = os.open(path, flags, 0o600)
        except OSError as error:
            raise StoreError(f"{path} cannot be opened: {error.strerror}") from error
        self._path = path

    def acquire(self, timeout_s: float = SETTLE_TIMEOUT_S) -> bool:
        """Hold the directory alone (True) or, when others use it, together with them (False).

        Waits while another one rearranges it; StoreError when that takes longer than `timeout_s`.
        """
        give_up_s = time.monotonic() + timeout_s
        while True:
            for mode in (fcntl.LOCK_EX, fcntl.LOCK_SH):
                if self._try(mode):
                    return mode == fcntl.LOCK_EX
            if time.monotonic() > give_up_s:
                raise StoreError(f"{self._path} is locked by another process since {timeout_s:.0f} s; stop it or wait")
            time.sleep(0.01)

    def share(self) -> None:
        """Let others in again. They may have rearranged the directory before this returns."""
        give_up_s = time.monotonic() + SETTLE_TIMEOUT_S
        while not self._try(fcntl.LOCK_SH):
            if time.monotonic() > give_up_s:
                raise StoreError(f"{self._path} is locked by another process; stop it or wait")
            time.sleep(0.01)

    @contextmanager
    def turn(self, shard: int, timeout_s: float = TURN_TIMEOUT_S) -> Iterator[None]:
        """Be the only process that writes `shard`, in the `with` block; threads of one process share a turn.

        The database's own lock would do, but nobody can stop waiting for that. StoreError after `timeout_s`.
        """
        give_up_s = time.monotonic() + timeout_s
        pause_s = 0.0005
        while not self._lock_byte(shard, fcntl.F_WRLCK):
            if time.monotonic() > give_up_s:
                raise StoreError(
                    f"shard {shard} of {self._path.parent} has been held by another process for {timeout_s:.0f} s; "
                    f"it is stopped, or the disk hangs"
                )
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 0.02)
        try:
            yield
        finally:
            self._lock_byte(shard, fcntl.F_UNLCK)

    def _lock_byte(self, number: int, kind: int) -> bool:
        """An open file description lock: unlike a plain record lock it does not end when some other file is closed."""
        if self._fd < 0:
            raise StoreError(f"{self._path} has been closed")
        try:
            fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, number, 1, 0))
        except (BlockingIOError, PermissionError):
            return False
        except OSError as error:
            raise StoreError(f"{self._path} cannot be locked: {error.strerror}; use a local file system") from error
        return True

    def release(self) -> None:
        """Let go."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _try(self, mode: int) -> bool:
        try:
            fcntl.flock(self._fd, mode | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            raise StoreError(f"{self._path} cannot be locked: {error.strerror}; use a local file system") from error
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
