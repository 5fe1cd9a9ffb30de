import pytest

from kvtier.codec.raw import Raw
from kvtier.errors import FrameCorruptError
from kvtier.testing.contracts import decode, encode


def test_the_payload_is_the_chunk() -> None:
    assert encode(Raw(), b"chunk") == b"chunk"


def test_a_payload_of_another_length_is_corrupt() -> None:
    with pytest.raises(FrameCorruptError, match="5 bytes, expected 4"):
        decode(Raw(), b"chunk", 4)
