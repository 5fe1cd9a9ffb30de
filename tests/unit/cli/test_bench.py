"""`kvtier bench` from the command line: small runs of every benchmark, JSON, tables, plots, and what it refuses."""

import json
import sys

import pytest

from kvtier.bench import plot
from kvtier.bench.base import Result
from kvtier.bench.registry import BENCHES
from kvtier.cli.main import main

NAMES = {
    "churn": {
        "churn.last_vs_first",
        "churn.max_bytes_over_capacity",
        "churn.gb_per_s",
        "churn.write_amplification",
    },
    "codec": {"codec.ratio", "codec.compress_vs_zstd1", "codec.decompress_vs_zstd1"},
    "index": {
        "index.open_s_per_million",
        "index.open_cold_s_per_million",
        "index.rss_bytes_per_chunk",
        "index.lookup_1000_ms",
    },
    "promote": {"promote.cold", "promote.cold_vs_odirect", "promote.hot"},
    "scheduler": {"scheduler.p99_vs_idle", "scheduler.p99_ms", "scheduler.busy_median_vs_idle"},
    "spill": {"spill.sustained", "spill.cpu_s_per_gb", "spill.scheduler_slowdown"},
    "store": {"store.write", "store.read_hot", "store.read_cold"},
}
"""Names that scripts rely on."""

SMALL = ["--quick", "--size", "512KiB", "--chunk", "64KiB", "--repeats", "1"]


@pytest.fixture(autouse=True)
def without_an_engine(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)  # importing it takes longer than all benchmarks together


@pytest.mark.parametrize("name", BENCHES)
def test_a_benchmark_answers_in_json_and_leaves_nothing_behind(name, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)  # no capture of KV here
    assert main(["bench", name, *SMALL, "--json"]) == 0
    captured = capsys.readouterr()
    answer = json.loads(captured.out)
    assert set(answer) == {"bench", "machine", "results"}
    assert answer["bench"] == name
    results = {result["name"]: result for result in answer["results"]}
    assert NAMES.get(name, set()) <= set(results)
    assert all(set(result) == {"name", "value", "unit", "vs"} for result in results.values())
    assert all(result.startswith(f"{name}.") for result in results)
    assert f"bench {name}: " in captured.err
    assert list(tmp_path.iterdir()) == []


def test_the_table_has_a_line_for_each_figure_and_says_what_was_measured(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["bench", "codec", *SMALL]) == 0
    out = capsys.readouterr().out
    assert "codec.ratio " in out
    assert "made up: bf16" in out
    assert "cores" in out


def test_a_plot_is_a_picture(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["bench", "codec", *SMALL, "--plot", "figures.png"]) == 0
    assert (tmp_path / "figures.png").read_bytes().startswith(b"\x89PNG")


def test_bars_stand_in_panels_of_their_unit_a_figure_before_its_peers():
    results = [Result("a.x", 2, "GB/s", {"memcpy": 5}), Result("a.r", 1.4, "x"), Result("a.y", 3, "GB/s")]
    assert plot.bars_of(results) == {"GB/s": [("a.x", 2), ("a.x: memcpy", 5), ("a.y", 3)], "x": [("a.r", 1.4)]}


def test_a_plot_without_matplotlib_is_refused_before_anything_is_measured(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["bench", "codec", "--dir", str(tmp_path), "--plot", "x.png"]) == 2
    assert capsys.readouterr().err == f"kvtier: {plot.MISSING}\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--dir", "nowhere"], "nowhere: not a directory"),
        (["--size", "1EB", "--dir", "."], "1EB"),
        (["--size", "900PiB", "--dir", "."], "name another disk with --dir or move less with --size"),
        (["--size", "64KiB", "--chunk", "1MiB"], "--chunk 1 MiB is more than the 64 KiB to move"),
        (["--sample", "nothing"], "make one with `make kv-sample`"),
    ],
)
def test_what_cannot_be_measured_is_refused_with_the_remedy(arguments, said, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        code = main(["bench", "codec", *arguments])
    except SystemExit as stopped:
        code = stopped.code
    assert code == 2
    assert said in capsys.readouterr().err


def test_of_all_benchmarks_one_that_fails_leaves_the_others_and_the_exit_code_tells(tmp_path, capsys, monkeypatch):
    def fails(conditions):
        raise plot.InputError("the disk is gone")
        yield

    def works(conditions):
        yield Result("works.speed", 1.0, "GB/s")

    monkeypatch.setattr("kvtier.cli.bench.BENCHES", {"fails": "", "works": ""})
    monkeypatch.setattr("kvtier.bench.registry.load", {"fails": fails, "works": works}.__getitem__)
    monkeypatch.chdir(tmp_path)
    assert main(["bench", "all", "--quick"]) == 1
    captured = capsys.readouterr()
    assert "works.speed" in captured.out
    assert "kvtier: bench fails: the disk is gone" in captured.err
