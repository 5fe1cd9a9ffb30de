"""Usage: how often a namespace's KV was asked for and found, added up over all engines and restarts, in one small file.

For people who look into a cache directory. Nothing decides by it: a file that is lost or damaged begins again at zero.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from kvtier.keys import Namespace

SUFFIX = ".usage"
_MAX_FILE_BYTES = 1 << 16


class Usage:
    """Adds one engine's counts to the file of its namespace. `add` is called from one thread."""

    def __init__(self, folder: Path, namespace: Namespace) -> None:
        """Keep it in `folder`, which exists, as `<namespace>.usage`."""
        self._file = folder / (namespace.base() + SUFFIX)
        self._told: dict[str, int] = {}

    def add(self, totals: Mapping[str, int]) -> None:
        """Add what `totals` has grown by since the last call. Never raises OSError."""
        grown = {name: n - self._told.get(name, 0) for name, n in totals.items()}
        if not any(grown.values()):
            return
        with contextlib.suppress(OSError):
            _add(self._file, grown)
            self._told = dict(totals)


def read_usage(file: Path) -> dict[str, int]:
    """What a usage file says: counts by name and `last_used_s`, seconds since 1970; {} when it cannot be read."""
    try:
        with file.open("rb") as content:
            tree = json.loads(content.read(_MAX_FILE_BYTES))
        return {str(name): int(n) for name, n in tree.items()}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return {}


def _add(file: Path, grown: Mapping[str, int]) -> None:
    fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # another engine's turn: ours comes again
        before = read_usage(file)
        after = {name: before.get(name, 0) + n for name, n in grown.items()} | {"last_used_s": int(time.time())}
        content = json.dumps(after, indent=1).encode()
        os.ftruncate(fd, os.pwrite(fd, content, 0))
    finally:
        os.close(fd)
