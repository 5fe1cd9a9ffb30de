"""The opener takes whole plain frames of byte planes and leaves everything else, `out` included, to the long way."""

import random
import sys

import numpy as np
import pytest
import zstandard

from kvtier.codec import frame as frames
from kvtier.codec import opener as openers
from kvtier.codec.aesgcm import AesGcm
from kvtier.codec.base import Codec
from kvtier.codec.frame import HEADER_BYTES, frame_bound, frame_checksum, open_into, seal_into
from kvtier.codec.guard import PLAIN, Guard, Hmac
from kvtier.codec.opener import Opener
from kvtier.codec.pieces import Pieces
from kvtier.codec.planes import BytePlanes
from kvtier.codec.raw import Raw
from kvtier.codec.zstd import ProbedZstd
from kvtier.errors import FrameCorruptError, FrameForeignError
from kvtier.types import ChunkKey
from tests.rigs import native

KEY, OTHER_KEY = ChunkKey(bytes(range(56))), ChunkKey(bytes(range(1, 57)))
VALUES = np.random.default_rng(3).standard_normal(5000, np.float32).view(np.uint32) >> 16
CHUNK = VALUES.astype("<u2").tobytes()
HEAD_BYTES = 48


def sealed(chunk: bytes = CHUNK, codec: Codec | None = None, guard: Guard = PLAIN) -> bytearray:
    codec = codec or BytePlanes()
    out = bytearray(frame_bound(len(chunk), codec, guard))
    return out[: seal_into(memoryview(chunk), memoryview(out), key=KEY, codec=codec, guard=guard)]


@pytest.fixture(scope="module")
def opener() -> Opener:
    return native.opener()


@pytest.fixture
def no_long_way(monkeypatch: pytest.MonkeyPatch, opener: Opener) -> None:
    def long_way(*_: object) -> None:
        raise AssertionError("went the long way")

    monkeypatch.setattr(frames, "best_opener", lambda: opener)
    monkeypatch.setattr(frames, "verify_frame", long_way)


@pytest.fixture(params=["native", "without"])
def either(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, opener: Opener) -> None:
    monkeypatch.setattr(frames, "best_opener", lambda: opener if request.param == "native" else None)


@pytest.mark.usefixtures("no_long_way")
def test_a_plain_frame_is_opened_at_once():
    out = bytearray(len(CHUNK))
    open_into(memoryview(sealed()), memoryview(out), key=KEY)
    assert out == CHUNK


@pytest.mark.usefixtures("no_long_way")
def test_a_plain_frame_is_opened_at_once_where_an_engine_has_its_chunk_in_pieces():
    room = np.zeros((10, 2, 1000), np.uint8)
    first = room.ctypes.data
    pieces = Pieces([(first + 2000 * row, 1000) for row in range(10)])
    open_into(memoryview(sealed()), pieces, key=KEY)
    assert room[:, 0].tobytes() == CHUNK
    assert not room[:, 1].any()


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize(
    "frame",
    [
        sealed(codec=Raw()),
        sealed(codec=ProbedZstd()),
        sealed(CHUNK[:-1]),
        sealed(bytes(10_000)),
        sealed(random.Random(1).randbytes(10_000)),
        sealed(b"matches " * 1250),
        sealed(CHUNK[:2]),
    ],
    ids=["another codec", "zstd alone", "an odd byte", "zeros", "noise", "matches", "a single value"],
)
def test_whatever_goes_the_long_way_comes_out_the_same(frame: bytearray):
    header = frames.parse_header(memoryview(frame))
    out = bytearray(header.raw_bytes)
    open_into(memoryview(frame), memoryview(out), key=KEY)
    assert sealed(bytes(out), {0: Raw(), 1: BytePlanes(), 2: ProbedZstd()}[header.codec_id]) == frame


@pytest.mark.parametrize("at", [0, 4, 5, 6, 8, 12, 16, 32, 48, 63, 64, 5064, -1])
def test_a_frame_of_which_a_bit_has_changed_is_refused_before_anything_is_touched(opener: Opener, at: int):
    frame, out = sealed(), bytearray(len(CHUNK))
    head = bytes(frame[:HEAD_BYTES])
    frame[at] ^= 1
    assert not opener.open(head, memoryview(frame), memoryview(out))
    assert not any(out)


