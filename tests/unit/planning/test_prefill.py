"""Prefill times: operations of known models, and rates that were measured."""

from __future__ import annotations

import pytest

from kvtier.errors import ConfigError
from kvtier.kvshape import Unknown
from kvtier.planning.hardware import GPUS, PREFILL_EFFICIENCY
from kvtier.planning.prefill import Flops, Prefill, flops_of, total_parameters

LLAMA_8B = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}
QWEN3_30B_A3B = {
    "hidden_size": 2048,
    "head_dim": 128,
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "moe_intermediate_size": 768,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "vocab_size": 151936,
}
DEEPSEEK_V3 = {
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
    "moe_intermediate_size": 2048,
    "n_routed_experts": 256,
    "num_experts_per_tok": 8,
    "n_shared_experts": 1,
    "vocab_size": 129280,
}
QWEN3_NEXT_80B = {
    "hidden_size": 2048,
    "head_dim": 256,
    "num_hidden_layers": 48,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "full_attention_interval": 4,
    "linear_num_value_heads": 32,
    "linear_value_head_dim": 128,
    "moe_intermediate_size": 512,
    "num_experts": 512,
    "num_experts_per_tok": 10,
    "shared_expert_intermediate_size": 512,
    "vocab_size": 151936,
}
NEMOTRON_H_8B = {
    "hidden_size": 4096,
    "intermediate_size": 21504,
    "num_hidden_layers": 52,
    "hybrid_override_pattern": "M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M-",
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "mamba_num_heads": 128,
    "mamba_head_dim": 64,
    "vocab_size": 131072,
}
JAMBA_LARGE = {
    "hidden_size": 8192,
    "intermediate_size": 24576,
    "num_hidden_layers": 72,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "attn_layer_period": 8,
    "attn_layer_offset": 4,
    "mamba_expand": 2,
    "num_experts": 16,
    "num_experts_per_tok": 2,
    "expert_layer_period": 2,
    "expert_layer_offset": 1,
    "vocab_size": 65536,
}
GPT_OSS_120B = {
    "hidden_size": 2880,
    "head_dim": 64,
    "intermediate_size": 2880,
    "num_hidden_layers": 36,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "sliding_window": 128,
    "layer_types": ["sliding_attention", "full_attention"] * 18,
    "num_local_experts": 128,
    "num_experts_per_tok": 4,
    "vocab_size": 201088,
}
GPT2 = {"n_embd": 768, "n_layer": 12, "n_head": 12, "vocab_size": 50257, "tie_word_embeddings": True}
# Seconds of prefill of an 8B-shaped bf16 model on one H200, vLLM 0.32.0, eager, median of 3.
MEASURED = {8192: 0.218, 32768: 1.216}


@pytest.mark.parametrize(
    ("model", "published", "tolerance"),
    [
        (LLAMA_8B, 8.03e9, 0.005),
        (QWEN3_30B_A3B, 30.5e9, 0.01),
        (DEEPSEEK_V3 | {"first_k_dense_replace": 3}, 671e9, 0.01),
        (QWEN3_NEXT_80B, 80e9, 0.02),
        (NEMOTRON_H_8B, 8.1e9, 0.03),
        (JAMBA_LARGE, 398e9, 0.03),
        (GPT_OSS_120B, 116.8e9, 0.01),
        (GPT2, 124e6, 0.02),
    ],
)
def test_parameters_counted_from_config_json_are_the_published_ones(model, published, tolerance):
    assert total_parameters(model) == pytest.approx(published, rel=tolerance)


@pytest.mark.parametrize(
    ("model", "published", "tolerance"),
    [(QWEN3_30B_A3B, 3.3e9, 0.02), (GPT_OSS_120B, 5.1e9, 0.1), (JAMBA_LARGE, 94e9, 0.02)],
)
def test_a_token_goes_through_some_experts_only(model, published, tolerance):
    embeddings = (2 if model is QWEN3_30B_A3B else 1) * model["vocab_size"] * model["hidden_size"]
    assert flops_of(model).parameters + embeddings == pytest.approx(published, rel=tolerance)


@pytest.mark.parametrize("n_tokens", MEASURED)
def test_the_h200_preset_gives_the_prefill_times_that_were_measured(n_tokens):
    prefill = Prefill.of_flops(flops_of(LLAMA_8B), GPUS["h200"].tflops * PREFILL_EFFICIENCY, "")
    assert prefill.seconds(n_tokens) == pytest.approx(MEASURED[n_tokens], rel=0.02)


def test_one_measured_rate_and_the_model_give_the_others():
    prefill = Prefill.of_rates([(8192 / MEASURED[8192], 8192)], flops_of(LLAMA_8B))
    assert prefill.seconds(32768) == pytest.approx(MEASURED[32768], rel=0.02)


def test_two_measured_rates_are_met_exactly():
    prefill = Prefill.of_rates([(n / seconds, n) for n, seconds in MEASURED.items()], None)
    assert [prefill.seconds(n) for n in MEASURED] == pytest.approx(list(MEASURED.values()))


def test_one_rate_without_a_model_holds_at_every_length():
    prefill = Prefill.of_rates([(1000, 500)], None)
    assert (prefill.rate(10), prefill.rate(100_000)) == pytest.approx((1000, 1000))


def test_computing_in_two_parts_takes_as_long_as_at_once():
    prefill = Prefill.of_flops(flops_of(LLAMA_8B), 600, "")
    assert prefill.seconds(3000) + prefill.seconds(9000, 3000) == pytest.approx(prefill.seconds(9000))


def test_the_rate_falls_with_the_prompt():
    prefill = Prefill.of_flops(flops_of(LLAMA_8B), 600, "")
    assert prefill.rate(2048) > prefill.rate(32768) > prefill.rate(131072)


@pytest.mark.parametrize(
    ("rates", "complaint"),
    [
        ([(1000, 500), (1001, 500)], "several rates at one length"),
        ([(1000, 500), (2000, 5000)], "grow with the prompt"),
    ],
)
def test_rates_that_contradict_each_other_are_refused(rates, complaint):
    with pytest.raises(ConfigError, match=complaint):
        Prefill.of_rates(rates, None)


def test_a_window_makes_attention_linear():
    windowed = flops_of(LLAMA_8B | {"sliding_window": 1024, "model_type": "mistral"})
    assert windowed.quadratic == 0
    assert windowed.linear == flops_of(LLAMA_8B).linear + 32 * 4 * 4096 * 1024


def test_parameters_given_replace_the_count():
    assert flops_of(LLAMA_8B, 1e9) == Flops(2e9, flops_of(LLAMA_8B).quadratic)


@pytest.mark.parametrize("change", [{"hidden_size": None}, {"num_hidden_layers": None}, {"index_topk": 64}])
def test_what_config_json_does_not_tell_is_not_guessed(change):
    assert isinstance(flops_of(LLAMA_8B | change), Unknown)
    assert isinstance(total_parameters(LLAMA_8B | change), Unknown)
