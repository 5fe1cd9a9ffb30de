"""HostWorker: device <-> slot copies on vLLM's CPU platform, where the "device" cache is ordinary memory.

vLLM's own worker drives CUDA copies and refuses to run here. Copies are done on the worker's main thread, in submit_*.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from vllm.v1.kv_offload.base import GPULoadStoreSpec, LoadStoreSpec, OffloadingWorker, TransferResult

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from vllm.v1.kv_offload.base import BlockIDsLoadStoreSpec, CanonicalKVCaches
    from vllm.v1.kv_offload.cpu.shared_offload_region import SharedOffloadRegion


class HostWorker(OffloadingWorker):
    """Copies whole pages between vLLM's CPU KV cache and the shared region."""

    def __init__(self, kv_caches: CanonicalKVCaches, blocks_per_chunk: int, region: SharedOffloadRegion) -> None:
        """Carve one view per tensor out of this rank's part of each slot, as vLLM's CUDA worker does."""
        self._blocks_per_chunk = blocks_per_chunk
        self._groups = kv_caches.group_data_refs
        self._device = [tensor.tensor for tensor in kv_caches.tensors]
        self._pages = [tensor.page_size_bytes for tensor in kv_caches.tensors]
        self._host = [region.create_next_worker_view(page * blocks_per_chunk) for page in self._pages]
        self._region = region
        self._finished: list[TransferResult] = []

    def submit_store(self, job_id: int, src_spec: GPULoadStoreSpec, dst_spec: LoadStoreSpec) -> bool:
        """Copy device blocks into their slots."""
        self._run(job_id, src_spec, dst_spec, store=True)
        return True

    def submit_load(self, job_id: int, src_spec: LoadStoreSpec, dst_spec: GPULoadStoreSpec) -> bool:
        """Copy slots into their device blocks."""
        self._run(job_id, dst_spec, src_spec, store=False)
        return True

    def get_finished(self) -> list[TransferResult]:
        """Results since the last call."""
        finished, self._finished = self._finished, []
        return finished

    def wait(self, job_ids: set[int]) -> None:
        """Nothing to wait for: a copy has ended when submit_* returns."""

    def shutdown(self) -> None:
        """Release the region."""
        self._host.clear()
        self._region.cleanup()

    def _run(self, job_id: int, blocks: GPULoadStoreSpec, chunks: LoadStoreSpec, *, store: bool) -> None:
        started = time.perf_counter()
        n_bytes = 0
        for host_page, device_page in self._pairs(blocks, chunks):
            if store:
                host_page.copy_(device_page)
            else:
                device_page.copy_(host_page)
            n_bytes += host_page.numel()
        self._finished.append(TransferResult(job_id, True, n_bytes, time.perf_counter() - started))

    def _pairs(
        self, blocks: GPULoadStoreSpec, chunks: BlockIDsLoadStoreSpec
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Each page to copy, as (host view, device view).

        A group's blocks are consecutive in the request and may begin in the middle of their first chunk.
        """
        block_ids, chunk_ids = blocks.block_ids.tolist(), chunks.block_ids.tolist()
        first_block = first_chunk = 0
        for group, n_blocks in enumerate(blocks.group_sizes):
            if not n_blocks:
                continue
            skip = blocks.block_indices[group] % self._blocks_per_chunk
            for i in range(n_blocks):
                chunk, part = divmod(skip + i, self._blocks_per_chunk)
                slot, block = chunk_ids[first_chunk + chunk], block_ids[first_block + i]
                for ref in self._groups[group]:
                    start = part * self._pages[ref.tensor_idx]
                    yield (
                        self._host[ref.tensor_idx][slot, start : start + ref.page_size_bytes],
                        self._device[ref.tensor_idx][block, : ref.page_size_bytes],
                    )
            first_block += n_blocks
            first_chunk += -(-(skip + n_blocks) // self._blocks_per_chunk)
        if (first_block, first_chunk) != (len(block_ids), len(chunk_ids)):
            # What was copied may be in the wrong place: better a failed job than wrong KV.
            raise ValueError(
                f"{len(block_ids)} blocks for {len(chunk_ids)} chunks; expected {first_block} and {first_chunk}"
            )
