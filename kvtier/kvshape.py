"""KvShape: a model folder's config.json -> bytes of KV per token. Says so when it cannot tell; never guesses.

Only for people who size tiers before an engine runs: at run time the engine says how large its KV is. Models whose
layers differ are for `kvtier.planning.layout`, which reads config.json with the functions here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self, cast

from kvtier.errors import ConfigError

DTYPE_BYTES: Final = {
    "float32": 4,
    "bfloat16": 2,
    "float16": 2,
    "half": 2,
    "fp8": 1,
    "fp8_e4m3": 1,
    "fp8_e5m2": 1,
}
KV_DTYPES: Final = ("auto", *DTYPE_BYTES)
LAYER_KEYS: Final = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
QUERY_KEYS: Final = ("num_attention_heads", "n_head", "n_heads")

# Keys whose presence means that layers keep different amounts of KV, or something that is not KV.
_NOT_UNIFORM: Final = {
    "index_topk": "its attention keeps an index besides the KV",
    "compress_ratios": "its layers compress the KV at different ratios",
    "num_kv_shared_layers": "some of its layers share their KV",
    "attention_chunk_size": "its layers attend locally",
    "block_configs": "its layers differ from each other",
    "hybrid_override_pattern": "it mixes attention with state-space layers",
    "layers_block_type": "it mixes attention with state-space layers",
    "attn_type_list": "it mixes attention with linear layers",
    "attn_layer_period": "it mixes attention with state-space layers",
    "full_attention_interval": "it mixes attention with linear layers",
    "linear_attn_config": "it mixes attention with linear layers",
    "mamba_d_state": "it has state-space layers",
    "ssm_cfg": "it has state-space layers",
    "state_size": "it has state-space layers",
    "attn_config": "its attention is described in its own way",
}


@dataclass(frozen=True, slots=True)
class Unknown:
    """The bytes per token cannot be told from config.json, and why."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KvShape:
    """KV of one token, all layers, all ranks of the engine."""

    kind: str  # "MHA", "GQA", "MQA" or "MLA"
    n_layers: int
    n_heads: int  # KV heads kept, copies for tensor parallelism included; 1 for MLA
    head_size: int  # elements of K and V of one head together
    dtype: str

    @property
    def bytes_per_token(self) -> int:
        """Bytes of KV that one token takes."""
        return self.n_layers * self.n_heads * self.head_size * DTYPE_BYTES[self.dtype]

    @classmethod
    def of_model(cls, folder: Path, *, kv_dtype: str = "auto", tensor_parallel: int = 1) -> Self | Unknown:
        """Read `folder`/config.json. `kv_dtype` is one of KV_DTYPES. Raises ConfigError when there is no such file."""
        return cls.of_config(read_config(folder), kv_dtype=kv_dtype, tensor_parallel=tensor_parallel)

    @classmethod
    def of_config(cls, model: Mapping[str, Any], *, kv_dtype: str = "auto", tensor_parallel: int = 1) -> Self | Unknown:
        """The same, of the contents of a config.json."""
        text = text_config(model)
        dtype = dtype_of(model, text, kv_dtype)
        if isinstance(dtype, Unknown):
            return dtype
        if reason := _why_not_uniform(model, text):
            return Unknown(reason)
        n_layers, heads = count(text, *LAYER_KEYS), heads_of(text, tensor_parallel)
        if not n_layers:
            return Unknown("config.json does not say how many layers and heads it has")
        if isinstance(heads, Unknown):
            return heads
        kind, n_heads, head_size = heads
        return cls(kind=kind, n_layers=n_layers, n_heads=n_heads, head_size=head_size, dtype=dtype)


def read_config(folder: Path) -> dict[str, Any]:
    """The contents of `folder`/config.json. Raises ConfigError when it is not there or no JSON object."""
    path = folder / "config.json"
    try:
        model = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot read it: {error.strerror or error}; name a model's folder") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not JSON: {error}") from error
    if not isinstance(model, dict):
        raise ConfigError(f"{path}: not a model's configuration")
    return model


