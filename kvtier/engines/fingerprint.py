"""Cheap identities of weights on disk: different whenever the weights are, in well under a second, whatever their size.

A file whose name is its content hash (the blobs of a Hugging Face cache) counts by that name. Any other file counts by
name, size, modification time, its first bytes (for safetensors the header: every tensor's name, dtype and offset) and
samples spread over it. A copy made at another time may count as different weights: a cold cache, never a wrong hit.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".npz")
SIDE_FILES = (".json", ".model", ".txt", ".jinja", ".py")
HEAD_BYTES = 256 << 10
SAMPLE_BYTES = 4 << 10
N_SAMPLES = 16
_CONTENT_NAMED = re.compile(r"[0-9a-f]{64}")


def folder_fingerprint(folder: Path, suffixes: tuple[str, ...] = WEIGHTS + SIDE_FILES) -> bytes:
    """32 bytes that change when a weight or configuration file in `folder` does. OSError if it cannot be read."""
    digest = hashlib.blake2b(digest_size=32)
    files = sorted(path for path in folder.iterdir() if path.suffix in suffixes and path.is_file())
    if not files:
        raise FileNotFoundError(f"{folder} has no weight files")
    for path in files:
        digest.update(path.name.encode() + b"\0")
        digest.update(file_fingerprint(path))
    return digest.digest()


def file_fingerprint(path: Path) -> bytes:
    """32 bytes that change when the file does. Raises OSError if it cannot be read."""
    digest = hashlib.blake2b(digest_size=32)
    real = path.resolve()
    if _CONTENT_NAMED.fullmatch(real.name):
        digest.update(real.name.encode())
        return digest.digest()
    with real.open("rb") as file:
        stat = real.stat()
        digest.update(f"{stat.st_size} {stat.st_mtime_ns} ".encode())
        digest.update(file.read(HEAD_BYTES))
        for i in range(N_SAMPLES):
            file.seek(stat.st_size * i // N_SAMPLES)
            digest.update(file.read(SAMPLE_BYTES))
        file.seek(max(0, stat.st_size - SAMPLE_BYTES))
        digest.update(file.read(SAMPLE_BYTES))
    return digest.digest()
