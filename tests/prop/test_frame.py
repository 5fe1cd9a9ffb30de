"""Frames against everything: any chunk comes back, any damage is refused, any bytes at all do no harm."""

import contextlib
import random

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtier.codec.frame import HEADER_BYTES, frame_bound, open_into, seal_into
from kvtier.codec.registry import codec_for
from kvtier.errors import FrameCorruptError, FrameError
from kvtier.testing.contracts import CHUNKS, key_of
from kvtier.types import ChunkKey

DTYPES = st.sampled_from(["bfloat16", "float16", "fp8_e4m3", "int8"])
KEYS = st.binary(min_size=16, max_size=64).map(ChunkKey)


def seal(chunk: bytes, key: ChunkKey, dtype: str) -> bytes:
    room = memoryview(bytearray(frame_bound(len(chunk), codec_for(dtype))))
    return bytes(room[: seal_into(memoryview(chunk), room, key=key, codec=codec_for(dtype))])


def open_(frame: bytes, key: ChunkKey, n_bytes: int) -> bytes:
    out = bytearray(n_bytes)
    open_into(memoryview(frame), memoryview(out), key=key)
    return bytes(out)


@given(CHUNKS, KEYS, DTYPES)
def test_any_chunk_comes_back_and_never_takes_more_than_its_header(chunk: bytes, key: ChunkKey, dtype: str) -> None:
    frame = seal(chunk, key, dtype)
    assert open_(frame, key, len(chunk)) == chunk
    assert len(frame) <= HEADER_BYTES + len(chunk)


@given(CHUNKS, KEYS, KEYS, DTYPES)
def test_no_other_key_opens_a_frame(chunk: bytes, key: ChunkKey, other: ChunkKey, dtype: str) -> None:
    if key != other:
        with pytest.raises(FrameError):
            open_(seal(chunk, key, dtype), other, len(chunk))


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
@pytest.mark.parametrize("n_bytes", [0, 1, 65, 400])
def test_every_single_bit_flip_is_refused(n_bytes: int, dtype: str) -> None:
    chunk = bytes(random.Random(n_bytes).choices(b"\x3d\x3e\x3f", k=n_bytes))
    frame = seal(chunk, key_of(1), dtype)
    for bit in range(8 * len(frame)):
        damaged = bytearray(frame)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(FrameCorruptError):
            open_(bytes(damaged), key_of(1), n_bytes)


@given(CHUNKS, DTYPES, st.data())
def test_any_other_damage_is_refused(chunk: bytes, dtype: str, data: st.DataObject) -> None:
    frame = seal(chunk, key_of(1), dtype)
    start = data.draw(st.integers(0, len(frame)))
    end = data.draw(st.integers(start, len(frame)))
    damaged = frame[:start] + data.draw(st.binary(max_size=80)) + frame[end:]
    if damaged != frame:
        with pytest.raises(FrameCorruptError):
            open_(damaged, key_of(1), len(chunk))


@settings(max_examples=300)
@given(st.binary(max_size=300) | st.binary(max_size=300).map(lambda tail: b"KVTF\x01\x00" + tail), st.integers(0, 500))
def test_garbage_is_never_a_frame(garbage: bytes, n_bytes: int) -> None:
    with pytest.raises(FrameCorruptError):
        open_(garbage, key_of(1), n_bytes)


@settings(max_examples=300)
@given(CHUNKS, DTYPES, st.integers(6, 15), st.binary(min_size=1, max_size=8), st.binary(max_size=60))
def test_a_forger_who_knows_the_checksum_can_lie_but_not_harm(
    chunk: bytes, dtype: str, at: int, field: bytes, tail: bytes
) -> None:
    frame = bytearray(seal(chunk, key_of(1), dtype))
    frame[at : at + len(field)] = field
    frame[HEADER_BYTES + len(frame[HEADER_BYTES:]) // 2 :] = tail
    frame[48:64] = xxhash.xxh3_128_digest(bytes(frame[:48] + frame[HEADER_BYTES:]))
    room = bytearray(b"\xa5" * (len(chunk) + 64))
    with contextlib.suppress(FrameError):
        open_into(memoryview(bytes(frame)), memoryview(room)[: len(chunk)], key=key_of(1))
    assert room[len(chunk) :] == b"\xa5" * 64