def text_config(model: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part that describes the language model: all of it, unless the model is a larger one that contains it."""
    return next((model[key] for key in ("text_config", "llm_config") if isinstance(model.get(key), dict)), model)


def dtype_of(model: Mapping[str, Any], text: Mapping[str, Any], kv_dtype: str) -> str | Unknown:
    """The key of DTYPE_BYTES that the KV has; `kv_dtype` as given to the engine."""
    dtype = _kv_dtype(model, text) if kv_dtype == "auto" else kv_dtype
    if dtype not in DTYPE_BYTES:
        return Unknown(f"the dtype of its KV ({dtype}) is unknown here: pass --kv-cache-dtype")
    return dtype


def heads_of(text: Mapping[str, Any], tensor_parallel: int) -> tuple[str, int, int] | Unknown:
    """(kind, KV heads kept by all ranks together, elements of K and V of one head) of an attention layer."""
    n_query = count(text, *QUERY_KEYS)
    if not n_query:
        return Unknown("config.json does not say how many layers and heads it has")
    return _latent(text) if text.get("kv_lora_rank") is not None else _dense(text, n_query, tensor_parallel)


def count(tree: Mapping[str, Any], *names: str) -> int | None:
    """The first of these keys that is there, when it is a sensible count."""
    value = next((tree[name] for name in names if tree.get(name) is not None), None)
    return value if type(value) is int and 0 < value < 1 << 32 else None


def _latent(text: Mapping[str, Any]) -> tuple[str, int, int] | Unknown:
    """MLA: every rank keeps the same latent vector, which a host tier keeps once."""
    rank, rope = count(text, "kv_lora_rank"), count(text, "qk_rope_head_dim")
    return ("MLA", 1, rank + rope) if rank and rope else Unknown("config.json does not say how large its latent KV is")


def _dense(text: Mapping[str, Any], n_query: int, tensor_parallel: int) -> tuple[str, int, int] | Unknown:
    if text.get("v_head_dim") not in (None, text.get("head_dim")):
        return Unknown("its keys and values differ in size")
    n_kv = _kv_heads(text, n_query)
    head_dim = count(text, "head_dim") or (count(text, "hidden_size", "n_embd", "d_model") or 0) // n_query
    if not n_kv or not head_dim:
        return Unknown("config.json does not say how large its heads are")
    # With more ranks than heads each rank keeps a whole head, so some are kept more than once.
    return "MHA" if n_kv == n_query else "MQA" if n_kv == 1 else "GQA", max(n_kv, tensor_parallel), 2 * head_dim


def _kv_dtype(model: Mapping[str, Any], text: Mapping[str, Any]) -> str:
    quantization = model.get("quantization_config") or text.get("quantization_config")
    if isinstance(quantization, dict):
        if quantization.get("kv_cache_scheme"):
            return "fp8"
        algorithm = quantization.get("kv_cache_quant_algo")
        if isinstance(algorithm, str):
            return algorithm.lower()
    for tree in (text, model):
        for key in ("dtype", "torch_dtype"):
            if isinstance(tree.get(key), str):
                dtype = cast("str", tree[key]).removeprefix("torch.")
                # Engines serve float32 checkpoints in half precision unless told otherwise.
                return "float16" if dtype == "float32" else dtype
    return "not given"


def _why_not_uniform(model: Mapping[str, Any], text: Mapping[str, Any]) -> str | None:
    if model.get("is_encoder_decoder"):
        return "it is an encoder-decoder model"
    for key, reason in _NOT_UNIFORM.items():
        if text.get(key):
            return reason
    types = text.get("layer_types")
    if isinstance(types, list) and any(kind != "full_attention" for kind in types):
        return "its layers are of several types"
    if text.get("sliding_window") and text.get("use_sliding_window", True) and not isinstance(types, list):
        return "its layers attend through a sliding window"
    return None


def _kv_heads(text: Mapping[str, Any], n_query: int) -> int | None:
    """KV heads; as many as query heads when config.json does not mention them; None when it says nonsense."""
    if text.get("multi_query") and not text.get("new_decoder_architecture"):
        return 1
    for key in ("num_key_value_heads", "n_head_kv", "num_kv_heads", "multi_query_group_num", "num_attention_groups"):
        if text.get(key) is not None:
            return count(text, key)
    return n_query
