"""docs/lint.md shows what `kvtier lint` prints and how often it is right. Run this file itself to renew both."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]
DOC = ROOT / "docs" / "lint.md"
_EXAMPLE = re.compile(r"^```\n(\$ python tools/[^\n]*)\n(\$ kvtier lint [^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SCORES = re.compile(r"(?<=\| recall \|\n\|---\|---\|---\|---\|---\|\n)(?:\|.*\n)*")


def _cases() -> ModuleType:
    spec = importlib.util.spec_from_file_location("lint_cases_of_doc", ROOT / "tests" / "lint" / "cases.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _run(line: str, folder: str) -> str:
    words = shlex.split(line.removeprefix("$ "))
    argv = [str(ROOT / words[1]), *words[2:]] if words[0] == "python" else ["-m", "kvtier.cli.main", *words[1:]]
    done = subprocess.run(
        [sys.executable, *argv],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def renewed(text: str) -> str:
    """The page with its commands run and its table of scores computed."""

    def run(example: re.Match[str]) -> str:
        with tempfile.TemporaryDirectory() as folder:
            return f"```\n{example[1]}\n{example[2]}\n{_run(example[1], folder)}{_run(example[2], folder)}```"

    return _SCORES.sub(_scores(), _EXAMPLE.sub(run, text))


def _scores() -> str:
    cases = _cases()
    rows = []
    for name, file in (("tuned on", "cases.yaml"), ("held out", "held_out.yaml")):
        known = cases.load(file)
        precision, recall, _ = cases.score(known)
        clean = sum(not case.expect for case in known)
        rows.append(f"| {name} | {len(known)} | {clean} | {precision:.2f} | {recall:.2f} |\n")
    return "".join(rows)


def test_the_page_shows_what_the_command_prints_and_what_the_cases_give():
    assert renewed(DOC.read_text()) == DOC.read_text()


if __name__ == "__main__":
    DOC.write_text(renewed(DOC.read_text()))
