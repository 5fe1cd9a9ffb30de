"""KVTierConnector: vLLM's OffloadingConnector with kvtier's spec, workers that fail softly, and accounting.

vLLM builds one in EngineCore (scheduler role) and one in every worker. Selected by `--kv-connector kvtier`.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from vllm import __version__ as vllm_version
from vllm.distributed.kv_transfer.kv_connector.v1 import KVConnectorRole
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorTransferResults
from vllm.distributed.kv_transfer.kv_connector.v1.offloading.worker import OffloadingConnectorWorker
from vllm.distributed.kv_transfer.kv_connector.v1.offloading_connector import OffloadingConnector

from kvtier.engines.vllm import allow_list, compat, settings
from kvtier.engines.vllm.manager import KVTierManager
from kvtier.engines.vllm.metadata import KVTierWorkerMetadata
from kvtier.engines.vllm.metrics import without_ours
from kvtier.engines.vllm.namespace import adapter_fingerprint
from kvtier.engines.vllm.scheduler import WholeChunksScheduler
from kvtier.engines.vllm.spec import ENGINE
from kvtier.engines.vllm.worker import KVTierConnectorWorker
from kvtier.keys import NO_ADAPTER, NO_TENANT, adapter_digest, tenant_digest

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.outputs import KVConnectorOutput
    from vllm.v1.request import Request

_LOG = logging.getLogger("vllm.kvtier")


class KVTierConnector(OffloadingConnector):
    """See vLLM's KVConnectorBase_V1 for who calls what when."""

    connector_worker: OffloadingConnectorWorker | None

    def __init__(self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: KVCacheConfig) -> None:
        """Settle the configuration, then let vLLM build its halves over kvtier's spec."""
        settings.refuse_unfit(vllm_config, kv_cache_config)
        if role == KVConnectorRole.SCHEDULER:
            for warning in filter(None, (compat.version_warning(vllm_version), allow_list.excluded())):
                _LOG.warning("kvtier: %s", warning)
        config = settings.settle(vllm_config)
        settings.settle_chunk(vllm_config, kv_cache_config, config)
        token = ENGINE.set(vllm_config)
        try:
            super().__init__(vllm_config, role, kv_cache_config)
        finally:
            ENGINE.reset(token)
        if self.connector_scheduler is not None:
            # vLLM names the class itself, and building another would need the spec that it does not keep.
            self.connector_scheduler.__class__ = WholeChunksScheduler
        self._adapters: dict[tuple[int, str], bytes] = {}
        if self.connector_worker is not None:
            self.connector_worker = KVTierConnectorWorker(self.connector_worker.spec, vllm_config, kv_cache_config)

    @classmethod
    def build_prom_metrics(cls, vllm_config: VllmConfig, *args: Any) -> Any:
        """API server: it never builds a connector, but resolves the spec's metrics from the settled configuration."""
        settings.settle(vllm_config)
        return super().build_prom_metrics(vllm_config, *args)

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> Any:
        """For vLLM's own log line, which kvtier's numbers stay out of: they have one."""
        return super().build_kv_connector_stats(None if data is None else without_ours(data))

    # ---- scheduler side ---------------------------------------------------------------------------------------------

    @property
    def manager(self) -> KVTierManager:
        """The scheduler side's manager."""
        manager = self.scheduler.manager
        assert isinstance(manager, KVTierManager)
        return manager

    def on_new_request(self, request: Request) -> None:
        """As vLLM's, with the tenant and the adapter's own weights in the keys: vLLM hashes its name and path only."""
        lora, salt = request.lora_request, request.cache_salt
        if lora is not None or salt:
            self.manager.announce(
                request.request_id,
                adapter=NO_ADAPTER if lora is None else self._adapter(lora),
                tenant=tenant_digest(salt) if salt else NO_TENANT,
            )
        super().on_new_request(request)

    def get_num_new_matched_tokens(self, request: Request, num_computed_tokens: int) -> tuple[int | None, bool]:
        """As vLLM's, without walking the whole chain again at every step while its promotions are under way."""
        if not self.manager.begin_walk(
            request.request_id, request.num_tokens - num_computed_tokens, num_computed_tokens
        ):
            return None, False
        return super().get_num_new_matched_tokens(request, num_computed_tokens)

    def update_state_after_alloc(self, request: Request, blocks: Any, num_external_tokens: int) -> None:
        """As vLLM's; the request is admitted, so its hits and misses count now."""
        super().update_state_after_alloc(request, blocks, num_external_tokens)
        try:
            self._count(request, num_external_tokens)
        except Exception:  # noqa: BLE001 - what is only counted must not end the engine
            self.manager.note_engine_error("counting a request")

    def _count(self, request: Request, num_external_tokens: int) -> None:
        status = self.scheduler._req_status.get(request.request_id)  # noqa: SLF001
        if status is not None:
            external = self.scheduler.get_external_cache_hit_sources(request, num_external_tokens)
            self.manager.count_request(
                request.request_id,
                request.num_tokens,
                status.num_locally_computed_tokens,
                external,
                status.group_states[0].offload_keys,
            )

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> Any:
        """As vLLM's; a step starts."""
        self.manager.step_scheduled(scheduler_output)
        return super().build_connector_meta(scheduler_output)

    def update_connector_output(self, connector_output: KVConnectorOutput) -> None:
        """As vLLM's; chunks whose copy failed are marked before vLLM reports the copy as complete."""
        self.manager.step_done()
        report = connector_output.kv_connector_worker_meta
        if isinstance(report, KVTierWorkerMetadata) and report.transfer_stats.load.bytes:
            self.manager.onloads_done(report.transfer_stats.load, max(report.completed_jobs.values()))
        if getattr(report, "ready_slots", None):
            self.manager.pool_grew(report.ready_slots)
        for job_id in getattr(report, "failed_jobs", ()):
            job = self.scheduler._jobs.get(job_id)  # noqa: SLF001
            status = self.scheduler._req_status.get(job.req_id) if job is not None else None  # noqa: SLF001
            if job is not None and status is not None:
                self.manager.mark_failed(job.keys, status.req_context)
        super().update_connector_output(connector_output)

    def _adapter(self, lora: Any) -> bytes:
        """Digest of the adapter's weights as they were when this engine first used it."""
        known = (lora.lora_int_id, lora.lora_path)
        if known not in self._adapters or lora.load_inplace:
            self._adapters[known] = adapter_digest(adapter_fingerprint(lora.lora_path))
        return self._adapters[known]

    # ---- worker side ------------------------------------------------------------------------------------------------

    def get_transfer_results(self, finished_req_ids: set[str]) -> KVConnectorTransferResults:
        """Finished transfers, and the requests whose load failed: those recompute."""
        sending, recving = self.get_finished(finished_req_ids)
        worker = self.connector_worker
        failed = worker.take_failed_requests() if isinstance(worker, KVTierConnectorWorker) else set()
        return KVConnectorTransferResults(sending, recving, failed)
