"""Guard: who else may write or read a frame. Payload bytes <-> the same under a key, between codec and checksum.

A frame's checksum finds damage; a guard finds forgers. `PLAIN` guards nothing. docs/format.md has the bytes.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import TYPE_CHECKING, Final, Protocol

from kvtier.codec.raw import copy_bytes
from kvtier.codec.scratch import Scratch
from kvtier.errors import FrameForeignError, FrameForgedError

if TYPE_CHECKING:
    from kvtier.types import ChunkKey

KEY_BYTES: Final = 32
KEY_ID_BYTES: Final = 8
EXTENSION_BYTES: Final = {0x00: 0, 0x01: 32, 0x02: 48}
"""Bytes between header and payload, by the header's flags. A flag is never given another meaning."""


class Guard(Protocol):
    """Protects payloads with one secret. Made once per engine, at build; holds no other state, safe on any thread."""

    @property
    def flags(self) -> int:
        """What frame headers say of it: a key of EXTENSION_BYTES."""
        ...

    @property
    def name(self) -> str:
        """Algorithm and key id, for the namespace and for people; says nothing of the key. Empty for PLAIN."""
        ...

    @property
    def slack_bytes(self) -> int:
        """Room behind the payload that `protect` may write to."""
        ...

    def protect(
        self, head: bytes, key: ChunkKey, payload: memoryview, extension: memoryview, n_payload: int, /
    ) -> None:
        """Protect the first `n_payload` bytes of `payload` in place and fill `extension`.

        `payload` is `slack_bytes` longer than that. `head` is the header as it will be, without its checksum.
        """
        ...

    def unprotect(self, head: bytes, key: ChunkKey, payload: memoryview, extension: memoryview, /) -> memoryview:
        """The payload as the codec made it, valid until this thread's next call.

        `payload` and `extension` may be hostile, and may change under our hands: a guard that verifies works on a copy
        of its own. Raises FrameForeignError for a frame under another key, FrameForgedError for one that claims this
        key and was not made with it.
        """
        ...


class Plain:
    """No key: the checksum alone speaks for a frame."""

    flags = 0x00
    name = ""
    slack_bytes = 0

    def protect(self, _head: bytes, _key: ChunkKey, _payload: memoryview, _extension: memoryview, _n: int, /) -> None:
        """Leave it as it is."""

    def unprotect(self, _head: bytes, _key: ChunkKey, payload: memoryview, _extension: memoryview, /) -> memoryview:
        """Where it lies."""
        return payload


PLAIN: Final[Guard] = Plain()


class Hmac:
    """HMAC-SHA256 over header, key and payload, cut to 24 bytes. Extension: key id, then the MAC.

    hashlib has it, it releases the GIL, and SHA extensions of the CPU carry it: docs/performance.md compares.
    """

    flags = 0x01
    slack_bytes = 0

    def __init__(self, secret: bytes) -> None:
        """Derive the key from a key file's `secret`."""
        self._key = derive(secret, b"kvtier frame mac")
        self._key_id = key_id(self._key)
        self.name: Final = f"hmac-sha256 {self._key_id.hex()}"

    def protect(self, head: bytes, key: ChunkKey, payload: memoryview, extension: memoryview, n_payload: int) -> None:
        """Authenticate."""
        extension[:KEY_ID_BYTES] = self._key_id
        extension[KEY_ID_BYTES:] = self._mac(head, key, payload[:n_payload], len(extension) - KEY_ID_BYTES)

    def unprotect(self, head: bytes, key: ChunkKey, payload: memoryview, extension: memoryview) -> memoryview:
        """Verify."""
        found = bytes(extension)
        check_key_id(found[:KEY_ID_BYTES], self._key_id)
        mine = private_copy(payload, 0)
        if not hmac.compare_digest(self._mac(head, key, mine, len(found) - KEY_ID_BYTES), found[KEY_ID_BYTES:]):
            raise FrameForgedError("frame is whole, but its MAC was not made with our key")
        return mine

    def _mac(self, head: bytes, key: ChunkKey, payload: memoryview, n_bytes: int) -> bytes:
        # The head has a fixed length and names the payload's, so what is between them can only be the key.
        mac = hmac.new(self._key, head + key, "sha256")
        mac.update(payload)
        return mac.digest()[:n_bytes]


def derive(secret: bytes, purpose: bytes, salt: bytes = b"", n_bytes: int = KEY_BYTES) -> bytes:
    """A key for one `purpose` (at most 16 bytes) that says nothing of `secret` or of keys for other purposes."""
    return hashlib.blake2b(salt, digest_size=n_bytes, key=secret, person=purpose).digest()


def key_id(key: bytes) -> bytes:
    """A name for a key that may be read by everyone."""
    return derive(key, b"kvtier key id", n_bytes=KEY_ID_BYTES)


def check_key_id(found: bytes, ours: bytes) -> None:
    """FrameForeignError unless the two agree."""
    if found != ours:
        raise FrameForeignError(f"frame under key id {found.hex()}, this engine's key has id {ours.hex()}")


def private_copy(payload: memoryview, slack_bytes: int) -> memoryview:
    """`payload` and `slack_bytes` behind it in this thread's own memory, valid until the next call on the thread.

    A shard file is mapped: whoever may write it could change a byte between its check and its use.
    """
    room = _scratch.room(len(payload) + slack_bytes).data
    copy_bytes(payload, room[: len(payload)])
    return room


_scratch = Scratch()
