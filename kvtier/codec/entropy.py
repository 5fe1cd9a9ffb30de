"""One zstd section: bytes <-> a bounded zstd frame; the parameters and per-thread state that all codecs share."""

from __future__ import annotations

import threading

import numpy as np
import numpy.typing as npt
import zstandard

from kvtier.errors import FrameCorruptError

Bytes = npt.NDArray[np.uint8]

# KV bytes have a skewed histogram and no repeats, so all the gain is zstd's literal entropy coding and the search for
# matches is a cost. A table of 2^6 entries and matches of 7 bytes or more keep the search to a minimum. Measured on
# bf16 KV of SmolLM2-135M, 1 MiB chunks, one core, MB/s of uncompressed bytes, only the high bytes through zstd:
#   level 1 as it comes              ratio 1.451    627 in   2127 out
#   level 1, min_match 7, hash_log 6       1.4545  1500 in   3247 out
#   level 3 and 9 of the same plane        worse and slower
# target_length above 1 switches zstd's literal coding off and with it the whole gain.
LEVEL = 1
MIN_MATCH = 7
HASH_LOG = 6

# A frame may ask for this much window beyond the bytes it decodes to. Ours ask for none: their size is declared.
_WINDOW_SLACK_BYTES = 1 << 17


class _PerThread(threading.local):
    """zstd contexts and scratch are not safe to share between threads and costly to make anew for each chunk."""

    def __init__(self) -> None:
        parameters = zstandard.ZstdCompressionParameters.from_level(LEVEL, min_match=MIN_MATCH, hash_log=HASH_LOG)
        self.compressor = zstandard.ZstdCompressor(compression_params=parameters)
        self.decompressor = zstandard.ZstdDecompressor()
        self.scratch: Bytes = np.empty(0, dtype=np.uint8)


_thread = _PerThread()


def scratch(n_bytes: int) -> Bytes:
    """This thread's scratch bytes, valid until the next call on the same thread. Grows, never shrinks.

    Fresh memory costs a page fault for each 4 KiB, as much as the copy into it: that is why it is kept.
    """
    if len(_thread.scratch) < n_bytes:
        _thread.scratch = np.empty(n_bytes, dtype=np.uint8)
    return _thread.scratch[:n_bytes]


def bound(n_bytes: int) -> int:
    """Room that `compress_into` needs for `n_bytes`: zstd's own worst case, and a byte to tell full from cut short."""
    margin = ((1 << 17) - n_bytes) >> 11 if n_bytes < 1 << 17 else 0
    return n_bytes + (n_bytes >> 8) + margin + 64


def compress_into(source: memoryview, out: memoryview) -> int:
    """Compress `source` into the front of `out` (at least `bound(len(source))` long); returns bytes written.

    The GIL is released while zstd works.
    """
    assert len(out) >= bound(len(source))
    if not len(source):
        return 0  # no bytes make no zstd frame; stream_reader never returns for them
    written: int = _thread.compressor.stream_reader(source, size=len(source)).readinto(out)
    assert written < len(out)  # bound() leaves room, so a full buffer would mean an unfinished zstd frame
    return written


def decompress_into(source: memoryview, out: memoryview) -> None:
    """Decompress one zstd frame that must fill `out` exactly. FrameCorruptError otherwise.

    `source` may be hostile: what its header declares is checked before zstd allocates or writes anything. The GIL is
    released while zstd works.
    """
    if not len(out):
        if len(source):
            raise FrameCorruptError(f"compressed part is {len(source)} bytes, expected none")
        return
    try:
        declared = zstandard.get_frame_parameters(source)
        if declared.content_size != len(out):
            raise FrameCorruptError(f"compressed part declares {declared.content_size} bytes, expected {len(out)}")
        if declared.window_size > len(out) + _WINDOW_SLACK_BYTES:
            raise FrameCorruptError(f"compressed part asks for a window of {declared.window_size} bytes")
        if declared.dict_id:
            raise FrameCorruptError(f"compressed part asks for dictionary {declared.dict_id}")
        # stream_reader writes where we say; decompress() would make a bytes object and cost one more copy.
        reader = _thread.decompressor.stream_reader(source)
        written = reader.readinto(out)
        if written != len(out):
            raise FrameCorruptError(f"compressed part holds {written} bytes, expected {len(out)}")
        if reader.read(1):
            raise FrameCorruptError(f"compressed part holds more than the expected {len(out)} bytes")
    except zstandard.ZstdError as error:
        raise FrameCorruptError(f"compressed part does not decode: {error}") from error
