"""Bytes of KV per token of known models, and the models about which config.json does not tell."""

from __future__ import annotations

import json

import pytest

from kvtier.errors import ConfigError
from kvtier.kvshape import KvShape, Unknown

LLAMA_8B = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "torch_dtype": "bfloat16",
}
SMOLLM = {
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "dtype": "bfloat16",
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
QWEN3_06B = {
    "hidden_size": 1024,
    "head_dim": 128,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "sliding_window": None,
    "use_sliding_window": False,
    "layer_types": ["full_attention"] * 28,
    "dtype": "bfloat16",
}
GPT2 = {"n_embd": 768, "n_layer": 12, "n_head": 12, "torch_dtype": "float32"}
FALCON_7B = {
    "hidden_size": 4544,
    "num_hidden_layers": 32,
    "num_attention_heads": 71,
    "num_kv_heads": 71,
    "multi_query": True,
    "torch_dtype": "bfloat16",
}


@pytest.mark.parametrize(
    ("model", "kind", "n_bytes"),
    [
        (LLAMA_8B, "GQA", 128 << 10),
        (SMOLLM, "GQA", 23_040),
        (DEEPSEEK_V3, "MLA", 70_272),
        (QWEN3_06B, "GQA", 28 * 8 * 128 * 2 * 2),  # head_dim is not hidden_size / heads here
        (GPT2, "MHA", 12 * 768 * 2 * 2),  # float32 weights are served in half precision
        (FALCON_7B, "MQA", 32 * 64 * 2 * 2),
        ({"text_config": LLAMA_8B, "vision_config": {}}, "GQA", 128 << 10),
        (LLAMA_8B | {"num_key_value_heads": None}, "MHA", 512 << 10),
    ],
)
def test_bytes_per_token_of_known_models(model, kind, n_bytes):
    shape = KvShape.of_config(model)
    assert (shape.kind, shape.bytes_per_token) == (kind, n_bytes)


def test_an_8_bit_cache_takes_half():
    assert KvShape.of_config(LLAMA_8B, kv_dtype="fp8_e5m2").bytes_per_token == 64 << 10


@pytest.mark.parametrize("quantization", [{"kv_cache_scheme": {"num_bits": 8}}, {"kv_cache_quant_algo": "FP8"}])
def test_a_checkpoint_with_an_8_bit_cache_is_seen(quantization):
    assert KvShape.of_config(LLAMA_8B | {"quantization_config": quantization}).bytes_per_token == 64 << 10


@pytest.mark.parametrize(("ranks", "n_bytes"), [(2, 128 << 10), (8, 128 << 10), (16, 256 << 10)])
def test_more_ranks_than_heads_keep_heads_more_than_once(ranks, n_bytes):
    assert KvShape.of_config(LLAMA_8B, tensor_parallel=ranks).bytes_per_token == n_bytes


def test_latent_attention_is_kept_once_however_many_ranks():
    assert KvShape.of_config(DEEPSEEK_V3, tensor_parallel=8).bytes_per_token == 70_272


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"sliding_window": 4096}, "sliding window"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "several types"),
        ({"layer_types": ["linear_attention"]}, "several types"),
        ({"mamba_d_state": 16}, "state-space"),
        ({"full_attention_interval": 4}, "linear"),
        ({"index_topk": 2048}, "index"),
        ({"num_kv_shared_layers": 10}, "share"),
        ({"attention_chunk_size": 8192}, "locally"),
        ({"is_encoder_decoder": True}, "encoder-decoder"),
        ({"v_head_dim": 64, "head_dim": 128}, "differ in size"),
        ({"torch_dtype": "int3"}, "int3"),
        ({"torch_dtype": None}, "not given"),
        ({"num_key_value_heads": [8, 4]}, "how large its heads are"),
        ({"num_hidden_layers": "many"}, "how many layers"),
        ({"num_hidden_layers": True}, "how many layers"),
        ({"kv_lora_rank": 512}, "latent"),
        ({"hidden_size": None}, "how large its heads are"),
    ],
)
def test_a_model_that_is_not_uniform_is_not_guessed_at(change, why):
    shape = KvShape.of_config(LLAMA_8B | change)
    assert isinstance(shape, Unknown)
    assert why in shape.reason


def test_a_model_folder_is_read(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(SMOLLM))
    assert KvShape.of_model(tmp_path).bytes_per_token == 23_040


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot read it: No such file or directory; name a model's folder"),
        ("{", "not JSON"),
        ("[]", "not a model's configuration"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_a_folder_without_a_usable_config_json_is_an_error_with_its_path(tmp_path, text, message):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError) as error:
        KvShape.of_model(tmp_path)
    assert str(error.value).startswith(f"{tmp_path}/config.json: {message}")
