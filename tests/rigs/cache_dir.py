"""A cache directory as engines leave it: a store of sealed frames, and the names of its namespaces."""

from __future__ import annotations

import random
from pathlib import Path

from kvtier.codec.frame import frame_bound, seal_into
from kvtier.codec.guard import PLAIN, Guard
from kvtier.codec.registry import codec_for
from kvtier.epoch import NAMESPACES, Epoch
from kvtier.keys import NO_ADAPTER, NO_TENANT, Namespace
from kvtier.store.listing import records_of
from kvtier.store.lmdb import LmdbStore
from kvtier.types import ChunkKey

MIB = 1 << 20
CHUNK_BYTES = 16 << 10
CODEC = codec_for("bfloat16")
LLAMA = Namespace({"model": "/models/Llama-8B", "kv_dtype": "auto bfloat16", "chunk_bytes": CHUNK_BYTES})
QWEN = Namespace({"model": "/models/Qwen-4B", "kv_dtype": "auto bfloat16", "chunk_bytes": CHUNK_BYTES})


def chunk(number: int) -> bytes:
    """KV-like: high bytes that shrink, low bytes that do not. Begins with words that can be looked for."""
    rng = random.Random(number)
    low, high = rng.randbytes(CHUNK_BYTES // 2), rng.choices(b"\x3d\x3e\x3f\xbd\xbe\xbf", k=CHUNK_BYTES // 2)
    return bytes(byte for pair in zip(low, high, strict=True) for byte in pair)


def low_plane(number: int) -> bytes:
    """Bytes of chunk `number` that its frame holds as they are."""
    return chunk(number)[::2]


class CacheDir:
    """Writes as an engine of `namespace` would."""

    def __init__(self, path: Path) -> None:
        self.path = path
        LmdbStore.open(path, 40 * MIB, shard_map_bytes=20 * MIB).close()

    def name(self, namespace: Namespace) -> Epoch:
        """Start an engine of `namespace`, as far as its epoch goes."""
        return Epoch(self.path / NAMESPACES, namespace)

    def key(
        self, number: int, namespace: Namespace = LLAMA, *, epoch: str = "0", tenant: bytes = NO_TENANT
    ) -> ChunkKey:
        return ChunkKey(namespace.family(epoch) + NO_ADAPTER + tenant + random.Random(number).randbytes(32))

    def fill(self, keys: dict[ChunkKey, int], *, written_s: float = 1000.0, guard: Guard = PLAIN) -> None:
        """Store chunk `keys[key]` under each key, in turn in either shard."""
        store = LmdbStore.open(self.path, 40 * MIB, shard_map_bytes=20 * MIB, clock_ns=lambda: int(written_s * 1e9))
        for n, (key, number) in enumerate(keys.items()):
            room = memoryview(bytearray(frame_bound(CHUNK_BYTES, CODEC, guard)))
            n_bytes = seal_into(memoryview(chunk(number)), room, key=key, codec=CODEC, guard=guard)
            store.write(n % 2, [(key, room[:n_bytes])], [])
        store.close()

    def present(self) -> set[ChunkKey]:
        store = LmdbStore.attach(self.path)
        try:
            return {record.key for record in records_of(store.scan())}
        finally:
            store.close()

    def holds(self, words: bytes) -> bool:
        """Whether any shard's file has `words` in it, where-ever."""
        return any(words in file.read_bytes() for file in self.path.glob("shard-*"))

    def corrupt(self, number: int) -> None:
        """Change one byte in the middle of the frame of chunk `number`."""
        words = low_plane(number)
        for file in self.path.glob("shard-*.lmdb"):
            content = file.read_bytes()
            if (at := content.find(words)) >= 0:
                with file.open("r+b") as out:
                    out.seek(at + 100)
                    out.write(bytes([content[at + 100] ^ 1]))
                return
        raise AssertionError(f"chunk {number} is in no file")
