"""Native code reads the zstd frames that kvtier writes as zstd does, and touches nothing else, whatever they hold."""

import random
from collections.abc import Callable

import pytest
import zstandard

from kvtier.codec import literals as coder
from tests.rigs.native import literals

BLOCK = 1 << 17


def compressed(data: bytes, make: Callable[[], coder.Compressor] = coder.compressor) -> bytes:
    out = memoryview(bytearray(len(data) + 1000))
    return bytes(out[: make().compress_into(memoryview(data), out)])


def drawn(n: int, shares: list[float], seed: int = 0) -> bytes:
    return bytes(random.Random(seed).choices(range(len(shares)), shares, k=n))


BELL = [2.0 ** -abs(symbol - 20) for symbol in range(40)]
LIKE_KV = drawn(3 * BLOCK + 4321, [0.01 + 8 * share for share in BELL])

DATA = {
    "like KV, blocks that share a table": LIKE_KV,
    "256 symbols": drawn(BLOCK, [1.0 + (symbol < 20) * 30 for symbol in range(256)]),
    "4 symbols, told one by one": drawn(9000, [3, 3, 2, 2]),
    "codes as long as they can be": drawn(BLOCK, [0.71**symbol for symbol in range(30)]),
    "a block of noise": LIKE_KV[:BLOCK] + random.Random(1).randbytes(BLOCK) + LIKE_KV[:BLOCK],
    "a block of one byte": LIKE_KV[:BLOCK] + bytes(BLOCK) + LIKE_KV[:BLOCK],
    "as short as four streams get": drawn(1100, [0.01 + 8 * share for share in BELL]),
}


@pytest.mark.parametrize("data", DATA.values(), ids=DATA.keys())
def test_what_kvtier_writes_is_read_without_zstd(data: bytes) -> None:
    assert list(literals([(compressed(data), len(data))])) == [data]


OTHERS = {
    "matches": compressed(b"matches " * 5000, coder.ShortSearch),
    "a dictionary": zstandard.ZstdCompressor(dict_data=zstandard.ZstdCompressionDict(LIKE_KV[:999])).compress(LIKE_KV),
    "a checksum": zstandard.ZstdCompressor(write_checksum=True).compress(LIKE_KV),
    "one stream": compressed(LIKE_KV[:200]),
    "codes of one bit": compressed(drawn(9000, [8, 1, 1])),
    "no frame": LIKE_KV[:500],
    "nothing": b"",
}


@pytest.mark.parametrize("frame", OTHERS.values(), ids=OTHERS.keys())
def test_anything_else_is_left_to_zstd(frame: bytes) -> None:
    assert list(literals([(frame, len(LIKE_KV))])) == [None]


def test_what_has_no_room_is_left_to_zstd() -> None:
    frame = compressed(LIKE_KV)
    assert list(literals((frame, room) for room in (0, 1, BLOCK, len(LIKE_KV) - 1))) == [None] * 4


def damaged(frame: bytes, rng: random.Random) -> bytes:
    """Bytes changed, mostly where the descriptions are; sometimes cut."""
    out = bytearray(frame)
    for _ in range(rng.randint(1, 4)):
        out[min(int(rng.expovariate(1 / 40)), len(out) - 1) if rng.random() < 0.8 else rng.randrange(len(out))] ^= (
            1 << rng.randrange(8) if rng.random() < 0.5 else rng.randrange(1, 256)
        )
    return bytes(out[: rng.randrange(len(out))] if rng.random() < 0.1 else out)


def test_damaged_frames_are_read_as_zstd_reads_them_or_left_to_it() -> None:
    rng, room = random.Random(7), 6000
    sources = [
        drawn(rng.randint(1100, room), [1 + 50 * rng.random() ** 6 for _ in range(rng.randint(3, 256))], seed)
        for seed in range(60)
    ]
    frames = [damaged(compressed(source), rng) for source in sources for _ in range(200)]
    n_read = 0
    for frame, read in zip(frames, literals((frame, room) for frame in frames), strict=True):
        if read is not None and len(read) == zstandard.get_frame_parameters(frame).content_size:  # which callers check
            n_read += 1
            decoder = zstandard.ZstdDecompressor().decompressobj()
            assert decoder.decompress(frame) == read
            assert decoder.eof
    assert n_read > 500, "damage to the symbols alone makes another frame"
