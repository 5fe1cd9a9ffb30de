"""KvtierStorage: the class that SGLang's `dynamic` storage backend loads. Imports SGLang; the work is in Backend."""

from __future__ import annotations

import time
import weakref
from functools import partial
from typing import TYPE_CHECKING, Any

from sglang.srt.mem_cache.hicache_storage import HiCacheStorage, PoolHitPolicy, PoolTransferResult
from sglang.srt.observability.metrics_collector import StorageMetrics

from kvtier.engines.sglang.backend import Backend, name_of
from kvtier.engines.sglang.hits import Hits, find_hits
from kvtier.engines.sglang.metrics import Exporter

if TYPE_CHECKING:
    from collections.abc import Sequence

EXPORT_EVERY_S = 1.0

_RUNNING: weakref.WeakSet[KvtierStorage] = weakref.WeakSet()


def weights_changed() -> None:
    """The weights of this process's model were replaced: tell every backend in it."""
    for backend in list(_RUNNING):
        backend.weights_changed()


class KvtierStorage(Backend, HiCacheStorage):
    """kvtier's disk tier behind SGLang's host tier. SGLang shows users this name as `storage_backend`."""

    def __init__(self, storage_config: Any, kwargs: Any = None) -> None:
        """See Backend."""
        super().__init__(storage_config, kwargs)
        self._metrics = StorageMetrics()
        self._exporter = Exporter.for_rank(storage_config) if storage_config.enable_storage_metrics else None
        self._exported_s = 0.0
        _RUNNING.add(self)

    def batch_exists_v2(
        self, keys: Sequence[str], pool_transfers: Any = None, extra_info: Any = None
    ) -> PoolTransferResult:
        """How long a prefix can be restored with what each pool needs for it."""
        try:
            hits = self._hits(keys, pool_transfers or (), extra_info)
        except Exception:  # noqa: BLE001 - SGLang's thread
            self.note_engine_error("batch_exists_v2")
            hits = Hits(0, {}, [])
        return PoolTransferResult(hits.n_pages, hits.by_pool, hits.restorable)

    def get_stats(self) -> StorageMetrics | None:
        """What was moved since the last call. The scheduler asks in every step, some thousand times a second."""
        now_s = time.monotonic()
        if self._exporter is not None and now_s - self._exported_s >= EXPORT_EVERY_S:
            self._exported_s = now_s
            self._export()
        done = self._metrics
        if not (done.prefetch_pgs or done.backup_pgs):
            return None
        self._metrics = StorageMetrics()
        return done

    def moved(self, *, loaded: bool, n_pages: int, n_bytes: int, seconds: float) -> None:
        """A batch was moved."""
        if n_pages:
            metrics = self._metrics
            pages, rates = (
                (metrics.prefetch_pgs, metrics.prefetch_bandwidth)
                if loaded
                else (metrics.backup_pgs, metrics.backup_bandwidth)
            )
            rates.append(n_bytes / max(seconds, 1e-9) / 1e9)
            pages.append(n_pages)

    def _hits(self, keys: Sequence[str], transfers: Sequence[Any], extra_info: Any) -> Hits:
        n_kv = self.batch_exists(keys, extra_info)
        wanted = [
            (name_of(transfer), transfer.hit_policy == PoolHitPolicy.TRAILING_PAGES, len(transfer.keys or ()))
            for transfer in transfers
            if transfer.hit_policy in (PoolHitPolicy.ALL_PAGES, PoolHitPolicy.TRAILING_PAGES)
        ]
        hits = find_hits(n_kv, wanted, partial(self.held_of, keys[:n_kv]))
        # A policy that is not known here: better no hit than half a hit.
        return hits if len(wanted) == len(transfers) else Hits(0, {}, [])

    def _export(self) -> None:
        try:
            snapshot = self.snapshot()
            if self._exporter is not None and snapshot is not None:
                self._exporter.export(*snapshot)
        except Exception:  # noqa: BLE001 - the scheduler's thread
            self.note_engine_error("get_stats")
