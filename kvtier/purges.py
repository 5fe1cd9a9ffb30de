"""Notices of a purge: `kvtier purge` -> the engines that share a cache directory -> their word that it is done.

An engine keeps a file of its own, locked for as long as it lives, in which it writes the names of the notices that it
has carried out. So whoever posts one can tell an engine that is slow from one that was killed.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from kvtier.files import replace_file
from kvtier.keys import FAMILY_BYTES, tenant_of
from kvtier.types import ChunkKey

NOTICES = "purges"
ENGINES = "engines"
_MAX_FILE_BYTES = 1 << 20
_LONGEST_S = 86400.0
"""A notice older than this is of no use: no engine that it could concern is still to hear of it."""


class Notice(NamedTuple):
    """What is to go: chunks of these families, of this tenant if one is named."""

    families: frozenset[bytes]
    tenant: bytes | None
    only_deleted: bool  # from host RAM only what has gone from disk: the choice was made by the age of frames

    def fits(self, key: ChunkKey) -> bool:
        """Whether `key` is one of them."""
        return key[:FAMILY_BYTES] in self.families and (self.tenant is None or tenant_of(key) == self.tenant)


def post(folder: Path, notice: Notice) -> str:
    """Put `notice` where engines look; its name. Raises OSError."""
    (folder / NOTICES).mkdir(mode=0o700, exist_ok=True)
    for old in _files(folder / NOTICES):
        with contextlib.suppress(OSError):
            if time.time() - old.stat().st_mtime > _LONGEST_S:
                old.unlink()
    name = f"{time.time_ns():020}-{secrets.token_hex(4)}"
    tree = {
        "families": sorted(family.hex() for family in notice.families),
        "tenant": None if notice.tenant is None else notice.tenant.hex(),
        "only_deleted": notice.only_deleted,
    }
    replace_file(folder / NOTICES / name, json.dumps(tree).encode())
    return name


def withdraw(folder: Path, name: str) -> None:
    """Remove a notice that everyone has carried out."""
    with contextlib.suppress(OSError):
        (folder / NOTICES / name).unlink()


def unconfirmed(folder: Path, name: str) -> list[int]:
    """Process numbers of the running engines that have not carried out notice `name` yet."""
    late = []
    for file in _files(folder / ENGINES):
        with contextlib.suppress(OSError):
            fd = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
                file.unlink()  # nobody holds it: its engine is gone
            except BlockingIOError:
                if name not in os.pread(fd, _MAX_FILE_BYTES, 0).decode("ascii", "replace").split():
                    late.append(int(file.name.partition("-")[0]))
            finally:
                os.close(fd)
    return late


class Listener:
    """One engine's ear. Used by one thread."""

    def __init__(self, folder: Path) -> None:
        """Be known as a running engine of the cache directory `folder`. Raises OSError."""
        (folder / ENGINES).mkdir(mode=0o700, exist_ok=True)
        self._folder = folder
        self._heard: set[str] = set()
        self._file = folder / ENGINES / f"{os.getpid()}-{secrets.token_hex(4)}"
        self._fd = os.open(self._file, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def news(self) -> list[tuple[str, Notice]]:
        """Notices that are not confirmed yet, oldest first."""
        found = []
        for file in _files(self._folder / NOTICES):
            if file.name not in self._heard:
                with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
                    found.append((file.name, _parse(file)))
        return found

    def confirm(self, name: str) -> None:
        """This engine has carried out notice `name`."""
        self._heard.add(name)
        with contextlib.suppress(OSError):
            os.write(self._fd, f"{name}\n".encode())

    def close(self) -> None:
        """The engine ends."""
        with contextlib.suppress(OSError):
            self._file.unlink()
        os.close(self._fd)


def _parse(file: Path) -> Notice:
    with file.open("rb") as content:
        tree = json.loads(content.read(_MAX_FILE_BYTES))
    families = frozenset(bytes.fromhex(family) for family in tree["families"])
    tenant = None if tree["tenant"] is None else bytes.fromhex(tree["tenant"])
    return Notice(families, tenant, tree["only_deleted"] is True)


def _files(folder: Path) -> Iterator[Path]:
    """Files of ours in `folder`, drafts left out, in order of their names."""
    with contextlib.suppress(OSError):
        yield from sorted(path for path in folder.iterdir() if not path.name.endswith(".new"))
