"""What `build` makes, driven as an engine does it: chunks are looked up, loaded and compared, or else stored."""

import random
import time
from collections.abc import Callable, Mapping
from typing import Any

from kvtier import config as config_module
from kvtier.build import build
from kvtier.depot import SharedPool
from kvtier.keys import NO_ADAPTER, NO_TENANT, Namespace
from kvtier.types import ChunkKey, Geometry, Lookup, Miss, Source

PATIENCE_S = 20.0


class BuiltEngine:
    """One start of an engine, from build to stop."""

    def __init__(
        self,
        settings: Mapping[str, object],
        pool: memoryview | SharedPool,
        chunk_bytes: int,
        namespace: Namespace,
        **options: Any,
    ) -> None:
        """`settings` are the configuration, `options` further arguments of `build`."""
        self.pool = pool.view if isinstance(pool, SharedPool) else pool
        self.chunk_bytes = chunk_bytes
        self.n_slots = self.pool.nbytes // chunk_bytes
        self.reports: list[str] = []
        self.lines: list[str] = []
        self.kvtier = build(
            config_module.parse({"version": 1, **settings}),
            Geometry(chunk_bytes, 16, "bfloat16"),
            pool,
            namespace,
            report=self.reports.append,
            emit=self.lines.append,
            **options,
        )
        self.cache = self.kvtier.cache
        self.miss: Miss | None = None  # of the last request

    def keys(self, chunks: range) -> list[ChunkKey]:
        return [ChunkKey(self.kvtier.family + NO_ADAPTER + NO_TENANT + b"chunk %d" % n) for n in chunks]

    def slot(self, number: int) -> memoryview:
        return self.pool[number * self.chunk_bytes : (number + 1) * self.chunk_bytes]

    def content(self, key: ChunkKey) -> bytes:
        """Compressible, and another for every chunk hash."""
        rng = random.Random(key[24:])
        return b"".join(bytes([rng.randrange(256), 0x3F]) for _ in range(64)) * (self.chunk_bytes // 128)

    def request(self, chunks: range) -> list[Source]:
        """Look `chunks` up, load what hits and compare it, store the rest. Returns where the hits came from."""
        keys = self.keys(chunks)
        chain = self.cache.open_chain()
        answers = [Lookup.PENDING]
        while Lookup.PENDING in answers:
            until(lambda: self.cache.begin_walk(chain))
            answers = [self.cache.lookup(chain, key) for key in keys]
        n_hits = (*answers, Lookup.MISS).index(Lookup.MISS)
        slots = self.cache.begin_onload(chain, keys[:n_hits])
        assert slots is not None
        assert [bytes(self.slot(slot)) for slot in slots] == [self.content(key) for key in keys[:n_hits]]
        self.cache.end_onload(keys[:n_hits])
        offload = self.cache.begin_offload(chain, keys[n_hits:])
        for key, slot in zip(offload.keys, offload.slots, strict=True):
            self.slot(slot)[:] = self.content(key)
        self.cache.end_offload(offload.keys)
        self.miss = chain.miss
        self.cache.close_chain(chain)
        return [chain.sources[key] for key in keys[:n_hits]]

    def spilled(self, chunks: range) -> None:
        """Have `chunks` on disk, and the last of them in host."""
        for first in range(chunks.start, chunks.stop, self.n_slots):
            self.request(range(first, min(first + self.n_slots, chunks.stop)))
            until(lambda: not self.cache.n_dirty())

    def stop(self) -> None:
        self.kvtier.stop()


def until(condition: Callable[[], object], what: str = "it did not come to that") -> None:
    give_up_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < give_up_s, what
        time.sleep(0.002)
