"""`kvtier plan` as people run it: output, exit codes, the file it writes, and what it says to wrong options."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kvtier.cli import main as cli
from kvtier.cli import plan_inputs
from kvtier.cli.plan import _GPUS
from kvtier.planning.hardware import GPUS
from kvtier.planning.probe import Probed

SMOLLM = {
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
    "dtype": "bfloat16",
}
HARDWARE = {
    "--prefill": "2000@1000",
    "--pcie": "4",
    "--device-cache": "4MiB",
    "--ram": "48MiB",
    "--disk": "1GiB",
    "--disk-read": "2",
    "--disk-write": "1",
}
WORKLOAD = {
    "--rate": "0.1",
    "--prompt-tokens": "700",
    "--prefixes": "30",
    "--prefix-tokens": "500",
    "--reuse": "80%",
}


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "SmolLM2-135M"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(SMOLLM))
    return folder


@pytest.fixture
def plan(model, capsys):
    def run(*given, without=(), workload=WORKLOAD):
        options = [
            word for name, value in (HARDWARE | workload).items() if name not in without for word in (name, value)
        ]
        code = cli.main(["plan", "--model", str(model), *options, *given])
        return code, *capsys.readouterr()

    return run


def trace_of(path: Path, n_requests: int, n_shared: int = 6) -> Path:
    """Mooncake's format: every request begins with the same blocks, and then goes its own way."""
    lines = []
    for number in range(n_requests):
        ids = [*range(n_shared), *range(1000 + 10 * number, 1004 + 10 * number)]
        request = {"timestamp": 500 * number, "input_length": 512 * len(ids), "output_length": 20, "hash_ids": ids}
        lines.append(json.dumps(request))
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_plan_says_what_the_kv_takes_what_pays_and_what_it_brings(plan):
    code, out, err = plan()
    assert (code, err) == (0, "")
    assert "30 layers x 3 KV heads x (64 K + 64 V) x 2 bytes (bfloat16) = 23,040 bytes a token" in out
    for word in ("break-even", "host: adds", "without kvtier", "prefill keeps the GPUs busy"):
        assert word in out


