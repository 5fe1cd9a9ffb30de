"""A stand-in for the engine over the cache as built for one: requests go in, every byte that comes out is checked.

`kvtier.build` makes the cache: the real store, codec, transfer threads and files. What is left out is the model: the
"device copies" of a chunk are written and compared here, and a chunk's content follows from its key alone.
"""

import hashlib
import mmap
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO
from unittest import mock

import numpy as np

from kvtier import build as build_module
from kvtier import config as config_module
from kvtier import depot as depot_module
from kvtier.build import Kvtier, build
from kvtier.depot import SharedPool
from kvtier.keys import NO_ADAPTER, NO_TENANT, Namespace
from kvtier.store.base import SharedStore
from kvtier.store.lmdb import LmdbStore
from kvtier.types import ChunkKey, Geometry, Lookup, Source

MIB = 1 << 20
CHUNK_BYTES = 16 << 10
SHARD_BYTES = 8 * MIB
"""Small shards, so that small stores have several. In production a shard is 512 MiB and more."""

NAMESPACE = Namespace({"model": "torture", "dtype": "bfloat16"})
PATIENCE_S = 60.0

# The upper halves of normal floats: what bf16 KV looks like, so the codec has something to do.
_KV = (np.random.default_rng(7).standard_normal(2 << 20, np.float32).view(np.uint32) >> 16).astype(np.uint16).tobytes()


