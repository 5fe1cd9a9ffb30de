"""`kvtier lint` as it is called: what it prints, where, and with which exit code."""

from __future__ import annotations

import json
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from kvtier.cli.main import main

ROOT = Path(__file__).parents[2]
TOKENIZER = ROOT / ".cache" / "models" / "SmolLM2-135M-Instruct"
RULES = "\n".join(f"Rule {i}: <b>never</b> say more than the question asks & stay polite." for i in range(8))
VOID = {"meta", "br", "link", "img", "input", "hr"}


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    records = ({"prompt": f"Current time: 2026-03-02 10:00:{i:02}\n{RULES}\nQuestion {'x' * i}"} for i in range(10))
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


class Page(HTMLParser):
    """Checks that tags close in order and collects what a reader sees."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.words.append(data)


def test_text_names_the_cause_its_cost_and_the_rewrite(prompts: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["lint", str(prompts)]) == 0
    out, err = capsys.readouterr()
    assert 'a time or date at "Current time: ..."' in out
    assert 'move "Current time: ..." to the end of the prompt' in out
    assert "9 of 10 that have it" in out
    assert "4 bytes per token" in out
    assert not err


def test_json_holds_the_findings_and_the_tree(prompts: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["lint", str(prompts), "--json"]) == 0
    tree = json.loads(capsys.readouterr().out)
    (finding,) = tree["findings"]
    assert (finding["cause"], finding["requests"], finding["lines"]) == ("timestamp", 9, [2, 3, 4])
    assert tree["hit_rate"] < finding["hit_rate_after"] == tree["hit_rate_after_all"] < 1
    assert tree["tree"]["requests"] == 10


def test_values_that_change_are_not_repeated(prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    page = tmp_path / "report.html"
    assert main(["lint", str(prompts), "--json", "--html", str(page)]) == 0
    assert "10:00:0" not in capsys.readouterr().out + page.read_text()


def test_strict_turns_a_finding_into_an_exit_code(prompts: Path):
    assert main(["lint", str(prompts), "--strict"]) == 1
    assert main(["lint", str(prompts), "--strict", "--min-requests", "100"]) == 0


def test_html_is_one_sound_file_that_loads_nothing_and_escapes_prompts(prompts: Path, tmp_path: Path):
    file = tmp_path / "report.html"
    assert main(["lint", str(prompts), "--html", str(file)]) == 0
    page = Page(file.read_text())
    assert not page.open
    names = [name for name, _ in page.tags]
    assert "b" not in names
    assert not {"script", "link", "img", "iframe"} & set(names)
    assert not any({"src", "href"} & attributes.keys() for _, attributes in page.tags)
    assert names.count("details") >= 2
    text = " ".join(page.words)
    assert "<b>never</b> say more" in text
    assert 'move "Current time: ..."' in text


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs chromium")
def test_a_browser_shows_the_tree(prompts: Path, tmp_path: Path):
    file = tmp_path / "report.html"
    assert main(["lint", str(prompts), "--html", str(file)]) == 0
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    done = subprocess.run(
        ["chromium", *options, file.as_uri()], capture_output=True, text=True, timeout=100, check=True
    )
    page = Page(done.stdout)
    assert ("details", {"open": ""}) in page.tags
    assert "<b>never</b> say more" in " ".join(page.words)


def test_a_bad_line_ends_the_run_and_skip_bad_goes_on_with_a_count(prompts: Path, capsys: pytest.CaptureFixture[str]):
    with prompts.open("a") as file:
        file.write("oops\n" * 8)
    assert main(["lint", str(prompts)]) == 2
    assert "line 11: expected one JSON object" in capsys.readouterr().err
    assert main(["lint", str(prompts), "--skip-bad", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["skipped_lines"] == 8
    assert "line 11 left out" in err
    assert "3 more lines left out" in err


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_an_empty_file_is_an_error(tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "empty.jsonl"
    path.write_text(content)
    assert main(["lint", str(path)]) == 2
    assert "no requests in it" in capsys.readouterr().err


def test_files_that_cannot_be_used_are_named(prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "tokenizer.json").write_text("{}")
    absent = tmp_path / "absent"
    for arguments, said in (
        ([absent], f"{absent}: cannot be read"),
        ([tmp_path], f"{tmp_path}: cannot be read"),
        ([prompts, "--tokenizer", absent], f"{absent}: no such file"),
        ([prompts, "--html", absent / "x.html"], "cannot be written"),
    ):
        assert main(["lint", *map(str, arguments)]) == 2
        assert said in capsys.readouterr().err


def test_a_broken_tokenizer_is_named(prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    pytest.importorskip("tokenizers")
    (tmp_path / "tokenizer.json").write_text("{}")
    assert main(["lint", str(prompts), "--tokenizer", str(tmp_path)]) == 2
    assert "not a tokenizer" in capsys.readouterr().err


@pytest.mark.skipif(not (TOKENIZER / "tokenizer.json").exists(), reason="needs the demo model: tools/make_model.py")
def test_tokens_are_those_of_the_tokenizer(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    tokenizers = pytest.importorskip("tokenizers")
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps({"prompt": RULES}) + "\n")
    assert main(["lint", str(path), "--json", "--tokenizer", str(TOKENIZER)]) == 0
    found = json.loads(capsys.readouterr().out)
    whole = len(tokenizers.Tokenizer.from_file(str(TOKENIZER / "tokenizer.json")).encode(RULES).ids)
    assert found["tokens"] == pytest.approx(whole, rel=0.1)
    assert found["tokens_counted_with"].endswith("tokenizer.json")


def test_odd_text_is_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "odd.jsonl"
    odd = '\ud800 \x00 \u2028 </script> {"a": [{"b": 1, "c": '
    path.write_text("".join(json.dumps({"prompt": f"{odd}\n{RULES}"}) + "\n" for _ in range(3)))
    assert main(["lint", str(path), "--json", "--html", str(tmp_path / "odd.html")]) == 0
    assert json.loads(capsys.readouterr().out)["requests"] == 3


@pytest.mark.parametrize(
    "text",
    [
        "a1" * 100_000,
        "ab" * 100_000,
        " " * 200_000 + "x",
        "User: " * 30_000,
        "[" * 100_000,
        '{"' * 100_000,
        "<document>" * 20_000 + "</document",
        "![" * 50_000,
        "tools: " * 20_000,
        "x@" * 50_000,
        "Aa " * 60_000,
        "[1] a\n" * 20_000,
        "tools:\n" + "- a\n" * 20_000,
    ],
    ids=lambda text: text[:10].strip(),
)
def test_a_huge_odd_line_does_not_stop_the_run(tmp_path: Path, text: str):
    path = tmp_path / "odd.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"{text}\n{i}"}) + "\n" for i in range(2)))
    assert main(["lint", str(path)]) == 0


def test_no_control_characters_reach_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "odd.jsonl"
    lines = (json.dumps({"prompt": f"\x1b[31mTime\x1b: 10:0{i}\nred \x1b[31m rules\n{RULES}"}) + "\n" for i in range(5))
    path.write_text("".join(lines))
    assert main(["lint", str(path)]) == 0
    assert "\x1b" not in capsys.readouterr().out


def test_progress_goes_to_stderr_until_it_is_told_to_be_quiet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("kvtier.cli.lint._PROGRESS_S", 0.0)
    path = tmp_path / "many.jsonl"
    path.write_text('{"prompt": "hello"}\n' * 600)
    assert main(["lint", str(path)]) == 0
    out, err = capsys.readouterr()
    assert "kvtier: 85 %, 512 requests" in err
    assert "kvtier: " not in out
    assert main(["lint", str(path), "--quiet"]) == 0
    assert not capsys.readouterr().err


def test_tenants_and_the_span_of_time_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "prompts.jsonl"
    records = ({"prompt": RULES, "tenant": f"t{i % 2}", "timestamp": 1_772_442_000 + 3600 * i} for i in range(4))
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert main(["lint", str(path)]) == 0
    assert "4 requests" in (shared := capsys.readouterr().out)
    assert "2 tenants, 3.0 hours" in shared
    assert "nothing found" in shared
    assert main(["lint", str(path), "--json"]) == 0
    together = json.loads(capsys.readouterr().out)
    assert main(["lint", str(path), "--json", "--isolate-tenants"]) == 0
    apart = json.loads(capsys.readouterr().out)
    assert (together["hit_rate"], apart["hit_rate"]) == (0.75, 0.5)


@pytest.mark.parametrize("arguments", [["--min-share", "2"], ["--min-share", "x"], ["--min-tokens", "0"]])
def test_a_limit_that_makes_no_sense_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="2"):
        main(["lint", "x", *arguments])
    assert "expected a" in capsys.readouterr().err


def test_json_in_changing_order_is_named_with_its_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "prompts.jsonl"
    orders = ('{"a": 1, "b": 2, "c": 3}', '{"b": 2, "a": 1, "c": 3}', '{"c": 3, "a": 1, "b": 2}')
    path.write_text("".join(json.dumps({"prompt": f"Settings: {order}\n{RULES}"}) + "\n" for order in orders))
    assert main(["lint", str(path)]) == 0
    assert 'write JSON with sorted keys in "Settings: ..."' in capsys.readouterr().out