def test_the_file_written_is_accepted_by_check(plan, model, tmp_path, capsys):
    file = tmp_path / "kvtier.yaml"
    code, out, err = plan("--write", str(file), "--path", str(tmp_path / "disk"))
    assert (code, err) == (0, f"kvtier: wrote {file}\n")
    assert "disk: adds" in out
    assert cli.main(["check", str(file), "--model", str(model), "--block-size", "128", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["errors"] == []
    assert report["config"]["disk"]["path"] == str(tmp_path / "disk")


def test_nothing_is_written_and_the_exit_code_is_1_when_nothing_pays(plan, tmp_path):
    code, out, err = plan("--write", str(tmp_path / "kvtier.yaml"), "--reuse", "0%")
    assert code == 1
    assert out.count("DO NOT BUY") == 2
    assert "Do not buy either tier for this load" in out
    assert "was not written: there is nothing to buy" in err
    assert not (tmp_path / "kvtier.yaml").exists()


def test_a_file_that_exists_is_not_written_over(plan, tmp_path):
    file = tmp_path / "kvtier.yaml"
    file.write_text("mine")
    code, _, err = plan("--write", str(file))
    assert code == 2
    assert "it exists already: name another file" in err
    assert file.read_text() == "mine"


def test_json_has_everything_as_plain_values(plan):
    code, out, _ = plan("--json", "--tbw", "1PB", "--gpu-hour", "2", "--ram-price", "0", "--disk-price", "0")
    tree = json.loads(out)
    assert code == 0
    assert tree["kv"]["bytes_per_token"] == 23_040
    assert tree["tiers"]["disk"]["pays"] is tree["buy"] is True
    assert tree["tiers"]["disk"]["years"] > 1
    assert tree["cost_per_million_tokens_saved"] == 0
    assert tree["computing_costs_per_million_tokens"] > 0
    assert [row["tokens"] for row in tree["break_even"]] == [2048, 8192, 32768, 131072]
    assert set(tree["chosen"]["ttft"]["all"]) == {"share", "mean_s", "p50_s", "p95_s"}


def test_prices_say_what_a_million_saved_tokens_cost(plan):
    _, out, _ = plan("--gpu-hour", "2", "--ram-price", "0.01", "--disk-price", "0.01", "--disk", "0B")
    assert "the tiers cost 0." in out
    assert "computing them costs 0." in out


def test_a_trace_is_planned_for_and_replayed_through_the_production_cache(plan, tmp_path):
    trace = trace_of(tmp_path / "trace.jsonl", 60)
    code, out, err = plan(
        "--trace", str(trace), "--ram", "400MiB", "--disk", "0B", "--device-cache", "1MiB", "--prefill", "9@1000",
        workload={},
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert "60 requests of 5,120 tokens in the mean, 2.03 a second" in out
    assert "replayed through kvtier's own cache with slru-g30" in out
    assert "  59.0% of prompt tokens in host RAM (device included), 0.0% on disk" in out


def test_bad_lines_of_a_trace_are_counted_when_they_may_be_skipped(plan, tmp_path):
    trace = trace_of(tmp_path / "trace.jsonl", 60)
    trace.write_text(trace.read_text() + "{}\n")
    options = ("--trace", str(trace), "--ram", "400MiB", "--disk", "0B")
    assert plan(*options, workload={})[0] == 2
    code, _, err = plan(*options, "--skip-bad", workload={})
    assert code in (0, 1)
    assert "1 bad lines left out" in err


@pytest.mark.parametrize(
    ("given", "without", "complaint"),
    [
        ((), ("--prefill",), "how fast is prefill? give --gpu (h100, "),
        ((), ("--pcie",), "--pcie: give the GB/s"),
        ((), ("--device-cache",), "--device-cache: give the engine's KV cache"),
        ((), ("--disk-read",), "--disk-read and --disk-write: give the drive's GB/s"),
        ((), ("--prefixes",), "no workload: give --trace FILE, or --prefixes as well"),
        (("--prefix-tokens", "700"), (), "--prefix-tokens 700: as long as the prompts (700)"),
        (("--prompt-tokens", "700:9000"), (), "--prompt-tokens: a 95th percentile of 9,000 with a mean of 700"),
        (("--prefill", "100@100,200@10000"), (), "--prefill: rates that grow with the prompt"),
        (("--trace", "gone"), (), "--prompt-tokens: a trace says that itself"),
        (("--probe", "/nowhere"), (), "--probe /nowhere: cannot measure there"),
        (("--write", "/nowhere/kvtier.yaml"), (), "--write /nowhere/kvtier.yaml: cannot write it"),
    ],
)
def test_options_that_make_no_plan_are_named_with_the_remedy(plan, given, without, complaint):
    code, _, err = plan(*given, without=without)
    assert code == 2
    assert err.startswith(f"kvtier: {complaint}")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"index_topk": 5}, "cannot tell the size of its KV: its attention keeps an index"),
        ({"model_type": "mamba", "state_size": 16, "conv_kernel": 4}, "it keeps no KV per token, only a state of"),
    ],
)
def test_a_model_that_cannot_be_planned_for_is_refused(plan, model, change, complaint):
    (model / "config.json").write_text(json.dumps(SMOLLM | change))
    code, _, err = plan()
    assert code == 2
    assert complaint in err


def test_errors_are_json_too(plan):
    code, out, err = plan("--json", without=("--prefill",))
    assert (code, err) == (2, "")
    assert "give --gpu" in json.loads(out)["errors"][0]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--reuse", "0.8"),
        ("--reuse", "101%"),
        ("--prompt-tokens", "8k"),
        ("--prefill", "37000"),
        ("--rate", "0"),
        ("--prefixes", "1.5"),
        ("--compression", "0.5"),
        ("--active-parameters", "7"),
        ("--hours-per-day", "25"),
        ("--ram", "64"),
    ],
)
def test_a_value_that_is_no_such_thing_is_quoted_with_what_was_expected(plan, option, value, capsys):
    with pytest.raises(SystemExit) as stop:
        plan(option, value)
    assert stop.value.code == 2
    assert f"argument {option}: {value!r}" in capsys.readouterr().err


