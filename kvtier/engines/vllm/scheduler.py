"""Scheduler side: vLLM's bookkeeping in, the same without chunks that have holes out; and prefixes asked for whole."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Any

from vllm.distributed.kv_transfer.kv_connector.v1.offloading.scheduler import OffloadingConnectorScheduler

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vllm.v1.core.sched.output import SchedulerOutput


class WholeChunksScheduler(OffloadingConnectorScheduler):
    """vLLM's scheduler half, told of chunks with holes.

    A layer with a sliding window gives blocks back while the chunk they are of is still growing, and vLLM 0.32 then
    hands the worker the ones that are left as if they were consecutive: they would land in each other's places, under
    a key that says that the chunk is whole.
    """

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> Any:
        """As vLLM's, which asserts that a preempted request is not loading.

        One that a reset of the device's cache preempted may be: the step that reports it is the one that resumes it. It
        has no stores to be flushed, or it would not have been looked up.
        """
        preempted = scheduler_output.preempted_req_ids
        if preempted and not preempted.isdisjoint(job.req_id for job in self._current_batch_load_jobs.values()):
            loading = {job.req_id for job in self._current_batch_load_jobs.values()}
            scheduler_output = replace(scheduler_output, preempted_req_ids=preempted - loading)
        return super().build_connector_meta(scheduler_output)

    def _maximal_prefix_lookup(self, keys: Iterable[bytes], req_context: Any, *rest: Any) -> int | None:
        """As vLLM's, which asks for each chunk by itself, in one call.

        Unless it has to tell its event tracker of each that hits.
        """
        if self._events_tracker.self_describing_enabled:
            return super()._maximal_prefix_lookup(keys, req_context, *rest)
        found = self.manager.lookup_prefix(keys, req_context)
        return None if found.pending else found.n_chunks

    def _build_store_jobs(self, scheduler_output: SchedulerOutput) -> Any:
        if self._sliding_window_groups and self.config.blocks_per_chunk > 1:
            for req_id in chain(scheduler_output.num_scheduled_tokens, scheduler_output.finished_req_ids or ()):
                status = self._req_status.get(req_id)
                if status is not None:
                    self._give_up_holed_chunks(status)
        return super()._build_store_jobs(scheduler_output)

    def _give_up_holed_chunks(self, status: Any) -> None:
        """Take the last block from every whole-length chunk that has lost another: vLLM then passes over the chunk."""
        n = self.config.blocks_per_chunk
        for index in self._sliding_window_groups:
            group = status.group_states[index]
            if self.config.kv_group_configs[index].requires_cow_source:
                continue  # recurrent state: only a chunk's last block is ever stored, and on another path
            ids = group.block_ids
            # A finished request's tail is looked at once more, from further back.
            first = 0 if status.req.is_finished() else group.next_stored_chunk_idx * n
            for end in range(first + n, len(ids) + 1, n):
                if ids[end - 1] and 0 in ids[end - n : end - 1]:
                    ids[end - 1] = 0
