"""KvLayout: config.json of any model -> bytes of its KV per token, per sequence and per stored token, with the formula.

What `KvShape` says of models whose layers are all alike, for those that mix full attention with windows and states.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Self

from kvtier.kvshape import DTYPE_BYTES, KvShape, Unknown, dtype_of, heads_of, read_config, text_config
from kvtier.planning import layers
from kvtier.planning.layers import FULL, STATE, WINDOW, State

_BLOCK_TOKENS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class KvLayout:
    """KV of one model on all ranks of an engine. Byte counts are exact, before compression."""

    full: KvShape | None  # layers that attend to everything
    window: KvShape | None  # layers that attend to the last `window_tokens`
    window_tokens: int
    state: State | None
    n_state_layers: int
    n_own_heads: int  # KV heads of one copy of the model; fewer than `n_heads` when ranks keep copies
    tensor_parallel: int

    @property
    def bytes_per_token(self) -> int:
        """KV that one token adds, windows included: what computing a token writes."""
        return sum(shape.bytes_per_token for shape in (self.full, self.window) if shape)

    @property
    def copies_on_device(self) -> int:
        """Ranks that each hold, and load, all of what a tier keeps once: every rank with MLA."""
        return self.tensor_parallel if self.full is not None and self.full.kind == "MLA" else 1

    @property
    def state_bytes(self) -> int:
        """States of one sequence, however long it is."""
        if self.state is None:
            return 0
        one = prod(self.state.conv) * self.state.conv_bytes + prod(self.state.recurrent) * self.state.recurrent_bytes
        return self.n_state_layers * one

    @property
    def tokens_per_state(self) -> int:
        """Tokens between two states that can be found again.

        vLLM gives both kinds of layers pages of one size, so a block is as long as it takes until the KV of one
        attention layer is as large as the state of one other layer.
        """
        shape = self.full or self.window
        if not self.state_bytes or shape is None:
            return _BLOCK_TOKENS
        per_layer = shape.bytes_per_token // shape.n_layers
        needed = -(-self.state_bytes // self.n_state_layers // per_layer)
        return max(1, -(-needed // _BLOCK_TOKENS)) * _BLOCK_TOKENS

    @property
    def stored_bytes_per_token(self) -> float:
        """What a tier keeps for one token of a prefix that can be found at every block: windows and states too."""
        return self.bytes_per_token + self.state_bytes / self.tokens_per_state

    def device_bytes(self, n_tokens: int) -> int:
        """What a sequence of `n_tokens` holds on the device."""
        return int(self.load_bytes(n_tokens))

    def load_bytes(self, n_tokens: float) -> float:
        """What has to come up for `n_tokens` of a prefix, its last ones included: windows and one state, not all."""
        full = self.full.bytes_per_token * n_tokens if self.full else 0
        window = self.window.bytes_per_token * min(n_tokens, self.window_tokens) if self.window else 0
        return full + window + self.state_bytes if n_tokens > 0 else 0.0

    def formula(self) -> Iterator[str]:
        """The arithmetic with this model's numbers, one line per kind of layer."""
        if self.full:
            yield f"full attention: {self._attention(self.full)}"
        if self.window:
            most = self.window.bytes_per_token * self.window_tokens
            yield (
                f"sliding window: {self._attention(self.window)}, on the device for the last "
                f"{self.window_tokens:,} tokens only = {most:,} bytes a sequence"
            )
        if self.state:
            conv, recurrent = (" x ".join(f"{n:,}" for n in part) for part in (self.state.conv, self.state.recurrent))
            yield (
                f"state: {self.n_state_layers} layers x ({conv} x {self.state.conv_bytes} bytes + {recurrent} x "
                f"{self.state.recurrent_bytes} bytes) = {self.state_bytes:,} bytes a sequence"
            )
            per_token = self.state_bytes / self.tokens_per_state
            yield f"  kept every {self.tokens_per_state:,} tokens, so {per_token:,.0f} bytes a token where it is stored"

    def _attention(self, shape: KvShape) -> str:
        size = DTYPE_BYTES[shape.dtype]
        if shape.kind == "MLA":
            what = f"{shape.n_layers} layers x {shape.head_size} latent elements"
        else:
            half = shape.head_size // 2
            copies = f" ({self.n_own_heads}, copied to {self.tensor_parallel} ranks)"
            heads = f"{shape.n_heads} KV heads{copies if shape.n_heads > self.n_own_heads else ''}"
            what = f"{shape.n_layers} layers x {heads} x ({half} K + {half} V)"
        return f"{what} x {size} byte{'s' * (size > 1)} ({shape.dtype}) = {shape.bytes_per_token:,} bytes a token"

    @classmethod
    def of_model(cls, folder: Path, *, kv_dtype: str = "auto", tensor_parallel: int = 1) -> Self | Unknown:
        """Read `folder`/config.json. `kv_dtype` is one of KV_DTYPES. Raises ConfigError when there is no such file."""
        return cls.of_config(read_config(folder), kv_dtype=kv_dtype, tensor_parallel=tensor_parallel)

    @classmethod
    def of_config(cls, model: Mapping[str, Any], *, kv_dtype: str = "auto", tensor_parallel: int = 1) -> Self | Unknown:
        """The same, of the contents of a config.json."""
        text = text_config(model)
        kinds, dtype = layers.kinds_of(model, text), dtype_of(model, text, kv_dtype)
        if isinstance(kinds, Unknown):
            return kinds
        if isinstance(dtype, Unknown):
            return dtype
        n_full, n_window, n_state = (kinds.count(kind) for kind in (FULL, WINDOW, STATE))
        heads, window = ("", 0, 0), 0
        if n_full or n_window:
            found = heads_of(text, tensor_parallel)
            if isinstance(found, Unknown):
                return found
            heads = found
        if n_window:
            width = layers.window_of(text)
            if isinstance(width, Unknown):
                return width
            window = width
        state = layers.state_of(text, _state_dtype(model, text), tensor_parallel) if n_state else None
        if isinstance(state, Unknown):
            return state
        kind, n_heads, head_size = heads

        def shape(n_layers: int) -> KvShape | None:
            if not n_layers:
                return None
            return KvShape(kind=kind, n_layers=n_layers, n_heads=n_heads, head_size=head_size, dtype=dtype)

        one = heads_of(text, 1) if n_full or n_window else heads
        return cls(
            full=shape(n_full),
            window=shape(n_window),
            window_tokens=window,
            state=state,
            n_state_layers=n_state,
            n_own_heads=n_heads if isinstance(one, Unknown) else one[1],
            tensor_parallel=tensor_parallel,
        )


def _state_dtype(model: Mapping[str, Any], text: Mapping[str, Any]) -> str:
    """States have the model's dtype, also where the KV has fewer bits."""
    plain = {key: value for key, value in model.items() if key != "quantization_config"}
    dtype = dtype_of(plain, {key: value for key, value in text.items() if key != "quantization_config"}, "auto")
    return "bfloat16" if isinstance(dtype, Unknown) else dtype
