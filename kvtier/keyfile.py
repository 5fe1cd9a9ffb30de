"""Key files: a file of the user's -> the 32 secret bytes in it, or a ConfigError that says how to make one."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from kvtier.errors import ConfigError

SECRET_BYTES: Final = 32
_MAX_FILE_BYTES = 4096
_MIN_DIFFERENT_BYTES = 8  # 32 random bytes have fewer once in 10^26 files


def read_key_file(path: Path, setting: str) -> bytes:
    """The secret in `path`, the value of `setting`: 64 hexadecimal digits on a line, or exactly 32 bytes.

    The file must be regular and belong to this user or root, and others may neither read nor write it; the group of a
    file of root's may read it, which is how secrets are mounted into containers. Raises ConfigError, which names the
    file and the remedy and never what is in it.
    """
    make = f"make one with: (umask 077; openssl rand -hex 32 > {path})"
    try:
        # A pipe nobody writes to must not hang the engine. Links are followed: mounted secrets are links.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(fd, "rb") as file:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise ConfigError(f"`{setting}`: {path} is not a regular file; {make}")
            _check_owner(path, setting, status)
            content = file.read(_MAX_FILE_BYTES)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ConfigError(f"`{setting}`: {path} cannot be read: {reason}; {make}") from error
    secret = _parse(content)
    if secret is None:
        raise ConfigError(
            f"`{setting}`: {path} holds {len(content)} bytes: expected 64 hexadecimal digits, or 32 bytes; {make}"
        )
    if len(set(secret)) < _MIN_DIFFERENT_BYTES:
        raise ConfigError(f"`{setting}`: {path} holds bytes that are not random; {make}")
    return secret


def _check_owner(path: Path, setting: str, status: os.stat_result) -> None:
    if status.st_uid not in (os.geteuid(), 0):
        raise ConfigError(
            f"`{setting}`: {path} belongs to user {status.st_uid}, not to {os.geteuid()}; use a file of your own"
        )
    open_to_others = stat.S_IRWXG | stat.S_IRWXO
    if status.st_uid == 0:
        open_to_others &= ~stat.S_IRGRP
    if status.st_mode & open_to_others:
        raise ConfigError(
            f"`{setting}`: {path} has mode {stat.S_IMODE(status.st_mode):04o}, others may use it; "
            f"chmod 600 {path}, and take a new key if others could read this one"
        )


def _parse(content: bytes) -> bytes | None:
    if len(content) == SECRET_BYTES:
        return content
    try:
        secret = bytes.fromhex(content.decode("ascii").strip())
    except ValueError:
        return None
    return secret if len(secret) == SECRET_BYTES else None
