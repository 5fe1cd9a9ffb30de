"""Seen: which keys came by not too long ago, in four bytes a key. Two Bloom filters; the older is forgotten whole."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvtier.types import ChunkKey

_BITS_PER_KEY = 16
_PROBES = 3
"""With both filters full, one key in a hundred is taken for one that came by: (1 - e^(-3/16))^3 = 0.5 % each."""


class Seen:
    """Remembers the last `n_keys` keys for certain, some before those, and rarely one that never came by. O(1)."""

    def __init__(self, n_keys: int) -> None:
        """Remember at least `n_keys`, >= 1."""
        self._n_keys = n_keys
        self._n_bits = n_keys * _BITS_PER_KEY
        self._n_new = 0
        self._new, self._old = self._empty(), self._empty()

    def add(self, key: ChunkKey) -> None:
        """`key` came by."""
        if self._n_new == self._n_keys:
            self._new, self._old = self._empty(), self._new
            self._n_new = 0
        self._n_new += 1
        for bit in self._bits(key):
            self._new[bit >> 3] |= 1 << (bit & 7)

    def __contains__(self, key: ChunkKey) -> bool:
        bits = self._bits(key)
        return any(all(bitmap[bit >> 3] & 1 << (bit & 7) for bit in bits) for bitmap in (self._new, self._old))

    def _bits(self, key: ChunkKey) -> list[int]:
        first, step = zlib.crc32(key), zlib.adler32(key) | 1  # the same in every process, unlike hash()
        return [(first + n * step) % self._n_bits for n in range(_PROBES)]

    def _empty(self) -> bytearray:
        return bytearray(self._n_bits // 8)
