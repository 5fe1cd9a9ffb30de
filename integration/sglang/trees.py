"""SGLang's real tree, cache controller and pools around kvtier's backend, without a model: KV in, KV out."""

from __future__ import annotations

import json
from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from sglang.kernels.ops.attention.fla.chunk_delta_h import CHUNK_SIZE
from sglang.srt.mem_cache.base_prefix_cache import CacheRequestHandle
from sglang.srt.mem_cache.memory_pool import MLATokenToKVPool
from sglang.srt.mem_cache.unified_cache.components.base import ComponentType
from sglang.srt.runtime_context import get_parallel
from sglang.srt.server_args import ServerArgs, set_global_server_args_for_scheduler
from sglang.test.kits.unified_radix_cache import fixtures
from sglang.test.kits.unified_radix_cache.config import CacheConfig
from sglang.test.kits.unified_radix_cache.fixtures import (
    build_fixture,
    drop_hicache_atexit_pin,
    match_prefix,
    node_device_value,
)
from sglang.test.kits.unified_radix_cache.storage import UnifiedRadixCacheStorageFixtures

from kvtier.engines.sglang import plugin

IO_OF = {"page_first": "kernel", "page_first_direct": "direct", "layer_first": "direct", "page_head": "kernel"}


class Tree(UnifiedRadixCacheStorageFixtures):
    """One start of an engine's cache over a directory of kvtier's."""

    def __init__(
        self,
        cfg: CacheConfig,
        layout: str,
        disk: Path,
        *,
        storage: str = "dynamic",
        buffer: str = "16MiB",
        rank: Mapping[str, int] | None = None,
        **extra: Any,
    ) -> None:
        """`rank` is which rank of how many this is: `tp_rank`, `tp_size`, `pp_rank`, `pp_size`, ..."""
        self.cfg = cfg
        self._undo: list[Any] = []
        kv_pool = _mla_pool if cfg is MLA else fixtures.MHATokenToKVPool
        with mock.patch.object(fixtures, "MHATokenToKVPool", kv_pool):
            self.cache, self.allocator, self.requests = build_fixture(cfg)
        parallel = get_parallel().override(**{"tp_rank": 0, "tp_size": 1, "pp_rank": 0, "pp_size": 1, **(rank or {})})
        parallel.__enter__()
        self._undo.append(lambda: parallel.__exit__(None, None, None))
        config = {
            "prefetch_threshold": 1,
            "kvtier": {"host": {"capacity": buffer}, "disk": {"path": str(disk), "capacity": "256MiB"}},
            **extra,
        }
        args = ServerArgs(
            model_path="dummy",
            load_format="dummy",
            page_size=cfg.page_size,
            hicache_mem_layout=layout,
            hicache_io_backend=IO_OF[layout],
            hicache_write_policy="write_through",
            hicache_storage_backend=storage,
            hicache_storage_backend_extra_config=(
                plugin.extra_config(json.dumps(config))
                if storage == "dynamic"
                else json.dumps({"file_storage_path": str(disk)})
            ),
            hicache_storage_prefetch_policy="wait_complete",
        )
        args._mamba_cache_chunk_size = max(CHUNK_SIZE, cfg.page_size)
        set_global_server_args_for_scheduler(args)
        self.cache.init_hicache(args, self.cache.cache_init_params)
        drop_hicache_atexit_pin(self.cache)
        self.cache.write_through_threshold = 1 << 30
        self.cache.load_back_threshold = 0
        controller = self.cache.cache_controller
        # The kit's host pools are as large as the device's, which leaves prefetching no room.
        controller.prefetch_capacity_limit = max(controller.prefetch_capacity_limit, controller.mem_pool_host.size)

    @property
    def backend(self) -> Any:
        backend = self.cache.cache_controller.storage_backend
        return getattr(backend, "_backend", backend)  # SGLang's failure injector wraps it

    def close(self) -> None:
        self.cache.cache_controller.detach_storage_backend()
        self.cache.release_host_resources()
        while self._undo:
            self._undo.pop()()

    def store(self, tokens: list[int], seed: int = 0) -> list[torch.Tensor]:
        """Compute `tokens` (their KV is random bits) and push them to storage. Returns every pool's state of them."""
        torch.manual_seed(seed)
        for buffer in self._buffers():
            buffer.copy_(torch.randint(-30000, 30000, buffer.shape).to(buffer.dtype))
        self._insert(self.cache, self.allocator, self.requests, tokens)
        leaf = match_prefix(self.cache, tokens).last_device_node
        expected = self.state(leaf)
        self._backup_node(self.cache, leaf)
        self._write_path_to_l3(self.cache, leaf)
        self._flush_l3_backups(self.cache)
        cache = self.backend._open.cache
        while cache.n_dirty():
            cache.wait(cache.n_changes, 1.0)
        return expected

    def load(self, tokens: list[int]) -> tuple[int, list[torch.Tensor]]:
        """A request for `tokens`: how many of them came from storage to the device, and their state there."""
        handle = CacheRequestHandle(f"request-{id(tokens)}", 0)
        self.cache.prefetch_from_storage(handle, self.cache.root_node_handle(), array("q", tokens), None, None)
        if handle in self.cache.ongoing_prefetch:
            self._run_prefetch_to_completion(self.cache, handle)
        found = match_prefix(self.cache, tokens)
        if found.host_hit_length == 0 and found.device_prefix_len == 0:
            return 0, []
        req = self._make_req(self.requests) if self.cfg.has_mamba else None
        self._load_back_node(self.cache, found.best_match_node, req=req)
        node = match_prefix(self.cache, tokens).last_device_node
        return len(self.cache.path_device_indices(node)), self.state(node)

    def state(self, node: Any) -> list[torch.Tensor]:
        """Every layer's KV on the path to `node`; of a sliding window and a recurrent state what the node has."""
        rows = self.cache.path_device_indices(node)
        pool = self.allocator.get_kvcache()
        full = getattr(pool, "full_kv_pool", pool)
        state = [buffer[rows] for buffer in _layers(full)]
        if self.cfg.has_swa:
            window = rows[-self.cfg.sliding_window_size :]
            swa_rows = self.allocator.full_to_swa_index_mapping[window]
            assert bool((swa_rows > 0).all())
            state += [buffer[swa_rows] for buffer in (*pool.swa_kv_pool.k_buffer, *pool.swa_kv_pool.v_buffer)]
        if self.cfg.has_mamba:
            slot = node_device_value(self.cache, node, ComponentType.MAMBA)
            mamba = self.requests.mamba_pool.mamba_cache
            state += [mamba.temporal[:, slot], *(conv[:, slot] for conv in mamba.conv)]
        return [part.clone() for part in state]

    def _buffers(self) -> list[torch.Tensor]:
        pool = self.allocator.get_kvcache()
        pools = [getattr(pool, "full_kv_pool", pool), *([pool.swa_kv_pool] if self.cfg.has_swa else [])]
        buffers = [buffer for p in pools for buffer in _layers(p)]
        if self.cfg.has_mamba:
            mamba = self.requests.mamba_pool.mamba_cache
            buffers += [mamba.temporal, *mamba.conv]
        return buffers

    # The kit's helpers are methods of a unittest.TestCase.

    @staticmethod
    def assertFalse(value: Any, message: str = "") -> None:  # noqa: N802
        assert not value, message

    @staticmethod
    def assertTrue(value: Any, message: str = "") -> None:  # noqa: N802
        assert value, message

    @staticmethod
    def assertGreater(one: Any, other: Any) -> None:  # noqa: N802
        assert one > other

    @staticmethod
    def assertNotEqual(one: Any, other: Any) -> None:  # noqa: N802
        assert one != other

    @staticmethod
    def fail(message: str) -> None:
        raise AssertionError(message)


def _layers(pool: Any) -> list[torch.Tensor]:
    return list(pool.kv_buffer) if isinstance(pool, MLATokenToKVPool) else [*pool.k_buffer, *pool.v_buffer]


def _mla_pool(*, head_num: int, head_dim: int, **shape: Any) -> MLATokenToKVPool:
    """The pool of a model with latent attention, where the kit makes one with keys and values."""
    return MLATokenToKVPool(kv_lora_rank=head_num * head_dim, qk_rope_head_dim=head_dim, **shape)


MHA = CacheConfig(page_size=16, components=(ComponentType.FULL,))
MLA = CacheConfig(page_size=16, components=(ComponentType.FULL,), num_layers=5)
SWA = CacheConfig(page_size=16, components=(ComponentType.FULL, ComponentType.SWA), sliding_window_size=32, kv_size=512)
MAMBA = CacheConfig(
    page_size=64, components=(ComponentType.FULL, ComponentType.MAMBA), enable_mamba_extra_buffer=True,
    mamba_cache_size=60, kv_size=1024, max_context_len=1024,
)  # fmt: skip
