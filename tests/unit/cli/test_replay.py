"""`kvtier replay` as people call it: what it prints, and how it refuses."""

import csv
import io
import json
import re
from pathlib import Path

import pytest

from kvtier.cli import main as cli

EXAMPLE = str(Path(__file__).parents[3] / "examples" / "trace.jsonl")


DOC = Path(__file__).parents[3] / "docs" / "replay.md"
EXAMPLES = re.findall(r"^```\n\$ kvtier (replay .*?)```$", DOC.read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture
def replay(capsys: pytest.CaptureFixture[str]):
    def call(*args: str, code: int = 0) -> tuple[str, str]:
        assert cli.main(["replay", *args]) == code
        said = capsys.readouterr()
        return said.out, said.err

    return call


def rows(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def test_the_table_has_a_row_per_size_and_policy_then_the_optimum_and_the_unbounded(replay):
    out, err = replay(EXAMPLE, "--host", "30,100", "--policy", "lru,slru-g30")
    assert "415 requests, 7,646 blocks of 512 tokens" in out
    assert [row[:3] for row in rows(out)[4:]] == [
        ["30", "lru", "0.3508"],
        ["30", "slru-g30", "0.3890"],
        ["100", "lru", "0.5378"],
        ["100", "slru-g30", "0.5544"],
        ["30", "optimal", "0.5211"],
        ["100", "optimal", "0.6890"],
        ["-", "unbounded", "0.7812"],
    ]
    assert not err


def test_json_has_every_figure_of_both_tiers(replay):
    out, _ = replay(EXAMPLE, "--host", "100", "--disk", "10x", "--policy", "slru-g30", "--json")
    tree = json.loads(out)
    row = tree["rows"][0]
    assert (row["host_blocks"], row["disk_blocks"], tree["partial_tail"]) == (100, 1000, "skip")
    assert row["host_block_hit_rate"] + row["disk_block_hit_rate"] == pytest.approx(row["block_hit_rate"], abs=1e-5)
    assert row["host_token_hit_rate"] + row["disk_token_hit_rate"] == pytest.approx(row["token_hit_rate"], abs=1e-5)
    assert row["writes_per_request"] == pytest.approx(row["written_blocks"] / tree["requests"], abs=1e-5)
    assert [r["policy"] for r in tree["rows"]] == ["slru-g30", "optimal", "unbounded"]


def test_csv_has_the_rows_of_the_json(replay):
    args = (EXAMPLE, "--host", "30", "--policy", "lru")
    lines = list(csv.DictReader(io.StringIO(replay(*args, "--csv")[0])))
    tree = json.loads(replay(*args, "--json")[0])
    assert [{k: "" if v is None else str(v) for k, v in row.items()} for row in tree["rows"]] == lines


def test_bytes_and_time_come_from_the_model_and_the_rate(replay):
    sizes = ("--host", "512MiB", "--bytes-per-token", "32768", "--policy", "lru")
    out, _ = replay(EXAMPLE, *sizes, "--prefill-tokens-per-s", "1000", "--gpus", "4", "--json")
    tree = json.loads(out)
    row = tree["rows"][0]
    assert (tree["block_bytes"], row["host_blocks"], row["host_bytes"]) == (512 * 32768, 32, 512 << 20)
    assert row["prefill_s_saved"] == pytest.approx(row["hit_tokens"] / 1000)
    assert row["gpu_hours_saved"] == pytest.approx(row["prefill_s_saved"] * 4 / 3600, abs=1e-6)


def test_bytes_per_token_are_read_from_a_model_folder(replay, tmp_path: Path):
    config = {"num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8, "hidden_size": 8192}
    (tmp_path / "config.json").write_text(json.dumps(config | {"torch_dtype": "bfloat16"}))
    out, _ = replay(EXAMPLE, "--model", str(tmp_path), "--host", "30", "--json")
    assert json.loads(out)["block_bytes"] == 512 * 80 * 2 * 8 * 128 * 2


def test_two_policies_with_a_slash_are_host_s_and_disk_s(replay):
    out, _ = replay(EXAMPLE, "--host", "50", "--disk", "200", "--policy", "lru/slru-g30,lru")
    names = [row[2] for row in rows(out)[4:6]]
    rates = [row[3] for row in rows(out)[4:6]]
    assert names == ["lru/slru-g30", "lru"]
    assert rates[0] != rates[1]


def test_a_deployed_tier_hits_no_more_than_an_ideal_one(replay):
    args = (EXAMPLE, "--host", "100", "--disk", "300", "--policy", "slru-g30", "--json")
    ideal = json.loads(replay(*args)[0])["rows"][0]["block_hit_rate"]
    deployed = json.loads(replay(*args, "--deployed", "--write-behind", "30s")[0])["rows"][0]["block_hit_rate"]
    assert 0.9 * ideal < deployed <= ideal + 0.002


def test_a_trace_comes_from_standard_input_too(replay, monkeypatch: pytest.MonkeyPatch):
    with open(EXAMPLE, "rb") as file:  # noqa: PTH123 - stdin is such an object
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(file))
        assert "standard input: 415 requests" in replay("-", "--host", "30")[0]


def test_bad_lines_are_counted_on_stderr(replay, tmp_path: Path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"hash_ids": [1], "input_length": 512}\n{"hash_ids": 5}\n')
    assert f"kvtier: {path}, line 2: expected `hash_ids`" in replay(str(path), code=2)[1]
    out, err = replay(str(path), "--skip-bad", "--json")
    assert json.loads(out)["skipped_lines"] == 1
    assert "1 bad lines left out, the first" in err


def test_a_wrong_block_size_is_warned_of(replay):
    assert "--block-tokens says how large they are" in replay(EXAMPLE, "--block-tokens", "16", "--host", "30")[1]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--policy", "fifo"), "'fifo' is no policy: expected lru, slru-g30"),
        (("--host", "10q"), "--host"),
        (("--host", "0"), "--host 0: less than one block"),
        (("--host", "64GiB"), "--host 64GiB: bytes need --model DIR or --bytes-per-token N"),
        (("--disk", "0,10x"), "--disk mixes 0 with sizes"),
        (("--format", "prompts"), "--tokenizer DIR"),
    ],
)
def test_a_wrong_option_is_one_line_that_names_it_and_the_remedy(replay, args, said):
    out, err = replay(EXAMPLE, *args, code=2)
    assert not out
    assert said in err
    assert err.count("\n") == 1


def test_a_plot_without_matplotlib_is_refused_before_the_replay(replay, monkeypatch, tmp_path: Path):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    err = replay(str(tmp_path / "gone.jsonl"), "--plot", str(tmp_path / "p.png"), code=2)[1]
    assert err == "kvtier: --plot needs matplotlib: pip install 'kvtier[plot]'\n"


def test_a_plot_is_written_with_a_line_per_policy_and_the_optimum(replay, tmp_path: Path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "plot.svg"
    replay(EXAMPLE, "--host", "30,100,300", "--plot", str(path))
    drawn = path.read_text()
    assert "<svg" in drawn
    for name in ("lru", "slru-g30", "optimal", "unbounded"):
        assert f"<!-- {name} -->" in drawn


@pytest.mark.parametrize(
    "example", re.findall(r"^```\n\$ kvtier (replay .*?)```$", DOC.read_text(), re.MULTILINE | re.DOTALL)
)
def test_the_examples_of_the_documentation_print_what_it_says(replay, monkeypatch, example: str):
    monkeypatch.chdir(DOC.parents[1])
    command, _, printed = example.replace("\\\n", " ").partition("\n")
    assert replay(*command.split()[1:])[0] == printed
