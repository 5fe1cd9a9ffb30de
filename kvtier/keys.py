"""Namespace: everything that shapes the bytes of a chunk, digested into the head of its key.

A key is 8 bytes of family digest, 8 bytes of adapter digest (zeros for the base model), then the engine's chained chunk
hash. The family covers model, weights, dtype, layout, parallel shape, hash algorithm, format version and epoch; the
adapter part covers a LoRA adapter's own weights, which engines hash by name only.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvtier.types import NAMESPACE_BYTES

if TYPE_CHECKING:
    from collections.abc import Mapping

FAMILY_BYTES = 8
NO_ADAPTER = bytes(NAMESPACE_BYTES - FAMILY_BYTES)


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
    return hashlib.blake2b(fingerprint, digest_size=NAMESPACE_BYTES - FAMILY_BYTES).digest()
