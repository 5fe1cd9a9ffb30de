"""AesGcm guard: payload bytes <-> ciphertext under AES-256-GCM. The only importer of `cryptography`, an extra."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

from kvtier.codec.guard import KEY_ID_BYTES, check_key_id, derive, key_id, private_copy
from kvtier.errors import ConfigError, FrameForgedError

if TYPE_CHECKING:
    from kvtier.types import ChunkKey

NONCE_BYTES: Final = 24
_GCM_NONCE_BYTES = 12
_ENDS = KEY_ID_BYTES, KEY_ID_BYTES + NONCE_BYTES


class AesGcm:
    """Encrypts and authenticates payloads; header and chunk key are authenticated. Extension: key id, nonce, tag.

    Every frame has a key of its own, derived from the secret, the chunk key and the first half of a random nonce; the
    second half is GCM's. So 2^64 frames under one secret, of one chunk even, meet the same key and nonce with a
    probability below 2^-64: no count of frames has to be kept, over no number of restarts and engines.
    """

    flags = 0x02
    slack_bytes = 15  # `update_into` asks for a block less one beyond what it writes

    def __init__(self, secret: bytes) -> None:
        """Derive the key from a key file's `secret`. ConfigError when `cryptography` is not installed."""
        try:
            from cryptography.exceptions import InvalidTag  # noqa: PLC0415 - an extra
            from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes  # noqa: PLC0415
        except ImportError as error:
            raise ConfigError(
                "`encryption.key_file` needs the cryptography package: pip install 'kvtier[crypto]'"
            ) from error
        self._invalid_tag, self._cipher, self._aes, self._gcm = InvalidTag, Cipher, algorithms.AES, modes.GCM
        self._key = derive(secret, b"kvtier frame aes")
        self._key_id = key_id(self._key)
        self.name: Final = f"aes-256-gcm {self._key_id.hex()}"

    def protect(self, head: bytes, key: ChunkKey, payload: memoryview, extension: memoryview, n_payload: int) -> None:
        """Encrypt in place."""
        nonce = os.urandom(NONCE_BYTES)
        encryptor = self._prepared(nonce, key).encryptor()
        encryptor.authenticate_additional_data(head + key)
        encryptor.update_into(payload[:n_payload], payload)
        encryptor.finalize()
        extension[:] = self._key_id + nonce + encryptor.tag

    def unprotect(self, head: bytes, key: ChunkKey, payload: memoryview, extension: memoryview) -> memoryview:
        """Decrypt into this thread's own memory. Nobody sees a byte of it before the tag has been verified."""
        found = bytes(extension)
        check_key_id(found[: _ENDS[0]], self._key_id)
        mine = private_copy(payload, self.slack_bytes)
        decryptor = self._prepared(found[_ENDS[0] : _ENDS[1]], key, found[_ENDS[1] :]).decryptor()
        decryptor.authenticate_additional_data(head + key)
        decryptor.update_into(mine[: len(payload)], mine)
        try:
            decryptor.finalize()
        except self._invalid_tag as error:
            raise FrameForgedError("frame is whole, but was not encrypted with our key") from error
        return mine[: len(payload)]

    def _prepared(self, nonce: bytes, key: ChunkKey, tag: bytes | None = None) -> Any:
        frame_key = derive(self._key, b"kvtier frame key", nonce[:-_GCM_NONCE_BYTES] + key)
        return self._cipher(self._aes(frame_key), self._gcm(nonce[-_GCM_NONCE_BYTES:], tag))
