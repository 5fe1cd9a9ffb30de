"""What scheduler and workers tell each other beyond vLLM's own messages: loads and stores that failed, and how much
of the host pool is ready.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.offloading.common import OffloadingWorkerMetadata
from vllm.v1.kv_offload.cpu.common import CPULoadStoreSpec


class ImpossibleLoadSpec(CPULoadStoreSpec):
    """Stands for a load whose chunks are gone: the worker reports it as failed, and the engine recomputes."""

    def __init__(self) -> None:
        super().__init__([])


@dataclass
class KVTierWorkerMetadata(OffloadingWorkerMetadata):
    """Completed jobs of one worker, which of them failed, and how much of the host pool it has made ready."""

    failed_jobs: set[int] = field(default_factory=set)
    ready_slots: dict[int, int] = field(default_factory=dict)  # by worker; empty when nothing has changed

    def aggregate(self, other: Any) -> KVTierWorkerMetadata:
        """Sum two workers' reports: a job failed if it failed on any of them."""
        merged = super().aggregate(other)
        return KVTierWorkerMetadata(
            completed_jobs=merged.completed_jobs,
            transfer_stats=merged.transfer_stats,
            failed_jobs=self.failed_jobs | getattr(other, "failed_jobs", set()),
            ready_slots=self.ready_slots | getattr(other, "ready_slots", {}),
        )
