"""Namespace: everything that shapes the bytes of a chunk, digested into the head of its key.

A key is 8 bytes of family digest, 8 bytes of adapter digest (zeros for the base model), 8 bytes of tenant digest (zeros
without a `cache_salt`), then the engine's chained chunk hash. The family covers model, weights, dtype, layout, parallel
shape, hash algorithm, format version and epoch; the adapter part covers a LoRA adapter's own weights, which engines
hash by name only; the tenant part repeats what the engine's hash covers, so that they can be purged.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvtier.types import NAMESPACE_BYTES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kvtier.types import ChunkKey

FAMILY_BYTES = 8
ADAPTER_BYTES = 8
TENANT_BYTES = NAMESPACE_BYTES - FAMILY_BYTES - ADAPTER_BYTES
NO_ADAPTER = bytes(ADAPTER_BYTES)
NO_TENANT = bytes(TENANT_BYTES)


@dataclass(frozen=True, slots=True)
class Namespace:
    """What shapes the bytes, by name. Equal mappings give equal digests whatever their order."""

    fields: Mapping[str, str | int]

    def canonical(self) -> bytes:
        """The bytes that are digested: JSON with sorted keys."""
        return json.dumps(dict(self.fields), sort_keys=True, separators=(",", ":")).encode()

    def base(self) -> str:
        """Hex name of the namespace without its epoch: what its epoch is filed under."""
        return hashlib.blake2b(self.canonical(), digest_size=FAMILY_BYTES).hexdigest()

    def family(self, epoch: str) -> bytes:
        """First 8 bytes of every key of this namespace in `epoch`."""
        return hashlib.blake2b(self.canonical() + b"\0" + epoch.encode(), digest_size=FAMILY_BYTES).digest()


def adapter_digest(fingerprint: bytes) -> bytes:
    """The adapter part of the keys of requests that use the adapter with this fingerprint."""
    return hashlib.blake2b(fingerprint, digest_size=ADAPTER_BYTES).digest()


def tenant_digest(salt: str) -> bytes:
    """The tenant part of the keys of requests with this `cache_salt`. Whoever guesses a salt can tell its chunks."""
    return hashlib.blake2b(salt.encode(), digest_size=TENANT_BYTES, person=b"kvtier-tenant").digest()


def tenant_of(key: ChunkKey) -> bytes:
    """The tenant part of a key."""
    return key[FAMILY_BYTES + ADAPTER_BYTES : NAMESPACE_BYTES]
