"""Codec: chunk bytes <-> payload bytes. Pure functions of their input; no I/O, no state, safe on any thread."""

from __future__ import annotations

from typing import Protocol


class Codec(Protocol):
    """Lossless transform of one chunk. Implementations hold no state and may run on many threads at once."""

    @property
    def codec_id(self) -> int:
        """Number written in frame headers, 0..255. Never reused for another encoding."""
        ...

    def bound(self, n_bytes: int) -> int:
        """Largest payload `encode_into` may produce for `n_bytes` of input."""
        ...

    def encode_into(self, chunk: memoryview, out: memoryview) -> int:
        """Encode `chunk` into the front of `out` (at least `bound(len(chunk))` long); returns payload bytes written."""
        ...

    def decode_into(self, payload: memoryview, out: memoryview) -> None:
        """Decode `payload` into `out`, filling it exactly.

        `payload` may be hostile: anything that does not decode to exactly len(out) bytes raises FrameCorruptError,
        without reading or writing outside the buffers and without allocating more than a small multiple of len(out).
        """
        ...
