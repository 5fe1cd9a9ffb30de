"""The zstd section against inputs made to hurt."""

import random
import struct
import subprocess
import sys

import pytest
import zstandard

from kvtier.codec import entropy
from kvtier.errors import FrameCorruptError

MAGIC = struct.pack("<I", zstandard.MAGIC_NUMBER)


def decompress(source: bytes, n_bytes: int) -> bytes:
    out = bytearray(n_bytes)
    entropy.decompress_into(memoryview(source), memoryview(out))
    return bytes(out)


def test_a_small_input_that_declares_a_huge_output_is_refused_before_anything_is_allocated() -> None:
    code = """
import resource, struct, zstandard
from kvtier.codec import entropy
from kvtier.errors import FrameCorruptError
out = memoryview(bytearray(1000))
writer = zstandard.ZstdCompressor().compressobj(size=1 << 28)
bomb = b"".join(writer.compress(bytes(1 << 16)) for _ in range(1 << 12)) + writer.flush()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for source in (bomb, struct.pack("<IBQ", zstandard.MAGIC_NUMBER, 0xE0, 1 << 60) + b"\\x01\\x00\\x00"):
    try:
        entropy.decompress_into(memoryview(source), out)
        raise SystemExit("decoded")
    except FrameCorruptError as error:
        print(error)
assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 4096
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [
        f"compressed part declares {1 << 28} bytes, expected 1000",
        f"compressed part declares {1 << 60} bytes, expected 1000",
    ]


def test_a_huge_window_is_refused() -> None:
    header = MAGIC + bytes([0x80, 0xA0]) + struct.pack("<I", 1000)  # 1000 bytes, window of 2^30
    with pytest.raises(FrameCorruptError, match="asks for a window of 1073741824 bytes"):
        decompress(header + bytes(20), 1000)


def test_a_dictionary_is_refused() -> None:
    header = MAGIC + bytes([0x21, 0x07, 0x64])  # single segment of 100 bytes, dictionary 7
    with pytest.raises(FrameCorruptError, match="asks for dictionary 7"):
        decompress(header + bytes(20), 100)


def test_a_frame_that_does_not_declare_its_size_is_refused() -> None:
    writer = zstandard.ZstdCompressor().compressobj()
    source = writer.compress(b"x" * 100) + writer.flush()
    with pytest.raises(FrameCorruptError, match="expected 100"):
        decompress(source, 100)


def test_a_frame_that_holds_less_than_it_declares_is_refused() -> None:
    source = MAGIC + bytes([0x20, 100]) + struct.pack("<I", 1 | (0 << 1) | (50 << 3))[:3] + b"y" * 50
    with pytest.raises(FrameCorruptError):
        decompress(source, 100)


def test_skippable_frames_are_refused() -> None:
    with pytest.raises(FrameCorruptError):
        decompress(struct.pack("<II", 0x184D2A50, 100) + bytes(100), 100)


def test_nothing_compresses_to_nothing() -> None:
    room = memoryview(bytearray(entropy.bound(0)))
    assert entropy.compress_into(memoryview(b""), room) == 0
    entropy.decompress_into(memoryview(b""), memoryview(b""))
    with pytest.raises(FrameCorruptError, match="expected none"):
        entropy.decompress_into(memoryview(b"x"), memoryview(b""))


@pytest.mark.parametrize("n_bytes", [1, 100, 1 << 10, (1 << 17) - 1, 1 << 17, (1 << 17) + 1, 1 << 20])
def test_the_bound_holds_for_bytes_that_do_not_shrink(n_bytes: int) -> None:
    source = random.Random(n_bytes).randbytes(n_bytes)
    room = memoryview(bytearray(entropy.bound(n_bytes)))
    written = entropy.compress_into(memoryview(source), room)
    assert decompress(bytes(room[:written]), n_bytes) == source


def test_scratch_is_kept_and_grows() -> None:
    first = entropy.scratch(1000)
    assert entropy.scratch(500).base is first.base
    assert len(entropy.scratch(2000)) == 2000
