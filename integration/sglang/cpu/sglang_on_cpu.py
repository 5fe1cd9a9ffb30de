"""SGLang's host pools on a machine without a GPU: page copies between "device" and host with torch instead of kernels.

Loaded by SGLang in every process through its `sglang.srt.plugins` entry point, for which the dist-info folder beside
this file stands. For tests only: what is copied is what the GPU kernels copy, at whatever speed.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch


def register() -> None:
    """Give SGLang's host pools copies and allocations that need no GPU."""
    base = importlib.import_module("sglang.srt.mem_cache.pool_host.base")
    common = importlib.import_module("sglang.srt.mem_cache.pool_host.common")
    mha = importlib.import_module("sglang.srt.mem_cache.pool_host.mha")
    mla = importlib.import_module("sglang.srt.mem_cache.pool_host.mla")
    mamba = importlib.import_module("sglang.srt.mem_cache.pool_host.mamba")
    base.HostKVCache.pin_memory = property(lambda self: False, lambda self, value: None)
    common.ALLOC_MEMORY_FUNCS["cpu"] = _allocate
    mha.MHATokenToKVPoolHost.load_to_device_per_layer = _load_layer
    mha.MHATokenToKVPoolHost.backup_from_device_all_layer = _back_up_layers
    mla.MLATokenToKVPoolHost.load_to_device_per_layer = _load_layer
    mla.MLATokenToKVPoolHost.backup_from_device_all_layer = _back_up_layers
    mamba.MambaPoolHost._copy_tensor_pf_lf = staticmethod(_load_state)
    mamba.MambaPoolHost._copy_tensor_all_layers_lf_pf = staticmethod(_back_up_state)
    _absorbed_latent_attention()
    _without_triton(importlib.import_module("sglang.srt.mem_cache.allocator.paged"))


def _allocate(dims: Any, dtype: Any, device: str, pin_memory: bool, allocator: Any, **_: Any) -> torch.Tensor:
    return allocator.allocate(dims, dtype=dtype, device=device)


def _buffers(pool: Any, device_pool: Any) -> list[tuple[torch.Tensor, Any]]:
    """Each host buffer with the buffers of all layers on the device: keys and values, or MLA's one for both."""
    if hasattr(pool, "kv_lora_rank"):
        return [(pool.kv_buffer, getattr(pool, "device_kv_buffers", None) or device_pool.kv_buffer)]
    device = (
        (pool.device_k_buffers, pool.device_v_buffers)
        if hasattr(pool, "device_k_buffers")
        else (device_pool.k_buffer, device_pool.v_buffer)
    )
    return list(zip((pool.k_buffer, pool.v_buffer), device, strict=True))


def _host_places(pool: Any, buffer: torch.Tensor, indices: torch.Tensor, layer: int) -> tuple[torch.Tensor, Any]:
    """The part of one host buffer that holds `layer`, and the index of the given tokens' rows in it."""
    page, offset = indices // pool.page_size, indices % pool.page_size
    match pool.layout:
        case "layer_first":
            return buffer[layer], indices
        case "page_first":
            return buffer[:, layer], indices
        case "page_first_direct":
            return buffer[:, layer], (page, offset)
        case "page_head":
            return buffer[:, :, :, layer].transpose(1, 2), (page, offset)
    raise NotImplementedError(f"layout {pool.layout}")


def _load_layer(
    self: Any,
    device_pool: Any,
    host_indices: torch.Tensor,
    device_indices: torch.Tensor,
    layer_id: int,
    io_backend: str,
    *,
    is_draft: bool = False,
) -> None:
    for host, device in _buffers(self, device_pool):
        if layer_id < len(device):
            part, at = _host_places(self, host, host_indices, layer_id)
            device[layer_id][device_indices] = part[at]


def _back_up_layers(
    self: Any, device_pool: Any, host_indices: torch.Tensor, device_indices: torch.Tensor, io_backend: str
) -> None:
    for host, device in _buffers(self, device_pool):
        for layer in range(len(device)):
            part, at = _host_places(self, host, host_indices, layer)
            part[at] = device[layer][device_indices]


def _load_state(src: Any, dst: Any, src_indices: Any, dst_indices: Any, layer_id: int, *_: Any, **__: Any) -> None:
    dst[dst_indices] = src[src_indices, layer_id, 0]


def _back_up_state(
    src_layers: Any, dst: Any, src_indices: Any, dst_indices: Any, num_layers: int, *_: Any, **__: Any
) -> None:
    for layer in range(num_layers):
        dst[dst_indices, layer, 0] = src_layers[layer][src_indices]


def _absorbed_latent_attention() -> None:
    """The one way through MLA that SGLang's attention in torch can go: it reads keys from the cache, in prefill too."""
    ways = importlib.import_module("sglang.srt.models.deepseek_common.attention_backend_handler")
    ways.AttentionBackendRegistry.register("torch_native", lambda *_: ways.AttnForwardMethod.MLA)


class _InsteadOfTriton:
    """A function in the place of a Triton kernel: `kernel[grid](...)`."""

    def __init__(self, function: Any) -> None:
        self._function = function

    def __getitem__(self, grid: Any) -> Any:
        return self._function


def _without_triton(paged: Any) -> None:
    """SGLang below 0.5.22 allocates pages with Triton kernels on every platform."""
    if hasattr(paged, "alloc_decode_naive"):
        return

    def extend(prefix: Any, seq: Any, last_loc: Any, free_pages: Any, out: Any, _bs: int, page_size: int) -> None:
        paged.alloc_extend_naive(prefix, seq, last_loc, free_pages, out, page_size, out.device)

    def decode(seq: Any, last_loc: Any, free_pages: Any, out: Any, _bs: int, page_size: int) -> None:
        begins_page = (seq - 1) % page_size == 0
        nth = torch.cumsum(begins_page.to(torch.int64), 0) - 1
        fresh = free_pages[nth.clamp(min=0, max=max(0, len(free_pages) - 1))] * page_size if len(free_pages) else out
        out.copy_(torch.where(begins_page, fresh, last_loc + 1))

    paged.alloc_extend_kernel = _InsteadOfTriton(extend)
    paged.alloc_decode_kernel = _InsteadOfTriton(decode)
