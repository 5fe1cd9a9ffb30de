"""Worker side: copies that fail are reported to the scheduler instead of ending the engine."""

from __future__ import annotations

import logging
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.offloading.worker import OffloadingConnectorWorker
from vllm.v1.kv_offload.base import GPULoadStoreSpec, LoadStoreSpec, OffloadingWorker, TransferResult

from kvtier.engines.vllm.metadata import ImpossibleLoadSpec, KVTierWorkerMetadata

_LOG = logging.getLogger("vllm.kvtier")


class FailSoftWorker(OffloadingWorker):
    """Wraps the worker that copies: an exception or a failure becomes a failed job. Worker main thread only."""

    def __init__(self, inner: OffloadingWorker) -> None:
        self._inner = inner
        self._failed_now: list[TransferResult] = []
        self.failed_jobs: set[int] = set()  # taken by whoever reports them

    def submit_store(self, job_id: int, src_spec: GPULoadStoreSpec, dst_spec: LoadStoreSpec) -> bool:
        """Start a store; a failure to start is reported as a finished, failed job."""
        return self._submit(self._inner.submit_store, job_id, src_spec, dst_spec)

    def submit_load(self, job_id: int, src_spec: LoadStoreSpec, dst_spec: GPULoadStoreSpec) -> bool:
        """Start a load, unless its chunks are known to be gone."""
        if isinstance(src_spec, ImpossibleLoadSpec):
            self._fail(job_id)
            return True
        return self._submit(self._inner.submit_load, job_id, src_spec, dst_spec)

    def get_finished(self) -> list[TransferResult]:
        """Finished jobs, all of them as successes for vLLM's bookkeeping; `failed_jobs` has the others."""
        finished = [*self._failed_now]
        self._failed_now.clear()
        for result in self._inner.get_finished():
            if result.success:
                finished.append(result)
            else:
                self.failed_jobs.add(result.job_id)
                finished.append(TransferResult(result.job_id, True))
        return finished

    def wait(self, job_ids: set[int]) -> None:
        """Block until the jobs have ended."""
        self._inner.wait(job_ids)

    def shutdown(self) -> None:
        """Drain and release."""
        self._inner.shutdown()

    def _submit(self, submit: Any, job_id: int, src: Any, dst: Any) -> bool:
        try:
            if submit(job_id, src, dst):
                return True
            _LOG.warning("kvtier: a device copy was refused; its tokens are recomputed")
        except Exception:  # noqa: BLE001 - an exception here would end the engine
            _LOG.exception("kvtier: a device copy failed; its tokens are recomputed")
        self._fail(job_id)
        return True

    def _fail(self, job_id: int) -> None:
        self.failed_jobs.add(job_id)
        self._failed_now.append(TransferResult(job_id, True))


class KVTierConnectorWorker(OffloadingConnectorWorker):
    """vLLM's worker half, reporting failed loads so that their requests recompute."""

    worker: OffloadingWorker | None

    def __init__(self, spec: Any, vllm_config: Any, kv_cache_config: Any) -> None:
        super().__init__(spec, vllm_config, kv_cache_config)
        self._connector_worker_meta = KVTierWorkerMetadata()
        self._failed_requests: set[str] = set()
        self._told_ready = 0

    def _init_worker(self, kv_caches: Any) -> None:
        self.worker = FailSoftWorker(self.spec.get_worker(kv_caches))

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str], set[str]]:
        """As vLLM's; requests whose load failed are finished too, and `take_failed_requests` names them."""
        load_jobs = dict(self._load_jobs)
        finished = super().get_finished(finished_req_ids)
        worker = self.worker
        if isinstance(worker, FailSoftWorker) and worker.failed_jobs:
            for job_id in worker.failed_jobs:
                if job_id in load_jobs:
                    self._failed_requests.add(load_jobs[job_id])
            self._connector_worker_meta.failed_jobs |= worker.failed_jobs
            worker.failed_jobs = set()
        return finished

    def take_failed_requests(self) -> set[str]:
        """Requests whose load failed since the last call."""
        failed, self._failed_requests = self._failed_requests, set()
        return failed

    def build_connector_worker_meta(self) -> KVTierWorkerMetadata | None:
        """Completed and failed jobs, and what became ready of the pool, since the last call."""
        meta = self._connector_worker_meta
        warmer = getattr(self.spec, "warmer", None)
        if warmer is not None and warmer.n_ready != self._told_ready:
            self._told_ready = warmer.n_ready
            meta.ready_slots = {self.spec.config.parallel.rank: self._told_ready}
        if not meta.completed_jobs and not meta.ready_slots:
            return None
        self._connector_worker_meta = KVTierWorkerMetadata()
        return meta

    def shutdown(self) -> None:
        """As vLLM's, once nobody makes pages of the pool any more."""
        warmer = getattr(self.spec, "warmer", None)
        if warmer is not None:
            warmer.stop()
        super().shutdown()
        self._connector_worker_meta = KVTierWorkerMetadata()
