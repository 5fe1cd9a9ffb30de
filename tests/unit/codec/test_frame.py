"""Sealing and opening: identity, lengths, the order in which they are settled, and what the errors say."""

import struct

import pytest
import xxhash

from kvtier.codec.frame import (
    FORMAT_VERSION,
    HEADER_BYTES,
    frame_bound,
    open_into,
    parse_header,
    seal_into,
    verify_frame,
)
from kvtier.codec.registry import codec_for
from kvtier.errors import FrameCorruptError, FrameError, FrameForeignError
from kvtier.testing.contracts import frame_of, key_of
from kvtier.types import ChunkKey

KEY = key_of(1)
PLANES = codec_for("bfloat16")
CHUNK = bytes(range(64)) * 16


def seal(chunk: bytes = CHUNK, key: ChunkKey = KEY) -> bytes:
    room = memoryview(bytearray(frame_bound(len(chunk), PLANES)))
    return bytes(room[: seal_into(memoryview(chunk), room, key=key, codec=PLANES)])


def open_(frame: bytes, key: ChunkKey = KEY, n_bytes: int = len(CHUNK)) -> bytes:
    out = bytearray(b"\xa5" * n_bytes)
    try:
        open_into(memoryview(frame), memoryview(out), key=key)
    except FrameError:
        assert out == b"\xa5" * n_bytes, "written before the frame was known to be ours"
        raise
    return bytes(out)


def resealed(frame: bytes, at: int, field: bytes) -> bytes:
    """The frame with a header field changed and the checksum made to fit, as another writer would have left it."""
    head = bytearray(frame[:48])
    head[at : at + len(field)] = field
    payload = frame[HEADER_BYTES:]
    return bytes(head) + xxhash.xxh3_128_digest(bytes(head) + payload) + payload


def test_a_chunk_comes_back() -> None:
    assert open_(seal()) == CHUNK


def test_the_header_says_what_is_inside() -> None:
    frame = seal()
    header = parse_header(memoryview(frame))
    assert header.version == FORMAT_VERSION
    assert (header.codec_id, header.flags) == (PLANES.codec_id, 0)
    assert (header.raw_bytes, header.payload_bytes) == (len(CHUNK), len(frame) - HEADER_BYTES)
    assert header.namespace == KEY[:16]
    assert header.key_tag == xxhash.xxh3_128_digest(KEY)
    assert verify_frame(memoryview(frame)) == header


def test_a_chunk_that_does_not_shrink_is_stored_as_it_is() -> None:
    chunk = frame_of(1, 4000)
    frame = seal(chunk)
    assert parse_header(memoryview(frame)).codec_id == 0
    assert frame[HEADER_BYTES:] == chunk
    assert open_(frame, n_bytes=4000) == chunk


def test_a_frame_fits_its_bound_and_is_sealed_within_it() -> None:
    chunk = frame_of(1, 3000)
    room = bytearray(b"\xa5" * (frame_bound(3000, PLANES) + 10))
    seal_into(memoryview(chunk), memoryview(room)[:-10], key=KEY, codec=PLANES)
    assert room[-10:] == b"\xa5" * 10


def test_too_little_room_is_the_callers_bug() -> None:
    with pytest.raises(ValueError, match="bytes of room"):
        seal_into(memoryview(CHUNK), memoryview(bytearray(len(CHUNK))), key=KEY, codec=PLANES)


def test_another_key_of_the_namespace_is_foreign() -> None:
    with pytest.raises(FrameForeignError, match=f"another key.*of key {key_of(2).hex()}"):
        open_(seal(), key=key_of(2))


def test_another_namespace_is_foreign_and_both_are_named() -> None:
    other = ChunkKey(b"another-name-16b" + KEY[16:])
    with pytest.raises(FrameForeignError, match=f"{KEY[:16].hex()}, expected {other[:16].hex()}"):
        open_(seal(), key=other)


def test_a_chunk_of_another_length_is_foreign() -> None:
    with pytest.raises(FrameForeignError, match="chunk of 1024 bytes, expected 1000"):
        open_(seal(), n_bytes=1000)


@pytest.mark.parametrize(
    ("at", "field", "complaint"),
    [
        (4, struct.pack("<H", 2), "frame format 2; this build reads 1"),
        (6, b"\xc8", "needs codec 200"),
        (7, b"\x04", "flags 0x04"),
        (8, struct.pack("<I", 0xFFFFFFFF), "chunk of 4294967295 bytes"),
    ],
    ids=["version", "codec", "flags", "raw length"],
)
def test_a_sound_frame_of_another_writer_is_foreign(at: int, field: bytes, complaint: str) -> None:
    with pytest.raises(FrameForeignError, match=complaint):
        open_(resealed(seal(), at, field))


def test_a_sound_frame_whose_payload_length_lies_is_corrupt() -> None:
    with pytest.raises(FrameCorruptError, match="header says 4294967295"):
        open_(resealed(seal(), 12, struct.pack("<I", 0xFFFFFFFF)))


def test_a_sound_frame_whose_payload_is_not_what_its_codec_writes_is_corrupt() -> None:
    frame = seal()
    out = memoryview(bytearray(len(CHUNK)))
    with pytest.raises(FrameCorruptError):
        open_into(memoryview(resealed(frame, 6, b"\x00")), out, key=KEY)


def test_damage_goes_before_identity() -> None:
    frame = bytearray(seal())
    frame[-1] ^= 1
    with pytest.raises(FrameCorruptError, match="checksum"):
        open_(bytes(frame), key=key_of(2))


@pytest.mark.parametrize("n_bytes", [0, 1, 47, 63])
def test_less_than_a_header_is_corrupt(n_bytes: int) -> None:
    with pytest.raises(FrameCorruptError, match="too few"):
        open_(seal()[:n_bytes])


def test_something_else_entirely_is_corrupt() -> None:
    with pytest.raises(FrameCorruptError, match="begins with 7f454c46"):
        open_(b"\x7fELF" + bytes(100))


def test_two_frames_swapped_under_each_others_keys_are_refused() -> None:
    one, two = seal(key=key_of(1)), seal(key=key_of(2))
    for frame, key in ((one, key_of(2)), (two, key_of(1))):
        with pytest.raises(FrameForeignError):
            open_(frame, key=key)


def test_keys_shorter_than_a_namespace_still_tell_frames_apart() -> None:
    assert open_(seal(key=ChunkKey(b"a")), key=ChunkKey(b"a")) == CHUNK
    with pytest.raises(FrameForeignError):
        open_(seal(key=ChunkKey(b"a")), key=ChunkKey(b"a\0"))
