"""Small files that are replaced whole: what a namespace, a store or a rate keeps of itself between starts."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def replace_file(path: Path, content: bytes) -> None:
    """Give `path`, for its owner alone, new content: all of it or none, also over a power loss. Raises OSError."""
    draft = path.with_name(f"{path.name}.{os.getpid()}.new")  # another process may replace the same file
    draft.unlink(missing_ok=True)
    fd = os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as out:  # unlike os.write, this does not take a part for the whole on a full disk
        out.write(content)
        out.flush()
        os.fsync(fd)
    draft.replace(path)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make names created or removed in `path` survive a power loss."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def only_one(lock: Path, timeout_s: float) -> Iterator[None]:
    """Be the only process in a `with` block that names `lock`, a file for nothing else. OSError after `timeout_s`."""
    fd = os.open(lock, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        give_up_s = time.monotonic() + timeout_s
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > give_up_s:
                    raise TimeoutError(f"{lock} has been held by another process for {timeout_s:.0f} s") from None
            time.sleep(0.002)
        yield
    finally:
        os.close(fd)
