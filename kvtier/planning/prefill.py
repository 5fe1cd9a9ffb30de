"""Prefill: config.json and a GPU, or measured rates -> seconds to compute tokens i..j of a prompt. Pure arithmetic.

Seconds for the first n tokens are a*n + b*n^2: weights per token, attention per pair of tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from kvtier.errors import ConfigError
from kvtier.kvshape import LAYER_KEYS, QUERY_KEYS, Unknown, count, text_config
from kvtier.planning.layers import FULL, NONE, STATE, WINDOW, kinds_of, window_of


@dataclass(frozen=True, slots=True)
class Flops:
    """Floating point operations of prefilling n tokens: `linear` * n + `quadratic` * n^2."""

    linear: float
    quadratic: float

    @property
    def parameters(self) -> float:
        """Active parameters that `linear` stands for, two operations each; windowed attention counted in."""
        return self.linear / 2


@dataclass(frozen=True, slots=True)
class Prefill:
    """Seconds of prefill on all GPUs of one engine, one prompt at a time."""

    per_token_s: float
    per_pair_s: float
    source: str

    def seconds(self, n_tokens: float, start: float = 0) -> float:
        """Seconds to compute tokens `start` to `n_tokens` of a prompt whose first `start` are there."""
        return self.per_token_s * (n_tokens - start) + self.per_pair_s * (n_tokens**2 - start**2)

    def rate(self, n_tokens: float) -> float:
        """Tokens per second over a prompt of `n_tokens`: it falls as prompts grow."""
        return n_tokens / self.seconds(n_tokens)

    @classmethod
    def of_flops(cls, flops: Flops, tflops: float, source: str) -> Self:
        """From the operations and what the GPUs really do of them per second, in 10^12."""
        return cls(flops.linear / tflops / 1e12, flops.quadratic / tflops / 1e12, source)

    @classmethod
    def of_rates(cls, rates: Sequence[tuple[float, float]], flops: Flops | None) -> Self:
        """From measured (tokens per second, prompt length) pairs. Raises ConfigError when they contradict each other.

        Two or more pairs fix both terms (least squares of the relative error). One pair fixes their size, and the model
        their ratio; without a model the rate stays the same at every length.
        """
        if len(rates) == 1:
            rate, n = rates[0]
            if flops is None:
                return cls(1 / rate, 0.0, f"{rate:,.0f} tokens/s at every length (as given)")
            scale = n / rate / (flops.linear * n + flops.quadratic * n * n)
            return cls(flops.linear * scale, flops.quadratic * scale, f"{rate:,.0f} tokens/s at {n:,.0f} (as given)")
        # a + b*n = 1/rate, each side divided by 1/rate: x*a + y*b = 1
        rows = [(rate, rate * n) for rate, n in rates]
        xx, xy, yy = (sum(row[i] * row[j] for row in rows) for i, j in ((0, 0), (0, 1), (1, 1)))
        x, y = sum(row[0] for row in rows), sum(row[1] for row in rows)
        determinant = xx * yy - xy * xy
        if determinant <= 1e-9 * xx * yy:
            raise ConfigError("--prefill: several rates at one length: give each at another prompt length")
        a, b = (x * yy - y * xy) / determinant, (y * xx - x * xy) / determinant
        if a <= 0 or b < 0:
            raise ConfigError(
                "--prefill: rates that grow with the prompt: below some thousand tokens steps are too short to be "
                "measured, so leave those out, or give one rate"
            )
        return cls(a, b, "fitted to " + ", ".join(f"{rate:,.0f} tokens/s at {n:,.0f}" for rate, n in rates))


def flops_of(model: Mapping[str, Any], active_parameters: float | None = None) -> Flops | Unknown:
    """Operations of one forward pass over a prompt, causal, output head left out (it runs for one token).

    `active_parameters`, when given, replaces the count from config.json.
    """
    text = text_config(model)
    kinds = kinds_of(model, text)
    if isinstance(kinds, Unknown):
        return kinds
    hidden, n_query = count(text, "hidden_size", "n_embd", "d_model"), count(text, *QUERY_KEYS)
    if not hidden:
        return Unknown("config.json does not say how wide it is")
    qk, v = _head_sizes(text, hidden, n_query or 1)
    pair = 2.0 * (n_query or 0) * (qk + v)  # operations for one pair of tokens in one layer, before the causal half
    window = window_of(text) if WINDOW in kinds else 0
    if isinstance(window, Unknown):
        return window
    parameters = active_parameters or sum(
        _parameters(text, i, kind, hidden, n_query or 0) for i, kind in enumerate(kinds)
    )
    return Flops(2 * parameters + kinds.count(WINDOW) * pair * window, kinds.count(FULL) * pair / 2)


def total_parameters(model: Mapping[str, Any]) -> float | Unknown:
    """Parameters that device memory holds: as many experts as there are, and the embeddings."""
    text = text_config(model)
    kinds = kinds_of(model, text)
    if isinstance(kinds, Unknown):
        return kinds
    hidden, vocabulary = count(text, "hidden_size", "n_embd", "d_model"), count(text, "vocab_size") or 0
    if not hidden or not count(text, *LAYER_KEYS, "num_hidden_layers"):
        return Unknown("config.json does not say how wide it is")
    n_query = count(text, *QUERY_KEYS) or 0
    embeddings = vocabulary * hidden * (1 if text.get("tie_word_embeddings") else 2)
    return embeddings + sum(
        _parameters(text, i, kind, hidden, n_query, every_expert=True) for i, kind in enumerate(kinds)
    )


def _head_sizes(text: Mapping[str, Any], hidden: int, n_query: int) -> tuple[int, int]:
    """Elements of a query (or key) head and of a value head."""
    if text.get("kv_lora_rank") is not None:
        qk = (count(text, "qk_nope_head_dim") or 128) + (count(text, "qk_rope_head_dim") or 64)
        return qk, count(text, "v_head_dim") or 128
    head = count(text, "head_dim") or hidden // n_query
    return head, head


def _parameters(
    text: Mapping[str, Any], layer: int, kind: str, hidden: int, n_query: int, *, every_expert: bool = False
) -> float:
    """Parameters of one layer: the mixer, and the feed-forward part unless that is a layer of its own."""
    apart = bool(text.get("hybrid_override_pattern") or text.get("state_size"))
    mlp = 0.0 if apart and kind != NONE else _mlp(text, layer, hidden, every_expert=every_expert)
    if kind == NONE:
        return mlp
    return mlp + (3.0 * hidden * _state_width(text, hidden) if kind == STATE else _attention(text, hidden, n_query))


def _attention(text: Mapping[str, Any], hidden: int, n_query: int) -> float:
    qk, v = _head_sizes(text, hidden, n_query or 1)
    if text.get("kv_lora_rank") is None:
        n_kv = count(text, "num_key_value_heads", "n_head_kv", "num_kv_heads") or n_query
        return float(hidden * qk * (2 * n_query + 2 * n_kv))
    rank, q_rank = count(text, "kv_lora_rank") or 0, count(text, "q_lora_rank")
    query = q_rank * (hidden + n_query * qk) if q_rank else hidden * n_query * qk
    nope = count(text, "qk_nope_head_dim") or 128
    keys = hidden * (rank + (count(text, "qk_rope_head_dim") or 64)) + rank * n_query * (nope + v)
    return float(query + keys + n_query * v * hidden)


def _state_width(text: Mapping[str, Any], hidden: int) -> float:
    if heads := count(text, "linear_num_value_heads"):
        return heads * (count(text, "linear_value_head_dim") or 128)
    if heads := count(text, "mamba_num_heads", "mamba_n_heads"):
        return heads * (count(text, "mamba_head_dim", "mamba_d_head") or 64)
    expand = text.get("mamba_expand", text.get("expand", 2))
    return hidden * (expand if type(expand) in (int, float) else 2)


def _mlp(text: Mapping[str, Any], layer: int, hidden: int, *, every_expert: bool) -> float:
    """Parameters of a feed-forward layer, or of the experts one token goes through."""
    matrices = 2 if count(text, "n_embd") or text.get("hybrid_override_pattern") else 3
    inner = count(text, "intermediate_size", "n_inner", "ffn_hidden_size") or 4 * hidden
    n_experts = count(text, "num_experts", "n_routed_experts", "num_local_experts")
    if not n_experts or not _has_experts(text, layer):
        return float(matrices * hidden * inner)
    used = count(text, "num_experts_per_tok", "experts_per_token") or 1
    each = count(text, "moe_intermediate_size") or inner
    shared = count(text, "shared_expert_intermediate_size") or (count(text, "n_shared_experts") or 0) * each
    return float(matrices * hidden * ((n_experts if every_expert else used) * each + shared))


def _has_experts(text: Mapping[str, Any], layer: int) -> bool:
    """Whether this layer of a model with experts has them."""
    if layer < (count(text, "first_k_dense_replace") or 0):
        return False
    if period := count(text, "expert_layer_period"):
        return layer % period == (count(text, "expert_layer_offset") or 0)
    step = count(text, "decoder_sparse_step", "interleave_moe_layer_step") or 1
    return (layer + 1) % step == 0
