"""The package's shape: imports point down, the core needs no engine, files stay small."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "kvtier"
MODULES = sorted(PACKAGE.rglob("*.py"))

IMPORT_CORE_WITHOUT_ENGINES = """
import importlib, pkgutil, sys
sys.modules.update(dict.fromkeys(["torch", "vllm", "sglang", "prometheus_client"]))
import kvtier

def visit(package):
    for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        if module.name not in ("kvtier.engines", "kvtier.testing"):
            imported = importlib.import_module(module.name)
            print(module.name)
            if module.ispkg:
                visit(imported)

visit(kvtier)
"""


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache", "--no-logo"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_import_contracts_hold() -> None:
    result = lint_imports(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("file", "line", "complaint"),
    [
        ("policy/base.py", "import torch", "kvtier.policy.base -> torch"),
        ("cache.py", "import lmdb", "kvtier.cache -> lmdb"),
        ("codec/base.py", "import xxhash", "kvtier.codec.base -> xxhash"),
        ("types.py", "import kvtier.cache", "kvtier.types -> kvtier.cache"),
        ("observe/stats.py", "import kvtier.engines.vllm", "kvtier.observe.stats -> kvtier.engines.vllm"),
        ("without_a_layer.py", "import os", "- kvtier.without_a_layer"),
    ],
)
def test_import_contracts_notice_a_breach(file: str, line: str, complaint: str, tmp_path: Path) -> None:
    shutil.copytree(PACKAGE, tmp_path / "kvtier", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / "kvtier" / file).open("a") as module:
        module.write(f"\n{line}\n")
    result = lint_imports(tmp_path)
    assert result.returncode == 1, result.stdout + result.stderr
    assert complaint in result.stdout


def test_core_imports_where_no_engine_is_installed() -> None:
    result = subprocess.run(
        [sys.executable, "-c", IMPORT_CORE_WITHOUT_ENGINES], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "kvtier.cache" in result.stdout.split()


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_file_has_at_most_500_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 500
