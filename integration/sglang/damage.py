"""One flipped bit in every page that a storage backend keeps on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

INTO_FRAME = 20_000
"""Bytes behind a frame's magic: past its header, and before the end of the shortest frame here."""


def flip_bits(disk: Path) -> int:
    """Flip one in each file of SGLang's own backend (a bf16 exponent) and in each frame of kvtier's; how many."""
    n_flipped = 0
    for file in disk.rglob("*.bin"):
        n_flipped += _flip(file, [file.stat().st_size // 2 + 1])
    for file in disk.rglob("shard-*.lmdb"):
        data = file.read_bytes()
        places, at = [], data.find(b"KVTF")
        while at >= 0:
            places.append(at + INTO_FRAME)
            at = data.find(b"KVTF", at + INTO_FRAME)
        n_flipped += _flip(file, places)
    return n_flipped


def _flip(file: Path, places: Sequence[int]) -> int:
    with file.open("r+b") as pages:
        for place in places:
            pages.seek(place)
            byte = pages.read(1)
            pages.seek(place)
            pages.write(bytes([byte[0] ^ 0x40]))
    return len(places)
