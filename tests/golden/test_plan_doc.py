"""docs/plan.md shows what `kvtier plan` prints. Run this file itself to write the outputs there anew."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOC = ROOT / "docs" / "plan.md"
_EXAMPLE = re.compile(r"^```\n(\$ kvtier plan (?:[^\n]*\\\n)*[^\n]*\n)(.*?)^```$", re.MULTILINE | re.DOTALL)
_YAML = re.compile(r"^```yaml\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def renewed(text: str) -> str:
    """The page with every command run, its output put behind it, and the one file that is written shown."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kvtier.yaml"

        def run(example: re.Match[str]) -> str:
            words = shlex.split(example[1].removeprefix("$ kvtier ").replace("\\\n", " "))
            argv = [str(file) if word == "kvtier.yaml" else word for word in words]
            command = [sys.executable, "-m", "kvtier.cli.main", *argv]
            found = subprocess.run(
                command,
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                capture_output=True,
                text=True,
                check=False,
            )
            assert found.returncode in (0, 1), found.stderr
            return f"```\n{example[1]}{found.stdout}```"

        text = _EXAMPLE.sub(run, text)
        written = file.read_text()
    return _YAML.sub(lambda _: f"```yaml\n{written}```", text)


def test_the_page_shows_what_the_commands_print():
    assert renewed(DOC.read_text()) == DOC.read_text()


if __name__ == "__main__":
    DOC.write_text(renewed(DOC.read_text()))
