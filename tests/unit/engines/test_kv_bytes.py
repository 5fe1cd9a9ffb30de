"""Bytes of KV told from config.json are those of vLLM's own specifications, which decide what it allocates."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kvtier.planning.layout import KvLayout

pytest.importorskip("vllm", reason="the engine is not installed")

BLOCK_TOKENS = 16
COMMON = {"vocab_size": 1024, "max_position_embeddings": 4096, "torch_dtype": "bfloat16"}
DEMO = COMMON | {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
}
LLAMA_70B = DEMO | {
    "hidden_size": 8192,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
}
DEEPSEEK_V3 = COMMON | {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128,
    "v_head_dim": 128,
}
GEMMA3 = COMMON | {
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "hidden_size": 1152,
    "head_dim": 256,
    "intermediate_size": 6912,
    "num_hidden_layers": 26,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "sliding_window": 512,
    "sliding_window_pattern": 6,
}
QWEN3_NEXT = {
    "model_type": "qwen3_next",
    "hidden_size": 2048,
    "head_dim": 256,
    "num_hidden_layers": 48,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "full_attention_interval": 4,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "linear_value_head_dim": 128,
    "torch_dtype": "bfloat16",
}


def layout(model: dict[str, Any], **given: Any) -> KvLayout:
    found = KvLayout.of_config(model, **given)
    assert isinstance(found, KvLayout)
    return found


def of_vllm(folder: Path, model: dict[str, Any], *, ranks: int = 1, kv_dtype: str = "auto") -> int:
    """Bytes of one token on all ranks: vLLM's reading of the same config.json, in vLLM's own page size."""
    from vllm.config import ModelConfig  # noqa: PLC0415 - seconds to import
    from vllm.utils.torch_utils import kv_cache_dtype_str_to_dtype  # noqa: PLC0415
    from vllm.v1.kv_cache_interface import FullAttentionSpec, MLAAttentionSpec  # noqa: PLC0415

    (folder / "config.json").write_text(json.dumps(model))
    config = ModelConfig(model=str(folder), skip_tokenizer_init=True)
    parallel: Any = SimpleNamespace(tensor_parallel_size=ranks, pipeline_parallel_size=1)
    spec = MLAAttentionSpec if config.use_mla else FullAttentionSpec
    given: dict[str, Any] = {"state_content_bytes": None} if not config.use_mla else {"head_size_v": 0}
    page = spec(
        block_size=BLOCK_TOKENS,
        num_kv_heads=config.get_num_kv_heads(parallel),
        head_size=config.get_head_size(),
        dtype=kv_cache_dtype_str_to_dtype(kv_dtype, config),
        **given,
    ).page_size_bytes
    copies = 1 if config.use_mla else ranks  # every rank has the same latent KV, which a tier keeps once
    return page * config.hf_text_config.num_hidden_layers * copies // BLOCK_TOKENS


@pytest.mark.parametrize(
    ("model", "given"),
    [
        (DEMO, {}),
        (LLAMA_70B, {}),
        (LLAMA_70B, {"ranks": 4}),
        (LLAMA_70B, {"ranks": 16}),
        (LLAMA_70B, {"kv_dtype": "fp8"}),
        (DEEPSEEK_V3, {}),
        (DEEPSEEK_V3, {"ranks": 8}),
        (GEMMA3, {}),
    ],
    ids=["demo", "70B", "70B-tp4", "70B-tp16", "70B-fp8", "mla", "mla-tp8", "windows"],
)
def test_a_token_takes_what_vllm_allocates_for_it(tmp_path: Path, model: dict[str, Any], given: dict[str, Any]) -> None:
    ours = layout(model, kv_dtype=given.get("kv_dtype", "auto"), tensor_parallel=given.get("ranks", 1))
    assert ours.bytes_per_token == of_vllm(tmp_path, model, **given)


def test_the_demo_model_takes_23040_bytes_a_token(tmp_path: Path) -> None:
    assert of_vllm(tmp_path, DEMO) == 23_040


@pytest.mark.parametrize("ranks", [1, 4])
def test_a_state_takes_what_vllm_allocates_for_it(ranks: int) -> None:
    import torch  # noqa: PLC0415
    from vllm.model_executor.layers.mamba.mamba_utils import MambaStateShapeCalculator  # noqa: PLC0415
    from vllm.v1.kv_cache_interface import MambaSpec  # noqa: PLC0415

    shapes = MambaStateShapeCalculator.gated_delta_net_state_shape(ranks, 16, 32, 128, 128, 4)
    one = MambaSpec(block_size=BLOCK_TOKENS, shapes=shapes, dtypes=(torch.bfloat16,) * 2).page_size_bytes
    assert layout(QWEN3_NEXT, tensor_parallel=ranks).state_bytes == 36 * one * ranks


@pytest.mark.parametrize("ranks", [1, 8, 16])
def test_a_mamba_2_state_takes_what_vllm_allocates_for_it(ranks: int) -> None:
    import torch  # noqa: PLC0415
    from vllm.model_executor.layers.mamba.mamba_utils import MambaStateShapeCalculator  # noqa: PLC0415
    from vllm.v1.kv_cache_interface import MambaSpec  # noqa: PLC0415

    model = {
        "hidden_size": 4096,
        "head_dim": 128,
        "num_hidden_layers": 4,
        "hybrid_override_pattern": "M*M-",
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "mamba_num_heads": 128,
        "mamba_head_dim": 64,
        "n_groups": 8,
        "ssm_state_size": 128,
        "conv_kernel": 4,
        "torch_dtype": "bfloat16",
    }
    shapes = MambaStateShapeCalculator.mamba2_state_shape(ranks, 128 * 64, 8, 128, 64, 128, 4)
    one = MambaSpec(block_size=BLOCK_TOKENS, shapes=shapes, dtypes=(torch.bfloat16,) * 2).page_size_bytes
    assert layout(model, tensor_parallel=ranks).state_bytes == 2 * one * ranks


@pytest.mark.parametrize(
    ("model_type", "given"),
    [("gemma2", {}), ("gemma3_text", {}), ("exaone4", {}), ("qwen2", {"use_sliding_window": True}), ("qwen3", {})],
)
def test_the_kinds_of_layers_told_by_rule_are_those_that_transformers_names(
    model_type: str, given: dict[str, Any]
) -> None:
    from transformers import AutoConfig  # noqa: PLC0415

    from kvtier.planning.layers import kinds_of  # noqa: PLC0415

    model = AutoConfig.for_model(model_type, **given).to_dict() | {"model_type": model_type}
    named = kinds_of(model, model)
    by_rule = {key: value for key, value in model.items() if key != "layer_types"}
    assert isinstance(named, tuple)
    assert kinds_of(by_rule, by_rule) == named
