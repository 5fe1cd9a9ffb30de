"""Zstd codec: whole bytes through zstd when a sample says that it pays, as they are when it does not."""

from __future__ import annotations

import numpy as np

from kvtier.codec import entropy
from kvtier.codec.raw import copy_bytes
from kvtier.errors import FrameCorruptError

_STORED, _COMPRESSED = 0, 1

# Four windows of 8 KiB: 30 us where a 1 MiB chunk takes 900, and within 1.5 % of the ratio of the whole.
SAMPLE_WINDOW_BYTES = 8 << 10
N_SAMPLE_WINDOWS = 4
# Below this the bytes saved cost more CPU than the disk would. fp8 e4m3 gives 1.16, e5m2 1.35, int8 1.13 to 1.18, and
# float32 1.07 of a bound of 1.08: single-byte entropy, all of which zstd takes at 1.1 GB/s in and 1.0 to 1.3 out.
MIN_SAMPLE_RATIO = 1.05


class ProbedZstd:
    """For fp8, int8 and everything else that has no plane of pure noise. Payload: one byte of mode, then the bytes."""

    codec_id = 2

    def bound(self, n_bytes: int) -> int:
        """The mode byte and zstd's worst."""
        return 1 + entropy.bound(n_bytes)

    def encode_into(self, chunk: memoryview, out: memoryview) -> int:
        """Encode `chunk` into the front of `out`; returns payload bytes, len(chunk) + 1 when it does not pay."""
        if len(chunk) and _pays(chunk, out):
            n_bytes = entropy.compress_into(chunk, out[1:])
            if n_bytes < len(chunk):
                out[0] = _COMPRESSED
                return 1 + n_bytes
        out[0] = _STORED
        copy_bytes(chunk, out[1 : 1 + len(chunk)])
        return 1 + len(chunk)

    def decode_into(self, payload: memoryview, out: memoryview) -> None:
        """Decode `payload` into `out`; FrameCorruptError unless it fills it exactly."""
        if not len(payload):
            raise FrameCorruptError("payload is empty, expected a mode byte")
        if payload[0] == _COMPRESSED:
            entropy.decompress_into(payload[1:], out)
        elif payload[0] == _STORED and len(payload) == 1 + len(out):
            copy_bytes(payload[1:], out)
        else:
            raise FrameCorruptError(f"payload of {len(payload)} bytes, mode {payload[0]}, cannot give {len(out)} bytes")


def _pays(chunk: memoryview, out: memoryview) -> bool:
    """Whether a sample from head to tail shrinks enough. `out` is scratch."""
    n_sample = SAMPLE_WINDOW_BYTES * N_SAMPLE_WINDOWS
    if len(chunk) <= 2 * n_sample:
        return True
    raw = np.frombuffer(chunk, dtype=np.uint8)
    sample = entropy.scratch(n_sample)
    step = (len(chunk) - SAMPLE_WINDOW_BYTES) // (N_SAMPLE_WINDOWS - 1)
    for i in range(N_SAMPLE_WINDOWS):
        at = i * SAMPLE_WINDOW_BYTES
        sample[at : at + SAMPLE_WINDOW_BYTES] = raw[i * step : i * step + SAMPLE_WINDOW_BYTES]
    return entropy.compress_into(sample.data, out) * MIN_SAMPLE_RATIO < n_sample
