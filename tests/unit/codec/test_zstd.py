import random

import numpy as np
import pytest

from kvtier.codec import entropy
from kvtier.codec.zstd import ProbedZstd
from kvtier.errors import FrameCorruptError
from kvtier.testing.contracts import decode, encode

STORED, COMPRESSED = 0, 1


def int8(n_bytes: int) -> bytes:
    """Values as in quantized KV: normal, five and a half standard deviations to the end of the range."""
    values = np.random.default_rng(0).standard_normal(n_bytes) * 23
    return values.clip(-127, 127).astype(np.int8).tobytes()


def test_int8_values_shrink() -> None:
    chunk = int8(1 << 20)
    payload = encode(ProbedZstd(), chunk)
    assert payload[0] == COMPRESSED
    assert len(payload) < 0.90 * len(chunk)
    assert decode(ProbedZstd(), payload, len(chunk)) == chunk


def test_what_does_not_shrink_is_stored_after_compressing_only_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    compressed: list[int] = []
    real = entropy.compress_into

    def counting(source: memoryview, out: memoryview) -> int:
        compressed.append(len(source))
        return real(source, out)

    monkeypatch.setattr(entropy, "compress_into", counting)
    chunk = random.Random(0).randbytes(1 << 20)
    assert encode(ProbedZstd(), chunk) == bytes([STORED]) + chunk
    assert compressed == [32 << 10]


def test_the_sample_reaches_from_head_to_tail() -> None:
    noise = random.Random(0).randbytes(1 << 19)
    for chunk in (noise + bytes(1 << 19), bytes(1 << 19) + noise):
        assert encode(ProbedZstd(), chunk)[0] == COMPRESSED


def test_a_good_sample_of_a_bad_chunk_costs_no_more_than_the_mode_byte() -> None:
    rng = random.Random(0)
    chunk = bytearray(rng.randbytes(80 << 10))
    step = (len(chunk) - (8 << 10)) // 3
    for n in range(4):
        chunk[n * step : n * step + 600] = bytes(600)
    assert len(encode(ProbedZstd(), bytes(chunk))) <= len(chunk) + 1


@pytest.mark.parametrize(
    ("payload", "complaint"),
    [
        (b"", "empty"),
        (b"\x00abc", "mode 0, cannot give 4"),
        (b"\x02abcd", "mode 2, cannot give 4"),
        (b"\x01abcd", "does not decode"),
    ],
)
def test_a_payload_that_cannot_be_is_corrupt(payload: bytes, complaint: str) -> None:
    with pytest.raises(FrameCorruptError, match=complaint):
        decode(ProbedZstd(), payload, 4)
