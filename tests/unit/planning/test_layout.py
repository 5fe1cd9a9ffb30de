"""What the KV of known models takes, and the models about which config.json does not tell."""

from __future__ import annotations

import pytest

from kvtier.kvshape import KvShape, Unknown
from kvtier.planning.layout import KvLayout

LLAMA_70B = {
    "hidden_size": 8192,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "torch_dtype": "bfloat16",
}
DEEPSEEK_V3 = {
    "hidden_size": 7168,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "torch_dtype": "bfloat16",
}
GEMMA3_27B = {
    "text_config": {
        "model_type": "gemma3_text",
        "hidden_size": 5376,
        "head_dim": 128,
        "num_hidden_layers": 62,
        "num_attention_heads": 32,
        "num_key_value_heads": 16,
        "sliding_window": 1024,
        "sliding_window_pattern": 6,
    },
    "torch_dtype": "bfloat16",
}
GPT_OSS_20B = {
    "model_type": "gpt_oss",
    "hidden_size": 2880,
    "head_dim": 64,
    "num_hidden_layers": 24,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "sliding_window": 128,
    "layer_types": ["sliding_attention", "full_attention"] * 12,
    "torch_dtype": "bfloat16",
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
NEMOTRON_H = {
    "model_type": "nemotron_h",
    "hidden_size": 4096,
    "head_dim": 128,
    "num_hidden_layers": 6,
    "hybrid_override_pattern": "M-M*-M",
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "mamba_num_heads": 128,
    "mamba_head_dim": 64,
    "n_groups": 8,
    "ssm_state_size": 128,
    "conv_kernel": 4,
    "torch_dtype": "bfloat16",
}
JAMBA = {
    "model_type": "jamba",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "attn_layer_period": 8,
    "attn_layer_offset": 4,
    "mamba_d_state": 16,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "torch_dtype": "bfloat16",
}
FALCON_MAMBA = {
    "model_type": "falcon_mamba",
    "hidden_size": 4096,
    "intermediate_size": 8192,
    "num_hidden_layers": 64,
    "state_size": 16,
    "conv_kernel": 4,
    "torch_dtype": "bfloat16",
}


def layout(model, **given):
    found = KvLayout.of_config(model, **given)
    assert isinstance(found, KvLayout), found
    return found


def test_70b_with_8_kv_heads_takes_1_25_gib_at_4096_tokens():
    assert layout(LLAMA_70B).device_bytes(4096) == 1.25 * (1 << 30)


def test_8_bits_take_half_of_16():
    assert layout(LLAMA_70B, kv_dtype="fp8").device_bytes(4096) == 0.625 * (1 << 30)


@pytest.mark.parametrize("model", [LLAMA_70B, DEEPSEEK_V3])
@pytest.mark.parametrize("ranks", [1, 4, 16])
def test_models_whose_layers_are_alike_take_what_kv_shape_says(model, ranks):
    shape = KvShape.of_config(model, tensor_parallel=ranks)
    assert layout(model, tensor_parallel=ranks).bytes_per_token == shape.bytes_per_token


@pytest.mark.parametrize(("n_tokens", "n_window"), [(100, 100), (1024, 1024), (50_000, 1024)])
def test_windowed_layers_hold_no_more_than_their_window_on_the_device(n_tokens, n_window):
    gemma = layout(GEMMA3_27B)
    per_layer = 16 * 2 * 128 * 2
    assert gemma.device_bytes(n_tokens) == per_layer * (10 * n_tokens + 52 * n_window)


def test_a_tier_stores_windowed_layers_of_every_token():
    assert layout(GPT_OSS_20B).stored_bytes_per_token == 24 * 8 * 128 * 2


@pytest.mark.parametrize(
    ("model", "n_attention", "state_bytes"),
    [
        (QWEN3_NEXT, 12, 36 * 2 * (3 * (2 * 16 * 128 + 32 * 128) + 32 * 128 * 128)),
        (QWEN3_NEXT | {"mamba_ssm_dtype": "float32"}, 12, 36 * (2 * 3 * 8192 + 4 * 32 * 128 * 128)),
        (NEMOTRON_H, 1, 3 * 2 * (3 * (128 * 64 + 2 * 8 * 128) + 128 * 64 * 128)),
        (JAMBA, 4, 28 * 2 * (3 * 8192 + 8192 * 16)),
    ],
)
def test_state_layers_take_the_same_however_long_the_sequence(model, n_attention, state_bytes):
    hybrid = layout(model)
    assert hybrid.full.n_layers == n_attention
    assert hybrid.state_bytes == state_bytes
    assert hybrid.device_bytes(20_000) - hybrid.device_bytes(10_000) == 10_000 * hybrid.full.bytes_per_token


def test_states_have_the_models_dtype_when_the_kv_has_8_bits():
    assert layout(QWEN3_NEXT, kv_dtype="fp8").state_bytes == layout(QWEN3_NEXT).state_bytes


def test_fewer_groups_than_ranks_are_kept_by_every_rank():
    more = layout(NEMOTRON_H, tensor_parallel=16).state_bytes - layout(NEMOTRON_H).state_bytes
    assert more == 3 * 2 * 3 * (2 * 8 * 128)


def test_states_are_kept_as_far_apart_as_vllm_makes_the_blocks_of_qwen3_next():
    assert layout(QWEN3_NEXT).tokens_per_state == 544  # as vLLM says when it starts the published model


def test_a_stored_token_bears_its_share_of_the_state_kept_at_every_block():
    qwen = layout(QWEN3_NEXT)
    page = qwen.full.bytes_per_token // 12
    assert (qwen.tokens_per_state - 16) * page < qwen.state_bytes // 36 <= qwen.tokens_per_state * page
    assert qwen.stored_bytes_per_token == qwen.bytes_per_token + qwen.state_bytes / qwen.tokens_per_state


def test_a_model_without_attention_has_states_only():
    mamba = layout(FALCON_MAMBA)
    assert (mamba.bytes_per_token, mamba.state_bytes) == (0, 64 * 2 * (3 * 8192 + 8192 * 16))


@pytest.mark.parametrize(
    ("model", "given", "line"),
    [
        (
            LLAMA_70B,
            {},
            "full attention: 80 layers x 8 KV heads x (128 K + 128 V) x 2 bytes (bfloat16) = 327,680 bytes",
        ),
        (LLAMA_70B, {"tensor_parallel": 16}, "16 KV heads (8, copied to 16 ranks) x"),
        (DEEPSEEK_V3, {}, "61 layers x 576 latent elements x 2 bytes (bfloat16) = 70,272 bytes a token"),
        (GEMMA3_27B, {}, "for the last 1,024 tokens only = 436,207,616 bytes a sequence"),
        (JAMBA, {}, "state: 28 layers x (3 x 8,192 x 2 bytes + 8,192 x 16 x 2 bytes) = 8,716,288 bytes a sequence"),
        (LLAMA_70B, {"kv_dtype": "fp8"}, "x 1 byte (fp8) = 163,840 bytes a token"),
    ],
)
def test_the_formula_shows_the_numbers_of_the_model(model, given, line):
    assert line in "\n".join(layout(model, **given).formula())


@pytest.mark.parametrize(
    ("change", "n_full"),
    [
        ({"sliding_window": 4096, "model_type": "mistral"}, 0),  # Mistral 7B v0.1
        ({"sliding_window": 4096, "sliding_window_pattern": "LLLG"}, 20),
        ({"sliding_window": 4096, "sliding_window_pattern": 4}, 20),
        ({"sliding_window": 4096, "model_type": "gemma2"}, 40),
        ({"sliding_window": 4096, "use_sliding_window": False}, 80),
        ({"sliding_window": 4096, "use_sliding_window": True, "max_window_layers": 28}, 28),
        ({"layer_types": ["chunked_attention"] * 60 + ["full_attention"] * 20, "attention_chunk_size": 8192}, 20),
    ],
)
def test_windowed_layers_are_told_from_full_ones(change, n_full):
    found = layout(LLAMA_70B | change)
    assert (found.full.n_layers if found.full else 0) == n_full


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"layer_types": ["full_attention"] * 79}, "does not name all"),
        ({"layer_types": ["conv"] * 80}, "unknown type ('conv'"),
        ({"layer_types": ["sliding_attention"] * 80}, "how wide"),
        ({"attention_chunk_size": 8192}, "does not say which"),
        ({"sliding_window": 4096}, "does not say which"),
        ({"linear_num_value_heads": 32}, "does not say which"),
        ({"mamba_d_state": 16}, "does not say which"),
        ({"index_topk": 2048}, "index"),
        ({"num_kv_shared_layers": 10}, "share"),
        ({"global_head_dim": 512}, "heads of their own"),
        ({"full_attention_interval": 4}, "how large its state is"),
        ({"attn_layer_period": 8, "mamba_d_state": 16, "mamba_d_conv": 4}, "how wide"),
        ({"is_encoder_decoder": True}, "encoder-decoder"),
        ({"torch_dtype": "int3"}, "int3"),
        ({"num_hidden_layers": None}, "how many layers"),
        ({"num_attention_heads": None}, "how many layers and heads"),
    ],
)
def test_what_config_json_does_not_tell_is_not_guessed(change, why):
    found = KvLayout.of_config(LLAMA_70B | change)
    assert isinstance(found, Unknown)
    assert why in found.reason
