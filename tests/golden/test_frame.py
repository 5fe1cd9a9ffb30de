"""Frames of format 1 as they lie on disks out there: these bytes must open for as long as the format is 1.

The files were sealed once and are never written again. A change that breaks a test here needs a new FORMAT_VERSION.
"""

from pathlib import Path

import pytest

from kvtier.codec.frame import HEADER_BYTES, open_into, parse_header, seal_into
from kvtier.codec.registry import codec_by_id
from kvtier.types import ChunkKey

FOLDER = Path(__file__).parent / "frame"
KEY = ChunkKey(bytes(range(16)) + bytes(range(0x80, 0xA0)))


def values(n_bytes: int) -> bytes:
    """Sixteen-bit values whose high bytes are few and whose low bytes are many; no library decides what they are."""
    state, out = 1, bytearray()
    while len(out) < n_bytes:
        state = (state * 1103515245 + 12345) % 2**31
        out += bytes([state >> 16 & 0xFF, 0x3C + (state >> 8) % 5])
    return bytes(out[:n_bytes])


FRAMES = {
    "raw_v1.bin": (0, values(100)),
    "planes_v1.bin": (1, values(1025)),
    "zstd_v1.bin": (2, values(1000)),
    "zstd_stored_v1.bin": (2, bytes(range(50))),
}


@pytest.mark.parametrize("name", FRAMES)
def test_a_frame_of_format_1_opens(name: str) -> None:
    codec_id, chunk = FRAMES[name]
    frame = memoryview((FOLDER / name).read_bytes())
    out = bytearray(len(chunk))
    open_into(frame, memoryview(out), key=KEY)
    assert out == chunk
    assert parse_header(frame).codec_id == codec_id


def test_a_raw_frame_is_sealed_to_the_same_bytes() -> None:
    chunk = values(100)
    room = memoryview(bytearray(HEADER_BYTES + len(chunk)))
    assert seal_into(memoryview(chunk), room, key=KEY, codec=codec_by_id(0)) == len(room)
    assert room == (FOLDER / "raw_v1.bin").read_bytes()


def test_the_header_lies_where_the_format_says() -> None:
    assert (FOLDER / "raw_v1.bin").read_bytes()[:HEADER_BYTES].hex(" ", 4) == (
        "4b565446 01000000 64000000 64000000 "
        "00010203 04050607 08090a0b 0c0d0e0f "
        "82fd42e4 b77711ff bc9c43d9 dae68a3c "
        "2fb30c7a c180c75e d652fad2 7462776d"
    )
