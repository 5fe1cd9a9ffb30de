"""One zstd section: bytes <-> a bounded zstd frame; the per-thread state that all codecs share."""

from __future__ import annotations

import threading

import zstandard

from kvtier.codec import literals
from kvtier.codec.scratch import Bytes, Scratch
from kvtier.errors import FrameCorruptError

# A frame may ask for this much window beyond the bytes it decodes to. Ours ask for none: their size is declared.
_WINDOW_SLACK_BYTES = 1 << 17


class _PerThread(threading.local):
    """zstd contexts are not safe to share between threads and costly to make anew for each chunk."""

    def __init__(self) -> None:
        self.compressor = literals.compressor()
        self.decompressor = zstandard.ZstdDecompressor()


_thread = _PerThread()
_scratch = Scratch()


def scratch(n_bytes: int) -> Bytes:
    """This thread's scratch bytes, valid until the next call on the same thread."""
    return _scratch.room(n_bytes)


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
        return 0  # no bytes make no zstd frame
    written = _thread.compressor.compress_into(source, out)
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
    check_declared(source, len(out))
    try:
        # stream_reader writes where we say; decompress() would make a bytes object and cost one more copy.
        reader = _thread.decompressor.stream_reader(source)
        written = reader.readinto(out)
        if written != len(out):
            raise FrameCorruptError(f"compressed part holds {written} bytes, expected {len(out)}")
        if reader.read(1):
            raise FrameCorruptError(f"compressed part holds more than the expected {len(out)} bytes")
    except zstandard.ZstdError as error:
        raise FrameCorruptError(f"compressed part does not decode: {error}") from error


def check_declared(source: memoryview, n_bytes: int) -> None:
    """FrameCorruptError unless the header of a zstd frame declares `n_bytes`, and asks for nothing unusual.

    To be called before zstd sees a frame, which may be hostile: zstd goes by what the header says.
    """
    try:
        declared = zstandard.get_frame_parameters(source)
    except zstandard.ZstdError as error:
        raise FrameCorruptError(f"compressed part does not decode: {error}") from error
    if declared.content_size != n_bytes:
        raise FrameCorruptError(f"compressed part declares {declared.content_size} bytes, expected {n_bytes}")
    if declared.window_size > n_bytes + _WINDOW_SLACK_BYTES:
        raise FrameCorruptError(f"compressed part asks for a window of {declared.window_size} bytes")
    if declared.dict_id:
        raise FrameCorruptError(f"compressed part asks for dictionary {declared.dict_id}")
