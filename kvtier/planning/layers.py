"""What each layer of a model keeps: config.json -> "full", "window", "state" or "none", and the size of a state.

Says so when it cannot tell; never guesses. The sizes of states are those of vLLM 0.32 (MambaStateShapeCalculator).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from kvtier.kvshape import DTYPE_BYTES, LAYER_KEYS, Unknown, count

FULL: Final = "full"  # attends to everything before it: KV of every token
WINDOW: Final = "window"  # attends to the last tokens only
STATE: Final = "state"  # a state of fixed size per sequence: state-space and linear attention layers
NONE: Final = "none"  # keeps nothing

_KIND_OF: Final = {
    "full_attention": FULL,
    "attention": FULL,
    "sliding_attention": WINDOW,
    "chunked_attention": WINDOW,
    "linear_attention": STATE,
    "mamba": STATE,
    "mamba2": STATE,
    "mlp": NONE,
    "moe": NONE,
}
_KIND_OF_LETTER: Final = {"M": STATE, "*": FULL, "-": NONE, "E": NONE}
_PURE_STATE: Final = ("mamba", "mamba2", "falcon_mamba")
_EVERY_OTHER: Final = ("gemma2",)
_EVERY_ONE: Final = ("mistral", "mixtral", "phi3", "phimoe", "starcoder2")  # their windows, where they have one

_NOT_TOLD: Final = {
    "index_topk": "its attention keeps an index besides the KV",
    "compress_ratios": "its layers compress the KV at different ratios",
    "num_kv_shared_layers": "some of its layers share their KV",
    "block_configs": "its layers differ from each other",
    "attn_type_list": "it mixes attention with another kind of linear layers",
    "linear_attn_config": "it mixes attention with another kind of linear layers",
    "ssm_cfg": "its state-space layers are described in their own way",
    "attn_config": "its attention is described in its own way",
    "swa_num_key_value_heads": "its windowed layers have heads of their own",
    "swa_head_dim": "its windowed layers have heads of their own",
    "global_head_dim": "its full layers have heads of their own",
    "num_global_key_value_heads": "its full layers have heads of their own",
}
_WHICH_NOT_TOLD: Final = {
    ("mamba_d_state", "state_size", "ssm_state_size"): "it has state-space layers",
    ("linear_num_value_heads",): "it has linear attention layers",
    ("attention_chunk_size",): "some of its layers attend locally",
}


@dataclass(frozen=True, slots=True)
class State:
    """What one layer keeps per sequence, all ranks: elements of the convolution and of the recurrence."""

    conv: tuple[int, ...]
    recurrent: tuple[int, ...]
    conv_bytes: int  # of an element
    recurrent_bytes: int


def kinds_of(model: Mapping[str, Any], text: Mapping[str, Any]) -> tuple[str, ...] | Unknown:
    """The kind of every layer, first to last."""
    if model.get("is_encoder_decoder"):
        return Unknown("it is an encoder-decoder model")
    for key, reason in _NOT_TOLD.items():
        if text.get(key):
            return Unknown(reason)
    n_layers = count(text, *LAYER_KEYS)
    pattern = text.get("hybrid_override_pattern")
    if isinstance(pattern, str):
        return _named(pattern, _KIND_OF_LETTER, len(pattern), "hybrid_override_pattern")
    if not n_layers:
        return Unknown("config.json does not say how many layers it has")
    for key in ("layer_types", "layers_block_type"):
        if isinstance(text.get(key), list):
            return _named(text[key], _KIND_OF, n_layers, key)
    return _by_rule(text, n_layers)


def window_of(text: Mapping[str, Any]) -> int | Unknown:
    """Tokens that a windowed layer attends to."""
    return count(text, "sliding_window", "attention_chunk_size") or Unknown(
        "config.json does not say how wide it looks"
    )


def state_of(text: Mapping[str, Any], dtype: str, tensor_parallel: int) -> State | Unknown:
    """The state of one layer. `dtype` is the model's, which the KV's need not be."""
    shape = _state_shape(text, tensor_parallel)
    if isinstance(shape, Unknown):
        return shape
    recurrent_dtype = next((text[key] for key in ("mamba_ssm_dtype", "mamba_ssm_cache_dtype") if text.get(key)), dtype)
    if recurrent_dtype not in DTYPE_BYTES:
        return Unknown(f"the dtype of its state ({recurrent_dtype}) is unknown here")
    return State(*shape, DTYPE_BYTES[dtype], DTYPE_BYTES[recurrent_dtype])


def _named(names: Iterable[object], known: Mapping[str, str], n_layers: int, key: str) -> tuple[str, ...] | Unknown:
    kinds = []
    for name in names:
        if not isinstance(name, str) or name not in known:
            return Unknown(f"it has layers of an unknown type ({str(name)[:40]!r} in {key})")
        kinds.append(known[name])
    return tuple(kinds) if len(kinds) == n_layers else Unknown(f"{key} does not name all of its {n_layers} layers")


def _by_rule(text: Mapping[str, Any], n_layers: int) -> tuple[str, ...] | Unknown:
    if text.get("model_type") in _PURE_STATE:
        return (STATE,) * n_layers
    full = _full_between_states(text, n_layers)
    if full is not None:
        return _place(full, STATE, n_layers)
    for keys, what in _WHICH_NOT_TOLD.items():
        if any(text.get(key) for key in keys):
            return Unknown(f"{what}, and config.json does not say which")
    full = _full_between_windows(text, n_layers)
    if full is None:
        return Unknown("its layers attend through a sliding window, and config.json does not say which")
    return _place(full, WINDOW, n_layers)


def _place(full: Iterable[int], rest: str, n_layers: int) -> tuple[str, ...]:
    chosen = set(full)
    return tuple(FULL if i in chosen else rest for i in range(n_layers))


def _full_between_states(text: Mapping[str, Any], n_layers: int) -> Iterable[int] | None:
    if period := count(text, "attn_layer_period"):
        return range(text.get("attn_layer_offset") or 0, n_layers, period)
    if isinstance(text.get("attn_layer_indices"), list):
        return list(text["attn_layer_indices"])
    if interval := count(text, "full_attention_interval"):
        return range(interval - 1, n_layers, interval)
    return None


def _full_between_windows(text: Mapping[str, Any], n_layers: int) -> Iterable[int] | None:
    if not text.get("sliding_window") or not text.get("use_sliding_window", True):
        return range(n_layers)
    for key in ("sliding_window_pattern", "_sliding_window_pattern"):
        pattern = text.get(key)
        if isinstance(pattern, str) and set(pattern) == {"L", "G"}:  # local, global; repeated
            return [i for i in range(n_layers) if pattern[i % len(pattern)] == "G"]
        if every := count(text, key):
            return range(every - 1, n_layers, every)
    if text.get("model_type") in _EVERY_OTHER:
        return range(1, n_layers, 2)
    if text.get("use_sliding_window") and type(text.get("max_window_layers")) is int:
        return range(min(text["max_window_layers"], n_layers))
    return () if text.get("model_type") in _EVERY_ONE else None


def _state_shape(text: Mapping[str, Any], tp: int) -> tuple[tuple[int, ...], tuple[int, ...]] | Unknown:
    """(convolution, recurrence) over all ranks."""
    if text.get("linear_num_value_heads"):  # gated delta net
        k_heads, v_heads = count(text, "linear_num_key_heads"), count(text, "linear_num_value_heads")
        k_dim, v_dim = count(text, "linear_key_head_dim"), count(text, "linear_value_head_dim")
        kernel = count(text, "linear_conv_kernel_dim")
        if k_heads and v_heads and k_dim and v_dim and kernel:
            return (kernel - 1, 2 * k_heads * k_dim + v_heads * v_dim), (v_heads, v_dim, k_dim)
        return Unknown("config.json does not say how large its state is")
    hidden, expand = count(text, "hidden_size", "d_model"), text.get("mamba_expand", text.get("expand"))
    n_state = count(text, "mamba_d_state", "ssm_state_size", "state_size")
    kernel = count(text, "mamba_d_conv", "conv_kernel")
    heads = count(text, "mamba_n_heads", "mamba_num_heads") or _heads_of_mamba2(text)
    inner = int(expand * hidden) if hidden and type(expand) in (int, float) and 0 < expand < 64 else None
    if not n_state or not kernel:
        return Unknown("config.json does not say how large its state is")
    if not heads:  # Mamba 1
        inner = count(text, "intermediate_size") if text.get("model_type") in _PURE_STATE else inner
        return ((kernel - 1, inner), (inner, n_state)) if inner else Unknown("config.json does not say how wide it is")
    groups = count(text, "mamba_n_groups", "n_groups") or 1
    head_dim = count(text, "mamba_d_head", "mamba_head_dim", "head_dim")
    if not head_dim:
        return Unknown("config.json does not say how large the heads of its state are")
    # With fewer groups than ranks every rank keeps one.
    groups += 0 if groups % tp == 0 else tp - groups
    return (kernel - 1, heads * head_dim + 2 * groups * n_state), (heads, head_dim, n_state)


def _heads_of_mamba2(text: Mapping[str, Any]) -> int | None:
    return count(text, "num_heads") if text.get("model_type") == "mamba2" else None
