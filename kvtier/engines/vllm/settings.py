"""vLLM's configuration -> kvtier's: finds the YAML tree, and writes what vLLM's offloading classes read."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvtier import config as kvtier_config
from kvtier import sizing
from kvtier.errors import ConfigError

if TYPE_CHECKING:
    from kvtier.config import Config


def settle(vllm_config: Any) -> Config:
    """Read kvtier's configuration out of `vllm_config` and make vLLM's part of it agree. Idempotent; every process.

    All processes of one engine must come to the same host size, so it depends on what the machine has, never on what is
    free at the moment.
    """
    transfer = vllm_config.kv_transfer_config
    extra = transfer.kv_connector_extra_config
    unknown = sorted(set(extra) - _KNOWN)
    if unknown:
        raise ConfigError(
            f"kv_connector_extra_config: unknown key `{unknown[0]}`; kvtier reads `kvtier` (the YAML's content) or "
            f"`config` (its path)"
        )
    if "kvtier" in extra:
        config = kvtier_config.parse(extra["kvtier"], origin="kv_connector_extra_config.kvtier")
    elif "config" in extra:
        config = kvtier_config.load(Path(extra["config"]))
    else:
        config = kvtier_config.parse({})
    extra["kvtier"] = config.to_tree()
    extra["spec_name"] = "KVTierSpec"
    extra["spec_module_path"] = "kvtier.engines.vllm.spec"
    extra["offload_prompt_only"] = not config.offload.generated
    extra["cpu_bytes_to_use"] = sizing.host_bytes(config, sizing.Machine.here()) // engines_here(vllm_config)
    transfer.kv_load_failure_policy = "recompute"
    return config


def engines_here(vllm_config: Any) -> int:
    """Data-parallel engines that run under this configuration on this node: they share its capacities evenly."""
    noted = vllm_config.kv_transfer_config.kv_connector_extra_config.get("engines_here", 1)
    return max(1, noted, vllm_config.parallel_config.data_parallel_size_local)


def note_engines(vllm_config: Any) -> None:
    """Write down how many engines there will be on this node. In the process that starts them.

    Each engine of a dense model takes itself for the only one: vLLM rewrites its parallel configuration.
    """
    extra = vllm_config.kv_transfer_config.kv_connector_extra_config
    extra["engines_here"] = engines_here(vllm_config)


_KNOWN = {"kvtier", "config", "spec_name", "spec_module_path", "offload_prompt_only", "cpu_bytes_to_use",
          "blocks_per_chunk", "engines_here"}  # fmt: skip


def refuse_unfit(vllm_config: Any, kv_cache_config: Any) -> None:
    """Raise ConfigError for an engine whose workers do not share one host pool, or do not see it cut the same way.

    Nothing else would tell: such workers copy to and from places that are not each other's.
    """
    parallel = vllm_config.parallel_config
    if parallel.nnodes > 1 or (parallel.world_size > 1 and parallel.distributed_executor_backend == "ray"):
        raise ConfigError(
            "kvtier: the host pool is shared memory of one node; engines that may span nodes are not supported. "
            "On one node use --distributed-executor-backend mp"
        )
    if parallel.world_size > 1 and parallel.distributed_executor_backend == "external_launcher":
        raise ConfigError(
            "kvtier: with external_launcher every rank schedules for itself, and would find other chunks than the "
            "others; use --distributed-executor-backend mp"
        )
    if parallel.pipeline_parallel_size > 1 and (
        len(kv_cache_config.kv_cache_groups) > 1 or len(_layers_per_stage(vllm_config)) > 1
    ):
        raise ConfigError(
            "kvtier: all pipeline stages must hold the same number of layers of one kind; "
            "use --tensor-parallel-size instead, or another VLLM_PP_LAYER_PARTITION"
        )


def _layers_per_stage(vllm_config: Any) -> set[int]:
    from vllm.distributed.utils import get_pp_indices  # noqa: PLC0415 - heavy

    n_layers = vllm_config.model_config.get_total_num_hidden_layers()
    n_stages = vllm_config.parallel_config.pipeline_parallel_size
    bounds = (get_pp_indices(n_layers, stage, n_stages) for stage in range(n_stages))
    return {end - start for start, end in bounds}


def settle_chunk(vllm_config: Any, kv_cache_config: Any, config: Config) -> None:
    """Decide how many engine blocks make a chunk, once block size and bytes are known."""
    from vllm.distributed.kv_transfer.kv_connector.v1.offloading.config import (  # noqa: PLC0415
        build_offloading_config,
    )

    extra = vllm_config.kv_transfer_config.kv_connector_extra_config
    extra.pop("blocks_per_chunk", None)
    offloading = build_offloading_config(vllm_config, kv_cache_config)
    block_tokens = max(group.tokens_per_block for group in offloading.groups)
    block_bytes = offloading.worker_kv_bytes_per_block * offloading.parallel.world_size
    tokens = sizing.chunk_tokens(config, block_tokens=block_tokens, bytes_per_token=max(1, block_bytes // block_tokens))
    if config.chunk.tokens is None:
        # A longer chunk loses its first blocks to the window while it grows, and is then not stored.
        while tokens > max(block_tokens, _narrowest_window(kv_cache_config)):
            tokens = tokens // 2 // block_tokens * block_tokens
    extra["blocks_per_chunk"] = tokens // block_tokens


def _narrowest_window(kv_cache_config: Any) -> int:
    """Tokens that the layer with the shortest sliding window keeps."""
    from vllm.v1.kv_cache_interface import SlidingWindowSpec, iter_layer_specs  # noqa: PLC0415

    specs = (spec for group in kv_cache_config.kv_cache_groups for spec in iter_layer_specs(group.kv_cache_spec))
    return min((spec.sliding_window for spec in specs if isinstance(spec, SlidingWindowSpec)), default=sys.maxsize)
