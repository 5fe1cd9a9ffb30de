"""Small models with random weights, made on the spot: for mechanics that SmolLM2's three KV heads cannot show."""

from pathlib import Path

BASE = {
    "vocab_size": 4096, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "max_position_embeddings": 8192,
    "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": True,
}  # fmt: skip
N_WINDOWED = 5  # layers of `make_sliding` whose attention has a window


def make_llama(folder: Path, *, seed: int, tied: bool = True) -> Path:
    """A 4-layer Llama in bf16 whose weights depend on `seed`; returns `folder`. `tied`: one matrix at both ends."""
    from transformers import LlamaConfig, LlamaForCausalLM  # noqa: PLC0415 - seconds to import

    return _save(LlamaForCausalLM, LlamaConfig(**{**BASE, "tie_word_embeddings": tied}), folder, seed)


def make_deepseek(folder: Path, *, seed: int) -> Path:
    """A 4-layer DeepSeek-V2 without experts: latent attention (MLA), 96 values a token and layer."""
    import json  # noqa: PLC0415

    from transformers import DeepseekV2Config, DeepseekV2ForCausalLM  # noqa: PLC0415

    heads = {"num_key_value_heads": 4, "head_dim": 32, "v_head_dim": 32, "qk_nope_head_dim": 32, "qk_rope_head_dim": 32}
    latent = {"kv_lora_rank": 64, "q_lora_rank": None, "tie_word_embeddings": False}
    no_experts = {
        "first_k_dense_replace": 4, "n_routed_experts": 2, "n_shared_experts": 1, "num_experts_per_tok": 1,
        "n_group": 1, "topk_group": 1, "moe_intermediate_size": 128, "moe_layer_freq": 1,
    }  # fmt: skip
    _save(DeepseekV2ForCausalLM, DeepseekV2Config(**{**BASE, **heads, **latent, **no_experts}), folder, seed)
    # SGLang rotates DeepSeek's keys on a CPU only with YaRN.
    file = folder / "config.json"
    config = json.loads(file.read_text())
    del config["rope_parameters"]
    yarn = {"beta_fast": 32, "beta_slow": 1, "mscale": 0.7, "mscale_all_dim": 0.7}
    scaling = {"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 4096, **yarn}
    file.write_text(json.dumps({**config, "rope_theta": 10000.0, "rope_scaling": scaling}))
    return folder


def make_sliding(folder: Path, *, seed: int) -> Path:
    """A 6-layer Gemma3 text model, `N_WINDOWED` layers with a sliding window of 64 tokens and one with full attention;
    for vLLM each is a KV cache group of its own."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig  # noqa: PLC0415

    n_layers = N_WINDOWED + 1
    config = Gemma3TextConfig(
        **{**BASE, "num_hidden_layers": n_layers}, sliding_window=64, sliding_window_pattern=n_layers
    )
    # Gemma scales embeddings up: with wide ones it repeats the last token, whatever came before.
    return _save(Gemma3ForCausalLM, config, folder, seed, embedding_std=0.002)


def make_lora(folder: Path, *, seed: int) -> Path:
    """A rank-8 adapter for `make_llama`'s q_proj and v_proj, in PEFT's layout; returns `folder`."""
    import json  # noqa: PLC0415

    import torch  # noqa: PLC0415
    from safetensors.torch import save_file  # noqa: PLC0415

    generator = torch.Generator().manual_seed(seed)
    hidden, kv = BASE["hidden_size"], BASE["num_key_value_heads"] * BASE["head_dim"]
    tensors = {}
    for layer in range(BASE["num_hidden_layers"]):
        for name, out in (("q_proj", hidden), ("v_proj", kv)):
            stem = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            tensors[f"{stem}.lora_A.weight"] = torch.randn(8, hidden, generator=generator) * 0.3
            tensors[f"{stem}.lora_B.weight"] = torch.randn(out, 8, generator=generator) * 0.3
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.bfloat16() for k, v in tensors.items()}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({
        "peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM",
        "bias": "none", "base_model_name_or_path": "tiny",
    }))  # fmt: skip
    return folder


def _save(model_class: type, config: object, folder: Path, seed: int, *, embedding_std: float = 0.08) -> Path:
    import torch  # noqa: PLC0415

    torch.manual_seed(seed)
    model = model_class(config)
    with torch.no_grad():
        for parameter in model.parameters():
            # Wide enough that greedy decoding does not settle on one token.
            parameter.normal_(0, 0.08) if parameter.dim() > 1 else None
        model.get_input_embeddings().weight.mul_(embedding_std / 0.08)
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder
