"""KVTierSpec: vLLM's host-pool layout, our manager on the scheduler side and, off CUDA, our copies on the worker's."""

from __future__ import annotations

import logging
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from vllm.platforms import current_platform
from vllm.v1.kv_offload.cpu.gpu_worker import CPUOffloadingWorker
from vllm.v1.kv_offload.cpu.spec import CPUOffloadingSpec

from kvtier.engines.vllm.host_worker import HostWorker
from kvtier.engines.vllm.manager import KVTierManager
from kvtier.engines.vllm.metrics import build_definitions
from kvtier.engines.vllm.region import map_pool, open_region, unpinned
from kvtier.engines.vllm.warm import Pin, Populate, Warmer, lazy_region
from kvtier.errors import ConfigError
from kvtier.machine import Machine

if TYPE_CHECKING:
    from collections.abc import Callable

    from vllm.config import VllmConfig
    from vllm.v1.kv_offload.base import (
        CanonicalKVCaches,
        OffloadingManager,
        OffloadingMetricMetadata,
        OffloadingWorker,
    )

_LOG = logging.getLogger("vllm.kvtier")

ENGINE: ContextVar[VllmConfig] = ContextVar("kvtier_vllm_config")
"""Set by the connector while vLLM builds the spec and its manager: vLLM hands them its OffloadingConfig only."""


class KVTierSpec(CPUOffloadingSpec):
    """Built by vLLM in EngineCore and in every worker."""

    _manager: OffloadingManager | None
    _worker: OffloadingWorker | None
    warmer: Warmer | None = None
    """Of a worker: what makes the pool's pages usable."""

    @classmethod
    def build_metric_definitions(cls, extra_config: dict[str, Any]) -> dict[str, OffloadingMetricMetadata]:
        """vLLM's metrics of a host pool, and ours."""
        return {**super().build_metric_definitions(extra_config), **build_definitions()}

    def get_manager(self) -> OffloadingManager:
        """Map the region the workers made, and build the manager over it. EngineCore, after all workers have mapped."""
        if self._manager is None:
            self._manager = KVTierManager.build(
                ENGINE.get(), self, map_pool(self.config.engine_id, self.num_chunks * self.kv_bytes_per_chunk)
            )
        return self._manager

    def get_worker(self, kv_caches: CanonicalKVCaches) -> OffloadingWorker:
        """The worker of this rank, built on first use."""
        if self._worker is None:
            self._worker = self.create_worker(kv_caches)
        return self._worker

    def _uses_shared_region(self) -> bool:
        """Always: scheduler and workers are different processes on every platform."""
        return True

    def create_worker(self, kv_caches: CanonicalKVCaches) -> Any:
        """Build the worker that copies, over this rank's part of the shared region."""
        if self.num_chunks == 0:
            raise ConfigError(
                f"host.capacity: {self.extra_config['cpu_bytes_to_use']} bytes do not hold one chunk of "
                f"{self.kv_bytes_per_chunk} bytes; raise host.capacity or lower chunk.tokens"
            )
        with lazy_region():
            region = open_region(
                self.config.engine_id,
                num_chunks=self.num_chunks,
                rank=0 if self.replicated_layout else self.config.parallel.rank,
                bytes_per_chunk=self.kv_bytes_per_chunk,
                page_bytes=self.cpu_page_size_per_worker,
            )
        try:
            populate = Populate(region, self.cpu_page_size_per_worker)
            if current_platform.is_cpu():
                self._warm(populate)
                return HostWorker(kv_caches, self.blocks_per_chunk, region)
            pin = Pin(region, populate, kv_caches.tensors[0].tensor.device)
            with lazy_region(lambda _: self._warm(pin)):
                worker = CPUOffloadingWorker(
                    kv_caches=kv_caches,
                    blocks_per_chunk=self.blocks_per_chunk,
                    num_cpu_chunks=self.num_chunks,
                    mmap_region=region,
                )
            if self.warmer is None:  # vLLM had no use for our way of pinning, or pinned everything itself
                self._warm(populate)
            if not region.is_pinned:
                _LOG.warning("kvtier: %s", unpinned(Machine.here(), region.total_size_bytes))
        except Exception:
            if self.warmer is not None:
                self.warmer.stop()
            region.cleanup()
            raise
        return worker

    def _warm(self, prepare: Callable[[int, int], None]) -> None:
        """Make the pool usable: its first piece now, the others while the engine serves."""
        self.warmer = Warmer(
            self.num_chunks, self.kv_bytes_per_chunk, prepare, lambda line: _LOG.warning("kvtier: %s", line)
        )
        self.warmer.begin()
        self.warmer.go_on()
