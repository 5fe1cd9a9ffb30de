"""What the package never does with data from outside: unpickle it, evaluate it, or load YAML that makes objects."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def complaints(code: str) -> str:
    """What the project's own linter settings say of `code` as a module of the package."""
    command = [Path(sys.executable).with_name("ruff"), "check", "--no-cache", "--stdin-filename", "kvtier/new.py", "-"]
    return subprocess.run(command, input=code, cwd=ROOT, capture_output=True, text=True, check=False).stdout


@pytest.mark.parametrize(
    ("code", "rule"),
    [
        ("import pickle\n\n\nvalue = pickle.loads(b'')\n", "S301"),
        ("import marshal\n\n\nvalue = marshal.loads(b'')\n", "S302"),
        ("value = eval('1')\n", "S307"),
        ("exec('1')\n", "S102"),
        ("import yaml\n\n\nvalue = yaml.load('', yaml.Loader)\n", "S506"),
        ("import subprocess\n\n\nsubprocess.run('ls', shell=True, check=True)\n", "S60"),
    ],
)
def test_the_linter_refuses_what_would_run_a_files_content(code: str, rule: str) -> None:
    assert rule in complaints(code)


def test_no_module_is_excused_from_these_rules() -> None:
    rules = ("S301", "S302", "S307", "S102", "S506")
    excused = [path for path in (ROOT / "kvtier").rglob("*.py") if any(rule in path.read_text() for rule in rules)]
    assert excused == []
