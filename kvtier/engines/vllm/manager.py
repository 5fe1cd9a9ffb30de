"""KVTierManager: vLLM's OffloadingManager, translated call by call onto a TieredCache.

vLLM calls it on EngineCore's main thread. An exception in any of these methods would end the engine, so each one is
fenced: it is counted, logged once, and answered with what costs a recompute and nothing else.
"""

from __future__ import annotations

import functools
import logging
import time
from typing import TYPE_CHECKING, Any

from vllm.platforms import current_platform
from vllm.v1.kv_offload.base import (
    LookupResult,
    OffloadingManager,
    PrepareStoreOutput,
    ReqContext,
    RequestOffloadingContext,
)
from vllm.v1.kv_offload.cpu.common import CPULoadStoreSpec
from vllm.v1.metrics.cache_hit_source import CacheHitSource

from kvtier import build
from kvtier.engines.vllm.metadata import ImpossibleLoadSpec
from kvtier.engines.vllm.metrics import to_connector_stats
from kvtier.engines.vllm.namespace import build_namespace
from kvtier.engines.vllm.settings import settle
from kvtier.engines.vllm.warm import first_slots
from kvtier.keys import FAMILY_BYTES, NO_ADAPTER, NO_TENANT
from kvtier.observe.stats import Stats
from kvtier.types import ChunkKey, Found, Geometry, Lookup, Source

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from kvtier.depot import SharedPool
    from kvtier.residency import Chain

_LOG = logging.getLogger("vllm.kvtier")

EXPORT_EVERY_S = 1.0

_LOOKUP = {Lookup.HIT: LookupResult.HIT, Lookup.PENDING: LookupResult.HIT_PENDING, Lookup.MISS: LookupResult.MISS}
_SOURCE = {Source.DEVICE: CacheHitSource.DEVICE, Source.HOST: CacheHitSource.HOST, Source.DISK: CacheHitSource.DISK}


def _fenced(on_error: Callable[[], Any]) -> Callable[[Any], Any]:
    """Turn an exception of a manager method into the answer `on_error()`, a counter and one log line."""

    def wrap(method: Any) -> Any:
        @functools.wraps(method)
        def fenced(self: KVTierManager, *args: Any, **kwargs: Any) -> Any:
            try:
                return method(self, *args, **kwargs)
            except Exception:  # noqa: BLE001 - see the module's first lines
                self.note_engine_error(method.__name__)
                return on_error()

        return fenced

    return wrap


class _Request:
    """What the manager keeps of one request: its chain and the namespace that its keys begin with."""

    __slots__ = ("chain", "loading", "prefix", "walked")

    def __init__(self, chain: Chain, prefix: bytes) -> None:
        self.chain = chain
        self.prefix = prefix
        self.walked = False  # looked up, and not yet counted as admitted
        self.loading = False  # a load is under way, for which slots were given out