def content(key: ChunkKey, n_bytes: int = CHUNK_BYTES) -> bytes:
    """The KV of a chunk: its key, then a stretch of noise that depends on it."""
    start = 2 * (int.from_bytes(hashlib.blake2b(key, digest_size=6).digest()) % ((len(_KV) - n_bytes) // 2))
    return (key + _KV[start : start + n_bytes])[:n_bytes]


def chunk_hashes(prompt: int, n_chunks: int) -> list[bytes]:
    """As an engine hashes a prompt: each depends on all before it."""
    out = [prompt.to_bytes(8, "big")]
    for _ in range(n_chunks):
        out.append(hashlib.blake2b(out[-1], digest_size=32).digest())
    return out[1:]


@dataclass
class Outcome:
    """What the engine saw."""

    requests: int = 0
    failed: int = 0
    wrong: int = 0
    hits: list[int] = field(default_factory=lambda: [0] * len(Source))  # chunks by Source
    computed: int = 0  # chunks that no tier had
    worst_call_s: float = 0.0  # of the calls of the scheduler thread, without what it waited for a processor
    worst_wait_s: float = 0.0  # that a request waited for its promotions
    errors: list[str] = field(default_factory=list)


class Engine:
    """One start of an engine. `request` never raises; `outcome` says what happened."""

    def __init__(
        self,
        folder: Path,
        *,
        n_slots: int = 32,
        chunk_bytes: int = CHUNK_BYTES,
        capacity_bytes: int = 32 * MIB,
        disk: dict[str, Any] | None = None,
        wrap: Callable[[SharedStore], SharedStore] | None = None,
        shard_bytes: int = SHARD_BYTES,
        more: Mapping[str, Any] = {},
        threads: bool = False,
    ) -> None:
        """Build over `folder`. `more` are settings.

        Bytes move in a helper process, as vLLM has it, or on `threads` of this one, as always where `wrap` puts
        something around the store: faults, a journal.
        """
        self.reports: list[str] = []
        self.outcome = Outcome()
        self.noticed = 0  # what a caller has reported of the counters
        self._chunk_bytes = chunk_bytes
        self._pool, self._fd = memoryview(bytearray(n_slots * chunk_bytes)), -1
        if wrap is None and not threads:
            self._fd = os.memfd_create("torture-pool")
            os.ftruncate(self._fd, n_slots * chunk_bytes)
            self._pool = memoryview(mmap.mmap(self._fd, n_slots * chunk_bytes))
        self.n_slots = n_slots
        settings = {
            "version": 1,
            "disk": {
                "path": str(folder), "capacity": f"{capacity_bytes}B", "write_behind_after": "0s", "load": "always",
                **(disk or {}),
            },
            "log": {"every": "1h"},
            **more,
        }  # fmt: skip
        with (
            mock.patch.object(depot_module, "LmdbStore", _opener(wrap)),
            mock.patch.object(build_module, "shard_map_bytes_for", return_value=shard_bytes),
        ):
            self.kvtier: Kvtier = build(
                config_module.parse(settings),
                Geometry(chunk_bytes, 16, "bfloat16"),
                self._pool if self._fd < 0 else SharedPool(self._pool, self._fd),
                NAMESPACE,
                report=self.reports.append,
                emit=lambda _: None,
            )
        self.cache = self.kvtier.cache
        self.has_disk = self.cache.disk is not None

    def keys(self, prompt: int, n_chunks: int) -> list[ChunkKey]:
        """The chain of a prompt."""
        head = self.kvtier.family + NO_ADAPTER + NO_TENANT
        return [ChunkKey(head + chunk_hash) for chunk_hash in chunk_hashes(prompt, n_chunks)]

    def request(self, prompt: int, n_chunks: int, *, copies_fail: bool = False) -> None:
        """Look a prompt up, load what hits and compare it, compute and store the rest."""
        self.requests([(prompt, n_chunks)], copies_fail=copies_fail)

    def requests(self, prompts: Sequence[tuple[int, int]], *, copies_fail: bool = False) -> None:
        """Several at once, step by step in turn, as a scheduler does: `(prompt, chunks)` each."""
        running = [self._serve(self.keys(*prompt), copies_fail=copies_fail) for prompt in prompts]
        while running:
            running = [request for request in running if next(request, True) is None]
            self._call(self.cache.step_ended)
            if running:
                time.sleep(0.0002)

    def _serve(self, keys: Sequence[ChunkKey], *, copies_fail: bool) -> Iterator[None]:
        """One request; yields whenever it has to wait for the next step."""
        self.outcome.requests += 1
        started_s = time.monotonic()
        try:
            chain = self._call(self.cache.open_chain)
            try:
                while (n_hits := self._walk(chain, keys)) is None:
                    if time.monotonic() - started_s > PATIENCE_S:
                        raise TimeoutError("the request was never scheduled")
                    yield
                self.outcome.worst_wait_s = max(self.outcome.worst_wait_s, time.monotonic() - started_s)
                self._onload(chain, keys[:n_hits], failed=copies_fail)
                self._offload(chain, keys[n_hits:], failed=copies_fail)
            finally:
                self._call(self.cache.close_chain, chain)
        except Exception as error:  # noqa: BLE001 - whatever reaches the engine is a failed request
            self.outcome.failed += 1
            self.outcome.errors.append(f"{type(error).__name__}: {error}")

    def _walk(self, chain: Any, keys: Sequence[ChunkKey]) -> int | None:
        """How many chunks of the head hit; None while some are on their way."""
        self.kvtier.last_engine_call_s = time.monotonic()
        if not self._call(self.cache.begin_walk, chain, len(keys)):
            return None
        n_hits = 0
        for key in keys:
            answer = self._call(self.cache.lookup, chain, key)
            if answer is Lookup.PENDING:
                n_hits = -len(keys)
            elif answer is Lookup.MISS:
                break
            n_hits += 1
        return n_hits if n_hits >= 0 else None

    def _onload(self, chain: Any, keys: Sequence[ChunkKey], *, failed: bool) -> None:
        if not keys:
            return
        slots = self._call(self.cache.begin_onload, chain, keys)
        if slots is None:
            raise RuntimeError("a chunk that was promised is gone")
        for key, slot in zip(keys, slots, strict=True):
            self.outcome.wrong += bytes(self._slot(slot)) != content(key, self._chunk_bytes)
            self.outcome.hits[chain.sources[key]] += 1
        self._call(self.cache.end_onload, keys, failed=failed)

    def _offload(self, chain: Any, keys: Sequence[ChunkKey], *, failed: bool) -> None:
        offload = self._call(self.cache.begin_offload, chain, keys)
        for key, slot in zip(offload.keys, offload.slots, strict=True):
            self._slot(slot)[:] = content(key, self._chunk_bytes)
        self._call(self.cache.end_offload, offload.keys, failed=failed)
        self.outcome.computed += len(keys)

    def idle(self) -> None:
        """The engine has had nothing to do for a while: the spiller may take all its time."""
        self.kvtier.last_engine_call_s = float("-inf")

    def settle(self, patience_s: float = PATIENCE_S) -> bool:
        """Wait until everything worth writing is written; False when that did not happen."""
        self.idle()
        give_up_s = time.monotonic() + patience_s
        while self.cache.snapshot(0.0)[1].spill_backlog:
            if time.monotonic() > give_up_s:
                return False
            time.sleep(0.002)
        return True

    def push_out(self, marker: int) -> None:
        """Fill the host pool with a prompt nobody asks for again, so that what is served next comes from disk."""
        for n in range(2):
            self.request((1 << 40) + 2 * marker + n, self.n_slots)
            self.settle()

    def count(self, name: str) -> int:
        """A counter of the cache."""
        return int(getattr(self.cache.stats, name))

    def stop(self) -> None:
        self.kvtier.stop()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _slot(self, number: int) -> memoryview:
        return self._pool[number * self._chunk_bytes : (number + 1) * self._chunk_bytes]

    def _call(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        started_s = time.monotonic() - _queued_s()
        try:
            return function(*arguments, **named)
        finally:
            self.outcome.worst_call_s = max(self.outcome.worst_call_s, time.monotonic() - _queued_s() - started_s)


@cache
def _statistics(thread: int) -> BinaryIO:
    return Path(f"/proc/self/task/{thread}/schedstat").open("rb", buffering=0)


def _queued_s() -> float:
    """Seconds that the calling thread was ready to run, and no processor was there for it, in its whole life."""
    return int(os.pread(_statistics(threading.get_native_id()).fileno(), 64, 0).split()[1]) / 1e9


def _opener(wrap: Callable[[SharedStore], SharedStore] | None) -> Any:
    """LmdbStore, or what opens one and wraps it."""
    if wrap is None:
        return LmdbStore

    class Opener:
        @staticmethod
        def open(*arguments: Any, **named: Any) -> Any:
            store = LmdbStore.open(*arguments, **named)
            wrapped: Any = wrap(store)
            wrapped.notices = store.notices
            return wrapped

    return Opener


def traffic(engine: Engine, rng: random.Random, *, n_prompts: int = 60, max_chunks: int = 12, at_once: int = 1) -> None:
    """Requests as a server sees them: few prompts often, many seldom, of any length, now and then a failed copy."""
    drawn = [int(rng.paretovariate(0.8)) % n_prompts for _ in range(at_once)]
    prompts = [(prompt, 1 + prompt * 7 % max_chunks) for prompt in drawn]
    engine.requests(prompts, copies_fail=rng.random() < 0.01)
