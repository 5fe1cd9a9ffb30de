"""What shapes the bytes of a chunk in this vLLM engine, gathered into a kvtier Namespace."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
from pathlib import Path
from typing import Any

from kvtier.codec.frame import FORMAT_VERSION
from kvtier.engines.fingerprint import file_fingerprint, folder_fingerprint
from kvtier.keys import Namespace

_LOG = logging.getLogger("vllm.kvtier")

_KEYED_HASHES = ("sha256", "sha256_cbor")
"""Algorithms that vLLM >= 0.32 seeds with a constant, so that equal prefixes hash equally in every process."""

_FROM_FOLDER = (
    "auto", "hf", "safetensors", "pt", "npcache", "mistral", "fastsafetensors", "instanttensor",
    "runai_streamer", "runai_streamer_sharded", "sharded_state",
)  # fmt: skip
"""Load formats that read the weights from the model's folder. The others take them from wherever else."""

_CACHE_OPTIONS = (
    "kv_cache_dtype_skip_layers", "mamba_cache_dtype", "mamba_ssm_cache_dtype", "mamba_cache_mode", "use_replayssm",
)  # fmt: skip
_INPUT_OPTIONS = ("mm_processor_kwargs", "media_io_kwargs", "video_pruning_rate")
"""What the server says of how images, sound and video become embeddings: vLLM hashes the media and a request's own."""


def build_namespace(vllm_config: Any, offloading: Any, kv_bytes_per_chunk: int) -> Namespace:
    """Everything but the epoch. `offloading` is vLLM's OffloadingConfig.

    What cannot be identified (weights that are not in a local folder, a random hash seed) becomes a random field: the
    cache is cold after a restart, with a warning, and never wrong.
    """
    from vllm import __version__  # noqa: PLC0415 - only inside a vLLM process
    from vllm.platforms import current_platform  # noqa: PLC0415

    model, cache, parallel = vllm_config.model_config, vllm_config.cache_config, vllm_config.parallel_config
    hf_config = model.hf_config.to_dict()
    hf_config.pop("_name_or_path", None)
    groups = [
        {"tokens": group.tokens_per_block, "layers": list(group.layer_names), "id": group.group_id}
        for group in offloading.groups
    ]
    return Namespace(
        {
            "format": FORMAT_VERSION,
            "engine": f"vllm {__version__}",
            "device": current_platform.device_name,
            "model": str(model.model),
            "revision": str(model.revision),
            "weights": _weights(vllm_config),
            "hf_config": _digest(hf_config),
            "positions": _positions(model, hf_config),
            "inputs": _options(getattr(model, "multimodal_config", None), _INPUT_OPTIONS),
            "quantization": f"{model.quantization} {getattr(model, 'quantization_config', None)}",
            "model_dtype": str(model.dtype),
            "kv_dtype": f"{cache.cache_dtype} {offloading.model.dtype}",
            "kv_layout": str(offloading.kv_cache_layout),
            "kv_options": _options(cache, _CACHE_OPTIONS),
            "attention": str(getattr(vllm_config, "attention_config", None)),
            "groups": _digest(groups),
            "tokens_per_hash": offloading.cache.tokens_per_hash,
            "blocks_per_chunk": offloading.cache.blocks_per_chunk,
            "chunk_bytes": kv_bytes_per_chunk,
            "heads": int(model.get_total_num_kv_heads()),
            "head_size": int(model.get_head_size()),
            "tp": parallel.tensor_parallel_size,
            "pp": parallel.pipeline_parallel_size,
            "pcp": offloading.parallel.pcp_size,
            "dcp": offloading.parallel.dcp_size,
            "world": offloading.parallel.world_size,
            "replicated": int(offloading.replicated_layout),
            "speculative": _speculative(vllm_config),
            "hash": _hash_identity(str(cache.prefix_caching_hash_algo)),
        }
    )


def adapter_fingerprint(path: str) -> bytes:
    """Identity of a LoRA adapter's weights; random, so not reusable by another process, if it is no local folder."""
    try:
        return folder_fingerprint(Path(path))
    except (OSError, ValueError):  # ValueError: a name that no file can have
        _LOG.warning("kvtier: LoRA adapter %s is not a local folder; its KV will not be reused after a restart", path)
        return secrets.token_bytes(32)


def _weights(vllm_config: Any) -> str:
    model = vllm_config.model_config
    load_format = str(vllm_config.load_config.load_format)
    if load_format == "dummy":
        return f"dummy {model.seed}"
    path = Path(model.model)
    try:
        streamed = getattr(model, "model_weights", "")
        if streamed or load_format not in _FROM_FOLDER:
            raise OSError(f"loaded from {streamed}" if streamed else f"load format {load_format}")
        if path.is_file():
            return file_fingerprint(path).hex()
        return folder_fingerprint(path if path.is_dir() else _hub_snapshot(model)).hex()
    except (OSError, ValueError) as error:  # ValueError: a name that no hub model and no file can have
        _LOG.warning(
            "kvtier: cannot identify the weights of %s (%s); the disk tier starts cold after each restart. "
            "Serve from a local folder to keep it warm.",
            model.model,
            error,
        )
        return f"unknown {secrets.token_hex(16)}"


def _hub_snapshot(model: Any) -> Path:
    """The local snapshot folder of a model named by its hub id. Raises OSError if there is none."""
    from huggingface_hub import try_to_load_from_cache  # noqa: PLC0415 - ships with vLLM

    found = try_to_load_from_cache(model.model, "config.json", revision=model.revision)
    if not isinstance(found, str):
        raise FileNotFoundError(f"no local snapshot of {model.model}")
    return Path(found).parent


def _hash_identity(algorithm: str) -> str:
    seed = os.environ.get("PYTHONHASHSEED")
    if seed not in (None, "random"):
        return f"{algorithm} seed {seed}"
    if algorithm in _KEYED_HASHES:
        return f"{algorithm} fixed"
    _LOG.warning(
        "kvtier: prefix hash %s has a random seed in every process; the disk tier starts cold after each restart. "
        "Use --prefix-caching-hash-algo sha256_cbor, or set PYTHONHASHSEED.",
        algorithm,
    )
    return f"{algorithm} random {secrets.token_hex(16)}"


def _positions(model: Any, hf_config: Any) -> str:
    """LongRoPE takes its long factors or its short ones by the longest context the engine was started for."""
    return f"up to {model.max_model_len}" if "longrope" in json.dumps(hf_config, default=str) else "by hf_config"


def _options(config: Any, names: tuple[str, ...]) -> str:
    return _digest({name: getattr(config, name, None) for name in names})


def _speculative(vllm_config: Any) -> str:
    speculative = vllm_config.speculative_config
    return "none" if speculative is None else f"{speculative.method} {speculative.model}"


def _digest(tree: Any) -> str:
    return hashlib.blake2b(json.dumps(tree, sort_keys=True, default=str).encode(), digest_size=16).hexdigest()
