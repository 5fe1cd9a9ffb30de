"""TraceRecorder: requests of a live engine -> a file that `kvtier replay` reads. Salted hashes only, no content.

docs/replay.md defines the format. The engine's thread only queues; hashing and writing happen on a thread of its own.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, Final

from kvtier.errors import ConfigError
from kvtier.types import ChunkKey

VERSION: Final = 1
CHUNK_BYTES: Final = 8  # of a salted hash
MAX_QUEUED: Final = 1024  # requests; more are left out and counted
MAX_SALT_BYTES: Final = 64  # what blake2b takes as a key


class TraceRecorder:
    """Appends to one file until it has `max_bytes`. Full or failing, it records no more, counts, and bothers nobody."""

    def __init__(self, path: Path, tokens_per_chunk: int, *, salt: bytes, max_bytes: int) -> None:
        """Open `path` for appending. Hashes are equal only under the same `salt`, 16 to 64 secret random bytes.

        Raises ConfigError when the file cannot be opened, or is not this user's own: a link, a pipe, a file of another
        user's or with a second name elsewhere. One that others could use is closed to them.
        """
        assert 16 <= len(salt) <= MAX_SALT_BYTES
        self.dropped = 0  # requests that are not in the file
        self.last_error: OSError | None = None
        self._salt = salt
        self._max_bytes = max_bytes
        self._queue: deque[tuple[float, int, Sequence[ChunkKey]]] = deque()
        self._wake = threading.Event()
        self._closing = False
        try:
            self._file: BinaryIO = _open_own(path)
        except OSError as error:
            raise ConfigError(
                f"`trace.record`: {path} cannot be written: {error.strerror}: name another file"
            ) from error
        self._n_bytes = self._file.tell()
        self._header = _line({"kvtier_trace": VERSION, "tokens_per_chunk": tokens_per_chunk})
        self._thread = threading.Thread(target=self._run, name="kvtier-trace", daemon=True)
        self._thread.start()

    def record(self, time_s: float, n_tokens: int, keys: Sequence[ChunkKey]) -> None:
        """A request arrived; `keys` are its whole chunks, head first, and are not changed afterwards. Any thread."""
        if len(self._queue) >= MAX_QUEUED or self.last_error is not None:
            self.dropped += 1
            return
        self._queue.append((time_s, n_tokens, keys))
        self._wake.set()

    def close(self) -> None:
        """Write what is queued and close the file. No `record` may follow."""
        self._closing = True
        self._wake.set()
        self._thread.join()

    def _run(self) -> None:
        with self._file:
            # A killed engine may have left half a line: what follows must not be glued to it.
            if not self._write(b"\n" * (self._n_bytes > 0) + self._header):
                self.last_error = self.last_error or OSError("no room for the header")
            while True:
                self._wake.wait()
                self._wake.clear()
                closing = self._closing
                while self._queue:
                    self._write_request(*self._queue.popleft())
                if closing:
                    return

    def _write_request(self, time_s: float, n_tokens: int, keys: Sequence[ChunkKey]) -> None:
        salt = self._salt
        chunks = "".join([hashlib.blake2b(key, digest_size=CHUNK_BYTES, key=salt).hexdigest() for key in keys])
        line = _line({"t": round(time_s, 3), "in": n_tokens, "chunks": chunks})
        if not self._write(line):
            self.dropped += 1

    def _write(self, line: bytes) -> bool:
        """Append one line, or nothing that would be read as one."""
        if self.last_error is not None or self._n_bytes + len(line) > self._max_bytes:
            return False
        try:
            written = self._file.write(line)
            if written != len(line):
                self._file.truncate(self._n_bytes)  # the medium is full: no half lines
                self.last_error = OSError("no room for a whole line")
                return False
        except OSError as error:
            self.last_error = error
            return False
        self._n_bytes += len(line)
        return True


def _open_own(path: Path) -> BinaryIO:
    """Append to a regular file that is this user's alone. Raises OSError."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    file: BinaryIO = os.fdopen(os.open(path, flags, 0o600), "ab", buffering=0)
    try:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_nlink != 1:
            raise OSError(errno.EPERM, "it is not a file of this user's alone")
        if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            os.fchmod(file.fileno(), 0o600)
    except BaseException:
        file.close()
        raise
    return file


def _line(record: dict[str, object]) -> bytes:
    return json.dumps(record, separators=(",", ":")).encode() + b"\n"