@pytest.mark.usefixtures("either")
def test_damage_is_named_by_the_long_way():
    frame, out = sealed(), bytearray(len(CHUNK))
    frame[3000] ^= 8
    with pytest.raises(FrameCorruptError, match="checksum is"):
        open_into(memoryview(frame), memoryview(out), key=KEY)


@pytest.mark.usefixtures("either")
def test_a_frame_of_another_key_is_foreign():
    with pytest.raises(FrameForeignError, match="namespace"):
        open_into(memoryview(sealed()), memoryview(bytearray(len(CHUNK))), key=OTHER_KEY)


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("length", [0, 2, len(CHUNK) - 2, len(CHUNK) + 2])
def test_a_frame_of_a_chunk_of_another_length_is_foreign(length: int):
    with pytest.raises(FrameForeignError, match="expected"):
        open_into(memoryview(sealed()), memoryview(bytearray(length)), key=KEY)


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("length", [0, 1, 47, 48, 63, 64, 65, HEADER_BYTES + len(CHUNK) // 2 - 1])
def test_a_frame_that_was_cut_short_is_corrupt(length: int):
    with pytest.raises(FrameCorruptError):
        open_into(memoryview(sealed())[:length], memoryview(bytearray(len(CHUNK))), key=KEY)


@pytest.mark.usefixtures("either")
def test_a_section_that_does_not_decode_is_corrupt_though_its_checksum_agrees():
    frame = sealed()
    frame[HEADER_BYTES + len(CHUNK) // 2 + 20] ^= 0x55
    frame[HEAD_BYTES:HEADER_BYTES] = frame_checksum(memoryview(frame))
    with pytest.raises(FrameCorruptError, match=r"decode|holds"):
        open_into(memoryview(frame), memoryview(bytearray(len(CHUNK))), key=KEY)


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("guard", [Hmac(bytes(32)), AesGcm(bytes(32))], ids=["hmac", "aes-gcm"])
def test_an_engine_with_a_key_takes_no_plain_frame(guard: Guard):
    with pytest.raises(FrameForeignError, match="guarded"):
        open_into(memoryview(sealed()), memoryview(bytearray(len(CHUNK))), key=KEY, guard=guard)


@pytest.mark.usefixtures("either")
def test_an_engine_without_a_key_takes_no_guarded_frame():
    with pytest.raises(FrameForeignError, match="guarded"):
        open_into(memoryview(sealed(guard=Hmac(bytes(32)))), memoryview(bytearray(len(CHUNK))), key=KEY)


@pytest.mark.usefixtures("either")
def test_a_section_that_declares_another_length_is_corrupt_though_it_decodes():
    frame = sealed()
    section = HEADER_BYTES + len(CHUNK) // 2
    assert zstandard.get_frame_parameters(frame[section:]).content_size == len(CHUNK) // 2
    at = section + 4 + frame[section:].index((len(CHUNK) // 2 - 256).to_bytes(2, "little"), 5) - 4
    frame[at] ^= 1
    frame[HEAD_BYTES:HEADER_BYTES] = frame_checksum(memoryview(frame))
    with pytest.raises(FrameCorruptError, match="declares"):
        open_into(memoryview(frame), memoryview(bytearray(len(CHUNK))), key=KEY)


def test_arguments_that_do_not_fit_are_an_error(opener: Opener):
    with pytest.raises(ValueError, match="48 bytes"):
        opener.open(bytes(47), memoryview(sealed()), memoryview(bytearray(len(CHUNK))))
    with pytest.raises(ValueError, match="even rows"):
        opener.open(bytes(48), memoryview(sealed()), memoryview(bytearray(len(CHUNK) + 1)))


def test_without_native_code_there_is_no_opener(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, openers.EXTENSION, None)
    assert openers.best_opener.__wrapped__() is None


@pytest.mark.parametrize(
    ("codec", "guard", "at_once"),
    [
        (BytePlanes(), PLAIN, True),
        (Raw(), PLAIN, False),
        (ProbedZstd(), PLAIN, False),
        (BytePlanes(), Hmac(bytes(32)), False),
    ],
)
def test_frames_that_would_be_read_for_nothing_are_known_beforehand(
    monkeypatch: pytest.MonkeyPatch, opener: Opener, codec: Codec, guard: Guard, *, at_once: bool
):
    monkeypatch.setattr(frames, "best_opener", lambda: opener)
    assert frames.opens_at_once(codec, guard) is at_once
