"""What shapes the bytes of a page in this SGLang server, gathered into a kvtier Namespace."""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvtier.codec.frame import FORMAT_VERSION
from kvtier.engines.fingerprint import file_fingerprint, folder_fingerprint
from kvtier.keys import Namespace

if TYPE_CHECKING:
    from kvtier.engines.sglang.compat import Settings
    from kvtier.engines.sglang.pools import HostPool

_LOG = logging.getLogger("sglang.kvtier")

_FROM_FOLDER = (
    "auto", "pt", "safetensors", "npcache", "gguf", "bitsandbytes", "layered", "fastsafetensors", "sharded_state",
)  # fmt: skip
"""Load formats that read the weights from the model's folder. The others take them from wherever else."""

_AS_SET = (
    "revision", "quantization", "quantization_param_path", "dtype", "kv_cache_dtype", "load_format",
    "json_model_override_args", "model_loader_extra_config", "custom_weight_loader", "context_length",
    "attention_backend", "prefill_attention_backend", "decode_attention_backend", "speculative_algorithm",
    "speculative_draft_model_path", "mm_process_config", "enable_multimodal", "modelopt_quant", "model_impl",
)  # fmt: skip


def build_namespace(storage: Any, settings: Settings, pool: HostPool, version: str) -> Namespace:
    """Everything but the epoch and what differs between the pools and ranks of one server.

    `storage` is SGLang's HiCacheStorageConfig. What cannot be identified becomes a random field: the cache is cold
    after a restart, with a warning, and never wrong.
    """
    return Namespace(
        {
            "format": FORMAT_VERSION,
            "engine": f"sglang {version}",
            "device": _device(settings),
            "model": str(settings.model_path),
            "served_as": str(storage.model_name),
            "weights": _weights(settings),
            "adapters": _adapters(settings),
            "settings": _digest({name: str(getattr(settings, name)) for name in _AS_SET}),
            "kv_dtype": f"{settings.kv_cache_dtype} stored as {pool.dtype}",
            "kv_pool": pool.geometry,
            "tp": storage.tp_size,
            "pp": storage.pp_size,
            "cp": storage.attn_cp_size,
            "dcp": getattr(storage, "dcp_size", 1),
            "replicated": int(storage.is_mla_model),
            "heads_split": f"{getattr(storage, 'should_split_heads', False)} {getattr(storage, 'tp_lcm_size', None)}",
        }
    )


def rank_of(storage: Any, *, replicated: bool) -> dict[str, int]:
    """What tells this rank's pages of a pool from those of others; nothing of the TP rank if all hold the same."""
    rank = {
        "tp": storage.tp_rank,
        "pp": storage.pp_rank,
        "cp": storage.attn_cp_rank,
        "dcp": getattr(storage, "dcp_rank", 0),
    }
    if replicated:
        del rank["tp"]
    return rank


def _weights(settings: Settings) -> str:
    load_format = str(settings.load_format or "auto")
    if load_format == "dummy":
        return f"dummy {settings.random_seed}"
    try:
        if load_format not in _FROM_FOLDER or settings.custom_weight_loader:
            raise OSError(f"load format {load_format}")
        path = Path(str(settings.model_path))
        if path.is_file():
            return file_fingerprint(path).hex()
        return folder_fingerprint(path if path.is_dir() else _hub_snapshot(settings)).hex()
    except (OSError, ValueError, ImportError) as error:  # ValueError: a name that no hub model and no file can have
        _LOG.warning(
            "kvtier: cannot identify the weights of %s (%s); the disk tier starts cold after each restart. Serve from "
            "a local folder to keep it warm.",
            settings.model_path,
            error,
        )
        return f"unknown {secrets.token_hex(16)}"


def _adapters(settings: Settings) -> str:
    """The weights of the LoRA adapters given at start; SGLang makes their ids of name and path. Others' are random."""
    paths = settings.lora_paths
    if not paths:
        return "none"
    found: dict[str, str] = {}
    for entry in paths.values() if isinstance(paths, dict) else paths:
        path = str(getattr(entry, "lora_path", None) or (entry.get("lora_path") if isinstance(entry, dict) else entry))
        path = path.partition("=")[2] or path
        try:
            found[path] = folder_fingerprint(Path(path)).hex()
        except (OSError, ValueError):
            _LOG.warning(
                "kvtier: LoRA adapter %s is not a local folder; the disk tier starts cold after restarts", path
            )
            found[path] = secrets.token_hex(16)
    return _digest(found)


def _hub_snapshot(settings: Settings) -> Path:
    """The local snapshot folder of a model named by its hub id. Raises OSError if there is none."""
    from huggingface_hub import try_to_load_from_cache  # noqa: PLC0415 - ships with SGLang

    found = try_to_load_from_cache(
        str(settings.model_path), "config.json", cache_dir=settings.download_dir, revision=settings.revision
    )
    if not isinstance(found, str):
        raise FileNotFoundError(f"no local snapshot of {settings.model_path}")
    return Path(found).parent


def _device(settings: Settings) -> str:
    import torch  # noqa: PLC0415 - there is one in every process of the engine

    return torch.cuda.get_device_name() if torch.cuda.is_available() else str(settings.device or "cpu")


def _digest(tree: Any) -> str:
    return hashlib.blake2b(json.dumps(tree, sort_keys=True, default=str).encode(), digest_size=16).hexdigest()
