"""GuardContract: what every Guard that holds a key must do, as tests. Subclass it; say how to make one."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvtier.codec.frame import (
    HEADER_BYTES,
    frame_bound,
    frame_checksum,
    open_into,
    parse_header,
    seal_into,
    verify_frame,
)
from kvtier.codec.guard import EXTENSION_BYTES, PLAIN
from kvtier.codec.registry import codec_for
from kvtier.errors import FrameCorruptError, FrameForeignError, FrameForgedError
from kvtier.testing.contracts import CHUNKS, key_of

if TYPE_CHECKING:
    from kvtier.codec.guard import Guard
    from kvtier.types import ChunkKey

SECRET = bytes(range(32))
OTHER_SECRET = bytes(range(1, 33))
KEY = key_of(1)
PLANES = codec_for("bfloat16")
CHUNK = bytes(range(64)) * 16

# The suite is run once for each guard, so each of its properties is, rightly, run for several classes.
_inherited = settings(suppress_health_check=[HealthCheck.differing_executors])


def seal(guard: Guard, chunk: bytes = CHUNK, key: ChunkKey = KEY) -> bytes:
    """`chunk` as a frame."""
    room = memoryview(bytearray(frame_bound(len(chunk), PLANES, guard)))
    return bytes(room[: seal_into(memoryview(chunk), room, key=key, codec=PLANES, guard=guard)])


def open_(guard: Guard, frame: bytes, key: ChunkKey = KEY, n_bytes: int = len(CHUNK)) -> bytes:
    """The chunk of `frame`; nothing is written before everything is known to be right."""
    out = bytearray(b"\xa5" * n_bytes)
    try:
        open_into(memoryview(frame), memoryview(out), key=key, guard=guard)
    except Exception:
        assert out == b"\xa5" * n_bytes, "written before the frame was known to be ours"
        raise
    return bytes(out)


def with_checksum(frame: bytes) -> bytes:
    """`frame`, changed by somebody who can compute its checksum anew."""
    return frame[:48] + frame_checksum(memoryview(frame)) + frame[64:]


class GuardContract:
    """Pytest collects the tests of a subclass whose name begins with `Test`; it overrides `make`."""

    def make(self, secret: bytes) -> Guard:
        """A guard that derives its key from `secret`."""
        raise NotImplementedError

    @_inherited
    @given(CHUNKS)
    def test_any_chunk_comes_back(self, chunk: bytes) -> None:
        guard = self.make(SECRET)
        frame = seal(guard, chunk)
        assert open_(guard, frame, n_bytes=len(chunk)) == chunk
        assert len(frame) <= HEADER_BYTES + EXTENSION_BYTES[guard.flags] + len(chunk)

    def test_another_guard_of_the_same_secret_opens_what_this_one_sealed(self) -> None:
        assert open_(self.make(SECRET), seal(self.make(SECRET))) == CHUNK

    def test_sealing_stays_within_its_bound(self) -> None:
        guard = self.make(SECRET)
        bound = frame_bound(len(CHUNK), PLANES, guard)
        room = bytearray(b"\xa5" * (bound + 10))
        seal_into(memoryview(CHUNK), memoryview(room)[:bound], key=KEY, codec=PLANES, guard=guard)
        assert room[bound:] == b"\xa5" * 10

    def test_every_single_bit_flip_is_corrupt(self) -> None:
        guard, chunk = self.make(SECRET), CHUNK[:65]
        frame = seal(guard, chunk)
        for bit in range(8 * len(frame)):
            damaged = bytearray(frame)
            damaged[bit // 8] ^= 1 << bit % 8
            with pytest.raises(FrameCorruptError):
                open_(guard, bytes(damaged), n_bytes=len(chunk))

    def test_no_bit_can_be_changed_by_one_who_computes_the_checksum_anew(self) -> None:
        guard, chunk = self.make(SECRET), CHUNK[:65]
        frame = seal(guard, chunk)
        outcomes = set()
        for bit in (bit for bit in range(8 * len(frame)) if not 48 <= bit // 8 < HEADER_BYTES):
            damaged = bytearray(frame)
            damaged[bit // 8] ^= 1 << bit % 8
            with pytest.raises((FrameCorruptError, FrameForeignError)) as refusal:
                open_(guard, with_checksum(bytes(damaged)), n_bytes=len(chunk))
            outcomes.add((bit // 8 >= HEADER_BYTES + 8, refusal.type))
        assert {kind for behind_the_key_id, kind in outcomes if behind_the_key_id} == {FrameForgedError}

    def test_a_frame_under_another_secret_is_foreign_and_both_ids_are_named(self) -> None:
        mine, other = self.make(SECRET), self.make(OTHER_SECRET)
        ids = [guard.name.split()[1] for guard in (other, mine)]
        with pytest.raises(FrameForeignError, match="key id {}.*id {}".format(*ids)):
            open_(mine, seal(other))

    def test_a_frame_of_another_secret_that_names_our_key_is_forged(self) -> None:
        mine, other = self.make(SECRET), self.make(OTHER_SECRET)
        frame, ours = seal(other), seal(mine)
        with pytest.raises(FrameForgedError):
            open_(mine, with_checksum(frame[:64] + ours[64:72] + frame[72:]))

    def test_a_plain_frame_is_foreign(self) -> None:
        with pytest.raises(FrameForeignError, match="guarded as 0x00"):
            open_(self.make(SECRET), seal(PLAIN))

    def test_an_engine_without_the_key_refuses_the_frame_by_name(self) -> None:
        guard = self.make(SECRET)
        with pytest.raises(FrameForeignError, match=f"guarded as {guard.flags:#04x}"):
            open_(PLAIN, seal(guard))

    def test_a_frame_moved_to_another_key_with_its_identity_rewritten_is_forged(self) -> None:
        guard, other = self.make(SECRET), key_of(2)
        moved = seal(PLAIN, key=other)[16:48]
        frame = seal(guard)
        with pytest.raises(FrameForgedError):
            open_(guard, with_checksum(frame[:16] + moved + frame[48:]), key=other)

    def test_a_frame_verifies_as_undamaged_without_the_key(self) -> None:
        frame = seal(self.make(SECRET))
        assert verify_frame(memoryview(frame)) == parse_header(memoryview(frame))

    def test_cut_anywhere_it_is_corrupt(self) -> None:
        guard = self.make(SECRET)
        frame = seal(guard)
        for length in range(len(frame)):
            with pytest.raises(FrameCorruptError):
                open_(guard, frame[:length])
            with pytest.raises((FrameCorruptError, FrameForeignError)):
                open_(guard, with_checksum(frame[:length].ljust(64, b"\0")))

    @_inherited
    @given(st.binary(max_size=200))
    def test_any_bytes_with_a_right_header_and_checksum_are_refused(self, tail: bytes) -> None:
        guard = self.make(SECRET)
        frame = bytearray(seal(guard)[: HEADER_BYTES + 8] + tail)
        n_payload = len(frame) - HEADER_BYTES - EXTENSION_BYTES[guard.flags]
        if n_payload >= 0:
            frame[12:16] = n_payload.to_bytes(4, "little")
        with pytest.raises(FrameCorruptError):
            open_(guard, with_checksum(bytes(frame)))

    def test_a_byte_that_changes_after_the_check_has_no_effect(self) -> None:
        guard = self.make(SECRET)
        frame = bytearray(seal(guard))
        start = HEADER_BYTES + EXTENSION_BYTES[guard.flags]
        head = bytes(frame[:48])
        payload = guard.unprotect(head, KEY, memoryview(frame)[start:], memoryview(frame)[HEADER_BYTES:start])
        before = bytes(payload)
        frame[start:] = bytes(len(frame) - start)
        assert payload == before

    def test_the_name_tells_secrets_apart_and_nothing_tells_the_secret(self) -> None:
        guard = self.make(SECRET)
        assert guard.name == self.make(SECRET).name != self.make(OTHER_SECRET).name
        told = repr(guard) + str(guard) + guard.name
        assert SECRET.hex() not in told
        assert SECRET not in seal(guard)

    def test_one_guard_works_on_many_threads_at_once(self) -> None:
        guard = self.make(SECRET)
        wrong: list[Any] = []

        def work(n: int) -> None:
            chunk, key = bytes([n]) * 50_000, key_of(n)
            wrong.extend(n for _ in range(20) if open_(guard, seal(guard, chunk, key), key, len(chunk)) != chunk)

        threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
