"""Raw codec: the payload is the chunk. What a frame falls back to when nothing else makes it smaller."""

from __future__ import annotations

import numpy as np

from kvtier.codec.pieces import Pieces
from kvtier.errors import FrameCorruptError


def copy_bytes(source: memoryview, out: memoryview) -> None:
    """Copy `source` over `out`, of equal length. numpy releases the GIL while it copies; slice assignment does not."""
    np.copyto(np.frombuffer(out, dtype=np.uint8), np.frombuffer(source, dtype=np.uint8))


class Raw:
    """Stores the bytes as they are."""

    codec_id = 0

    def bound(self, n_bytes: int) -> int:
        """Exactly the input."""
        return n_bytes

    def encode_into(self, chunk: memoryview, out: memoryview) -> int:
        """Copy `chunk` to the front of `out`."""
        copy_bytes(chunk, out[: len(chunk)])
        return len(chunk)

    def decode_into(self, payload: memoryview, out: memoryview) -> None:
        """Copy `payload` to `out`; FrameCorruptError when the lengths differ."""
        if len(payload) != len(out):
            raise FrameCorruptError(f"raw payload is {len(payload)} bytes, expected {len(out)}")
        copy_bytes(payload, out)

    def encode_pieces(self, pieces: Pieces, out: memoryview) -> int:
        """Copy the pieces to the front of `out`."""
        pieces.gather(out[: len(pieces)])
        return len(pieces)

    def decode_pieces(self, payload: memoryview, pieces: Pieces) -> None:
        """Copy `payload` to the pieces; FrameCorruptError when the lengths differ."""
        if len(payload) != len(pieces):
            raise FrameCorruptError(f"raw payload is {len(payload)} bytes, expected {len(pieces)}")
        pieces.scatter(payload)
