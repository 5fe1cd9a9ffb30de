"""Both ways to make zstd code literals give frames that any zstd reads; which one there is shows only in the speed."""

import random
import sys

import pytest
import zstandard

from kvtier.codec import entropy, literals


@pytest.fixture(params=["literals only", "short search"])
def compressor(request, monkeypatch):
    if request.param == "short search":
        monkeypatch.setitem(sys.modules, "zstandard._cffi", None)
        monkeypatch.delattr(zstandard, "_cffi", raising=False)
        return _made(literals.ShortSearch)
    pytest.importorskip("zstandard._cffi", reason="no cffi here")
    return _made(literals.LiteralsOnly)


def _made(expected):
    made = literals.compressor()
    assert isinstance(made, expected)
    return made


def skewed(n_bytes: int) -> bytes:
    """About as skewed as the exponent side of KV, and without repeats."""
    return bytes(int(abs(value)) for value in map(random.Random(1).gauss, [0] * n_bytes, [3] * n_bytes))


@pytest.mark.parametrize("source", [b"x", bytes(5000), skewed(300_000), random.Random(2).randbytes(200_000)])
def test_a_plain_zstd_decompressor_reads_it_and_the_frame_declares_its_size(compressor, source):
    out = memoryview(bytearray(entropy.bound(len(source))))
    n_bytes = compressor.compress_into(memoryview(source), out)
    assert zstandard.frame_content_size(out[:n_bytes]) == len(source)
    assert zstandard.ZstdDecompressor().decompress(out[:n_bytes]) == source


def test_skewed_bytes_shrink_to_within_three_percent_of_their_entropy(compressor):
    source = skewed(300_000)
    out = memoryview(bytearray(entropy.bound(len(source))))
    # 2.6 bits a byte: the half-normal with deviation 3, cut to whole numbers.
    assert compressor.compress_into(memoryview(source), out) < 1.03 * 2.63 / 8 * len(source)
