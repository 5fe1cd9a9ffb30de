"""The README's configuration table: made from the schema, written between its markers and nowhere else."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from kvtier.config import settings

TOOL = Path(__file__).parents[3] / "tools/config_table.py"


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("config_table", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def readme(tmp_path, tool):
    path = tmp_path / "README.md"
    path.write_text(f"# before\n\n{tool.BEGIN}\nold\n{tool.END}\n\nafter, caf\u00e9\n", encoding="utf-8")
    return path


def test_the_table_has_one_row_a_key_with_its_default(tool):
    rows = tool.table().splitlines()[2:]
    assert [row.split(" | ")[:2] for row in rows] == [[f"| `{s.key}`", f"`{s.default}`"] for s in settings()]


def test_every_row_has_a_meaning_and_three_cells(tool):
    cells = [row.replace("\\|", "").strip("|").split("|") for row in tool.table().splitlines()]
    assert all(len(row) == 3 and all(cell.strip() for cell in row) for row in cells)


def test_only_what_is_between_the_markers_changes(tool, readme):
    assert tool.main([str(readme)]) == 0
    assert (
        readme.read_text(encoding="utf-8")
        == f"# before\n\n{tool.BEGIN}\n{tool.table()}\n{tool.END}\n\nafter, caf\u00e9\n"
    )


def test_check_tells_an_old_table_from_a_new_one_and_writes_nothing(tool, readme, capsys):
    old = readme.read_bytes()
    before = tool.main(["--check", str(readme)])
    unchanged = readme.read_bytes() == old
    tool.main([str(readme)])
    assert (before, unchanged, tool.main(["--check", str(readme)])) == (1, True, 0)
    assert "out of date" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "BEGIN", "END BEGIN", "BEGIN END BEGIN END", None])
def test_a_file_without_one_pair_of_markers_is_left_alone(tool, tmp_path, text, capsys):
    path = tmp_path / "README.md"
    if text is not None:
        path.write_text(text.replace("BEGIN", tool.BEGIN).replace("END", tool.END))
    assert tool.main([str(path)]) == 2
    assert capsys.readouterr().err.startswith(f"{path}: ")
    assert text is None or path.read_text() == text.replace("BEGIN", tool.BEGIN).replace("END", tool.END)