class KVTierManager(OffloadingManager):
    """One per engine. See vLLM's OffloadingManager for who calls what when."""

    def __init__(self, kvtier: build.Kvtier, tokens_per_chunk: int, *, n_workers: int = 1) -> None:
        self._kvtier = kvtier
        self._cache = kvtier.cache
        self._tokens_per_chunk = tokens_per_chunk
        self._n_workers = n_workers
        self._ready_slots: dict[int, int] = {}  # by worker
        self._requests: dict[str, _Request] = {}
        self._owners: dict[str, bytes] = {}  # request id -> adapter and tenant, from connector to on_new_request
        self._failed: set[ChunkKey] = set()  # chunks whose copy a worker reported as failed
        self._complained = False
        self._exported = Stats()
        self._exported_s = 0.0

    @classmethod
    def build(cls, vllm_config: Any, spec: Any, pool: SharedPool) -> KVTierManager:
        """Open the tiers over the mapped host pool. EngineCore, main thread, once."""
        config = settle(vllm_config)
        geometry = Geometry(
            chunk_bytes=spec.kv_bytes_per_chunk,
            tokens_per_chunk=max(spec.tokens_per_block) * spec.blocks_per_chunk,
            dtype=spec.config.model.dtype,
        )
        return cls(
            build.build(
                config,
                geometry,
                pool,
                build_namespace(vllm_config, spec.config, spec.kv_bytes_per_chunk),
                report=lambda line: _LOG.warning("kvtier: %s", line),
                emit=_LOG.info,
                n_ready_slots=first_slots(spec.num_chunks, spec.kv_bytes_per_chunk),
                model_on_processors=current_platform.is_cpu(),
            ),
            geometry.tokens_per_chunk,
            n_workers=spec.config.parallel.world_size,
        )

    # ---- vLLM's interface -------------------------------------------------------------------------------------------

    @_fenced(RequestOffloadingContext)
    def on_new_request(self, req_context: ReqContext) -> RequestOffloadingContext:
        """A request arrived."""
        self._open(req_context)
        return RequestOffloadingContext()

    @_fenced(lambda: LookupResult.MISS)
    def lookup(self, key: bytes, req_context: ReqContext) -> LookupResult:
        """Where is one chunk?"""
        request = self._request(req_context)
        return _LOOKUP[self._cache.lookup(request.chain, ChunkKey(request.prefix + key))]

    @_fenced(lambda: Found(0, pending=False))
    def lookup_prefix(self, keys: Iterable[bytes], req_context: ReqContext) -> Found:
        """`lookup` of chunks that follow each other, head first and up to the first that is a miss."""
        request = self._request(req_context)
        prefix = request.prefix
        return self._cache.lookup_prefix(request.chain, (ChunkKey(prefix + key) for key in keys))

    @_fenced(lambda: CacheHitSource.EXTERNAL_UNSPECIFIED)
    def get_load_source(self, key: bytes, req_context: ReqContext) -> CacheHitSource:
        """Which tier a chunk that hit came from."""
        request = self._request(req_context)
        return _SOURCE[request.chain.sources.get(ChunkKey(request.prefix + key), Source.HOST)]

    @_fenced(ImpossibleLoadSpec)
    def prepare_load(self, keys: Collection[bytes], req_context: ReqContext) -> CPULoadStoreSpec:
        """Slots to load from; the request recomputes if one is gone after all."""
        request = self._request(req_context)
        slots = self._cache.begin_onload(request.chain, self._keys(request, keys))
        if slots is None:
            self.note_engine_error("prepare_load")
            return ImpossibleLoadSpec()
        request.loading = True
        return CPULoadStoreSpec(slots)

    @_fenced(lambda: None)
    def complete_load(self, keys: Collection[bytes], req_context: ReqContext) -> None:
        """A load has ended on all ranks."""
        request = self._request(req_context)
        ours = self._keys(request, keys)
        failed = self._take_failed(ours)
        # An impossible load ends too, but pinned nothing: the pins on its chunks are those of other requests' copies.
        if request.loading:
            request.loading = False
            self._cache.end_onload(ours, failed=failed)

    @_fenced(lambda: PrepareStoreOutput([], CPULoadStoreSpec([]), []))
    def prepare_store(self, keys: Collection[bytes], req_context: ReqContext) -> PrepareStoreOutput:
        """Which of the computed chunks to copy down, and where."""
        request = self._request(req_context)
        offload = self._cache.begin_offload(request.chain, self._keys(request, keys))
        skip = len(request.prefix)
        return PrepareStoreOutput([key[skip:] for key in offload.keys], CPULoadStoreSpec(offload.slots), [])

    @_fenced(lambda: None)
    def complete_store(self, keys: Collection[bytes], req_context: ReqContext, success: bool = True) -> None:
        """A store has landed on all ranks."""
        ours = self._keys(self._request(req_context), keys)
        self._cache.end_offload(ours, failed=self._take_failed(ours) or not success)

    @_fenced(lambda: None)
    def on_request_finished(self, req_context: ReqContext) -> None:
        """A request has ended, however. Completions of its transfers may still come."""
        request = self._requests.pop(req_context.req_id, None)
        if request is not None:
            self._cache.close_chain(request.chain)

    @_fenced(lambda: None)
    def on_schedule_end(self, context: Any) -> None:
        """One step was scheduled."""
        del context
        self._kvtier.last_engine_call_s = time.monotonic()
        self._cache.step_ended()

    @_fenced(lambda: None)
    def reset_cache(self) -> None:
        """The weights may have changed: nothing stored so far may be found again."""
        self._failed.clear()
        self._kvtier.reset()
        for request in self._requests.values():
            request.prefix = self._kvtier.family + request.prefix[FAMILY_BYTES:]

    @_fenced(lambda: None)
    def get_stats(self) -> Any:
        """Metrics since the last export, at most once a second. Polled every step."""
        now = time.monotonic()
        if now - self._exported_s < EXPORT_EVERY_S:
            return None
        self._exported_s = now
        total, gauges = self._cache.snapshot(self._kvtier.prefill_rate.tokens_per_s)
        interval, self._exported = total - self._exported, total
        return to_connector_stats(interval, gauges)

    @_fenced(lambda: None)
    def shutdown(self) -> None:
        """End all threads. vLLM often kills the process instead, so nothing depends on it."""
        self._kvtier.stop()

    # ---- the connector's --------------------------------------------------------------------------------------------

    def announce(self, req_id: str, *, adapter: bytes = NO_ADAPTER, tenant: bytes = NO_TENANT) -> None:
        """The next request `req_id` uses a LoRA adapter, or belongs to a tenant. Before its on_new_request."""
        self._owners[req_id] = adapter + tenant

    @_fenced(lambda: True)
    def begin_walk(self, req_id: str, n_tokens: int, n_before: int) -> bool:
        """vLLM is about to look up a request's keys; False while that is pointless because promotions are under way.

        `n_before` of the request's tokens are in the device's cache, `n_tokens` are not.
        """
        request = self._requests.get(req_id)
        if request is None:
            return True
        if not self._cache.begin_walk(request.chain, n_tokens // self._tokens_per_chunk, n_before):
            return False
        request.walked = True
        return True

    @_fenced(lambda: None)
    def count_request(
        self, req_id: str, asked: int, device: int, external: dict[Any, int], keys: Collection[bytes]
    ) -> None:
        """A looked-up request was admitted; `external` are its tokens by CacheHitSource, `keys` its whole chunks."""
        request = self._requests.get(req_id)
        if request is None or not request.walked:
            return
        request.walked = False
        if self._kvtier.recorder is not None:
            self._kvtier.recorder.record(time.time(), asked, self._keys(request, keys))
        disk = external.get(CacheHitSource.DISK, 0)
        self._cache.count_request(request.chain, asked, device, sum(external.values()) - disk, disk)

    @_fenced(lambda: None)
    def step_scheduled(self, scheduler_output: Any) -> None:
        """A step goes to the workers."""
        cached = scheduler_output.scheduled_cached_reqs
        before = dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
        before |= {new.req_id: new.num_computed_tokens for new in scheduler_output.scheduled_new_reqs}
        guessed = scheduler_output.scheduled_spec_decode_tokens
        n_tokens = n_pairs = 0
        for req_id, n in scheduler_output.num_scheduled_tokens.items():
            if n > 1 and req_id not in guessed:  # prefill: one token is decoding, and so is one with guesses behind it
                n_tokens += n
                n_pairs += n * (before[req_id] + n // 2)
        self._kvtier.prefill_rate.step_scheduled(time.monotonic(), n_tokens, n_pairs / n_tokens if n_tokens else 0.0)

    @_fenced(lambda: None)
    def onloads_done(self, stats: Any, n_workers: int) -> None:
        """`n_workers` at a time copied from host to device: vLLM's DirectionalTransferStats, summed over them."""
        self._kvtier.copy_rate.copied(stats.bytes, stats.time / n_workers)

    @_fenced(lambda: None)
    def step_done(self) -> None:
        """The oldest step has come back."""
        self._kvtier.prefill_rate.step_done(time.monotonic())

    @_fenced(lambda: None)
    def mark_failed(self, keys: Collection[bytes], req_context: ReqContext) -> None:
        """A worker reported that copying these chunks failed; their completion is still to come."""
        self._failed.update(self._keys(self._request(req_context), keys))

    @_fenced(lambda: None)
    def pool_grew(self, ready_slots: dict[int, int]) -> None:
        """Workers reported how many slots of the pool they have made ready; what all have may be used."""
        self._ready_slots |= ready_slots
        if len(self._ready_slots) == self._n_workers:
            self._cache.grow_host(min(self._ready_slots.values()))

    def note_engine_error(self, where: str) -> None:
        """Count an error at the engine's door, and log the first."""
        self._cache.stats.engine_errors += 1
        if not self._complained:
            self._complained = True
            _LOG.exception("kvtier: %s failed; the engine goes on without this answer (logged once, counted)", where)

    # ---- own --------------------------------------------------------------------------------------------------------

    def _request(self, req_context: ReqContext) -> _Request:
        return req_context.get_state(_Request) or self._open(req_context)

    def _open(self, req_context: ReqContext) -> _Request:
        prefix = self._kvtier.family + self._owners.pop(req_context.req_id, NO_ADAPTER + NO_TENANT)
        before = self._requests.get(req_context.req_id)
        if before is not None:
            self._cache.close_chain(before.chain)
        request = _Request(self._cache.open_chain(), prefix)
        req_context.set_state(request)
        self._requests[req_context.req_id] = request
        return request

    def _take_failed(self, keys: Collection[ChunkKey]) -> bool:
        if not self._failed or self._failed.isdisjoint(keys):
            return False
        self._failed.difference_update(keys)
        return True

    @staticmethod
    def _keys(request: _Request, keys: Collection[bytes]) -> list[ChunkKey]:
        prefix = request.prefix
        return [ChunkKey(prefix + key) for key in keys]
