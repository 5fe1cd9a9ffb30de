import numpy as np
import pytest
import zstandard

from kvtier.codec.planes import BytePlanes
from kvtier.errors import FrameCorruptError
from kvtier.testing.contracts import decode, encode


def bf16(n_bytes: int) -> bytes:
    """Values as in KV: normal, each channel with a scale of its own."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal((n_bytes // 128, 64)) * np.exp(rng.normal(0, 0.7, 64))
    return (values.astype(np.float32).view(np.uint32) >> 16).astype("<u2").tobytes()


def test_the_payload_is_the_low_bytes_and_then_the_high_bytes_as_one_zstd_frame() -> None:
    chunk = bytes(range(200)) * 2
    payload = encode(BytePlanes(), chunk)
    assert payload[:200] == chunk[0::2]
    assert zstandard.ZstdDecompressor().decompress(payload[200:]) == chunk[1::2]


def test_an_odd_tail_byte_goes_with_the_low_bytes() -> None:
    chunk = b"aAbBcCz"
    payload = encode(BytePlanes(), chunk)
    assert payload[:4] == b"abcz"
    assert zstandard.ZstdDecompressor().decompress(payload[4:]) == b"ABC"


@pytest.mark.parametrize("chunk", [b"", b"x"])
def test_a_chunk_without_a_whole_value_is_its_own_payload(chunk: bytes) -> None:
    assert encode(BytePlanes(), chunk) == chunk


def test_bf16_values_shrink_to_less_than_70_percent() -> None:
    chunk = bf16(1 << 20)
    payload = encode(BytePlanes(), chunk)
    assert len(payload) < 0.70 * len(chunk)
    assert decode(BytePlanes(), payload, len(chunk)) == chunk


def test_the_low_plane_is_checked_before_it_is_read() -> None:
    with pytest.raises(FrameCorruptError, match="its low plane alone takes 50"):
        decode(BytePlanes(), bytes(49), 100)


def test_high_bytes_of_another_number_are_corrupt() -> None:
    other = encode(BytePlanes(), bytes(300))
    with pytest.raises(FrameCorruptError, match="declares 150 bytes, expected 50"):
        decode(BytePlanes(), other[:50] + other[150:], 100)