@pytest.mark.parametrize("name", GPUS)
def test_every_gpu_can_be_named_and_says_where_its_numbers_come_from(plan, name):
    code, out, _ = plan("--gpu", name, "--prompt-tokens", "7000", "--prefix-tokens", "5000")
    assert code in (0, 1)
    assert GPUS[name].source in out


def test_the_choices_offered_are_the_presets_there_are():
    assert set(_GPUS) == set(GPUS)


def test_weights_that_do_not_fit_are_said_so(plan, model):
    (model / "config.json").write_text(json.dumps(SMOLLM | {"hidden_size": 16384, "num_hidden_layers": 80}))
    code, _, err = plan("--gpu", "l4", without=("--device-cache",))
    assert code == 2
    assert "of 16-bit weights do not fit 1 x 24 GB: raise --tensor-parallel-size" in err


def test_ranks_share_the_link_unless_each_loads_the_whole_latent(plan, model):
    shared = json.loads(plan("--gpu", "h100", "--tensor-parallel-size", "3", "--json", without=("--pcie",))[1])
    latent = {"kv_lora_rank": 512, "qk_rope_head_dim": 64}
    (model / "config.json").write_text(json.dumps(SMOLLM | latent))
    whole = json.loads(plan("--gpu", "h100", "--tensor-parallel-size", "3", "--json", without=("--pcie",))[1])
    assert shared["hardware"]["pcie_gbps"] == pytest.approx(3 * whole["hardware"]["pcie_gbps"])
    assert shared["hardware"]["device_cache_bytes"] == pytest.approx(3 * whole["hardware"]["device_cache_bytes"], abs=3)


def test_a_probe_takes_the_place_of_the_drives_rates(plan, monkeypatch):
    asked = []
    monkeypatch.setattr(plan_inputs, "probe", lambda folder, progress: asked.append(folder) or Probed(1.25, 2.5, 0.75))
    code, out, _ = plan("--probe", "/mnt/some", without=("--disk-read", "--disk-write"))
    assert (code, asked) == (0, [Path("/mnt/some")])
    assert "reads 2.50 and writes 1.25 GB/s (measured in /mnt/some)" in out
    assert "5 x 0.8 GB/s of promote_threads" in out  # no thread decompresses faster than memory is copied
    assert "copies 0.8 GB/s on one thread (measured)" in out


def test_the_size_of_quantized_weights_is_not_guessed(plan, model):
    (model / "config.json").write_text(json.dumps(SMOLLM | {"quantization_config": {"quant_method": "awq"}}))
    code, _, err = plan("--gpu", "l4", without=("--device-cache",))
    assert code == 2
    assert "--device-cache: give it: config.json does not tell" in err


def test_without_sizes_the_plan_is_for_this_machine(plan, tmp_path):
    code, out, _ = plan("--path", str(tmp_path), without=("--ram", "--disk"))
    assert code in (0, 1)
    assert "(half of this machine's RAM)" in out
    assert f"(60 % of what is free at {tmp_path})" in out


def test_a_load_that_is_too_much_is_said_so(plan):
    _, out, _ = plan("--rate", "90")
    assert "more than there is:" in out


def test_a_model_with_states_is_planned_for_with_a_warning(plan, model):
    hybrid = {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 16, "mamba_d_conv": 4, "mamba_expand": 2}
    (model / "config.json").write_text(json.dumps(SMOLLM | hybrid))
    _, out, _ = plan()
    assert "state: 15 layers x" in out
    assert "with states as here it has not: try it first" in out
