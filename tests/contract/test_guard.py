"""Every guard keeps the Guard contract."""

import sys

import pytest

from kvtier.codec.aesgcm import AesGcm
from kvtier.codec.frame import open_into, parse_header
from kvtier.codec.guard import EXTENSION_BYTES, Guard, Hmac
from kvtier.errors import ConfigError, FrameCorruptError
from kvtier.testing.guards import CHUNK, KEY, SECRET, GuardContract, open_, seal, with_checksum


class TestHmac(GuardContract):
    def make(self, secret: bytes) -> Guard:
        return Hmac(secret)

    def test_equal_chunks_give_equal_frames(self) -> None:
        assert seal(Hmac(SECRET)) == seal(Hmac(SECRET))


class TestAesGcm(GuardContract):
    def make(self, secret: bytes) -> Guard:
        return AesGcm(secret)

    def test_nothing_of_a_chunk_that_does_not_shrink_is_in_its_frame(self) -> None:
        chunk = bytes(range(1, 256))
        frame = seal(AesGcm(SECRET), chunk)
        assert len(frame) == 64 + 48 + len(chunk)
        assert not any(chunk[i : i + 4] in frame for i in range(len(chunk) - 4))

    def test_the_same_chunk_never_gives_the_same_nonce_or_bytes_twice(self) -> None:
        frames = [seal(AesGcm(SECRET)) for _ in range(50)]
        assert len({frame[72:96] for frame in frames}) == 50
        assert len({frame[112:144] for frame in frames}) == 50

    def test_without_the_library_the_error_names_the_extra(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "cryptography.exceptions", None)
        with pytest.raises(ConfigError, match=r"pip install 'kvtier\[crypto\]'"):
            AesGcm(SECRET)


def test_the_two_guards_share_no_key_under_one_secret() -> None:
    assert Hmac(SECRET).name.split()[1] != AesGcm(SECRET).name.split()[1]


@pytest.mark.parametrize("guard", [Hmac(SECRET), AesGcm(SECRET)], ids=lambda guard: guard.name)
def test_a_payload_longer_than_any_of_its_chunk_is_refused_before_it_is_copied(guard: Guard) -> None:
    frame = seal(guard) + bytes(1 << 20)
    n_payload = len(frame) - 64 - EXTENSION_BYTES[guard.flags]
    frame = with_checksum(frame[:12] + n_payload.to_bytes(4, "little") + frame[16:])
    with pytest.raises(FrameCorruptError, match="too many for a chunk of 1024"):
        open_(guard, frame)


def test_a_frame_sealed_by_one_guard_is_no_frame_of_the_other() -> None:
    out = memoryview(bytearray(len(CHUNK)))
    frame = seal(Hmac(SECRET))
    assert parse_header(memoryview(frame)).flags == 1
    with pytest.raises(Exception, match="guarded as 0x01, this engine's are as 0x02"):
        open_into(memoryview(frame), out, key=KEY, guard=AesGcm(SECRET))
