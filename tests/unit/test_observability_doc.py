"""docs/observability.md says what the code does. Run this file itself to write its generated parts anew."""

import json
import re
from dataclasses import fields
from pathlib import Path

import pytest

from kvtier.observe.hitlog import format_json, format_line
from kvtier.observe.metrics import METRICS
from kvtier.observe.stats import Gauges, Stats

ROOT = Path(__file__).parents[2]
DOC = ROOT / "docs" / "observability.md"
GAUGES = Gauges(1, 1, 1, 1, 1, 1, 1, 1, 1.0, 1.0, 1.0, 1, disk_on=True)


def generated() -> dict[str, str]:
    line, _ = (ROOT / "tests/golden/hitlog/serving.txt").read_text().splitlines()
    rows = [f"| `{m.name}` | {m.kind.value} | {', '.join(m.labels)} | {m.documentation} |" for m in METRICS]
    return {
        "line": f"```\n{line}\n```",
        "metrics": "\n".join(["| metric | kind | label | meaning |", "|---|---|---|---|", *rows]),
    }


def part(name: str, text: str) -> str:
    return text.partition(f"<!-- {name} -->\n")[2].partition(f"\n<!-- /{name} -->")[0]


def documented(column: str) -> set[str]:
    """What stands in backticks in the first column of the tables whose first heading is `column`."""
    tables = re.findall(rf"^\| {column} \|.*\n\|[-|]+\n((?:\|.*\n)+)", DOC.read_text(), re.MULTILINE)
    cells = [row.split("|")[1] for table in tables for row in table.splitlines()]
    return {word for cell in cells for word in re.findall(r"`([^`]+)`", cell)}


@pytest.mark.parametrize("name", ["line", "metrics"])
def test_generated_part_is_up_to_date(name: str) -> None:
    assert part(name, DOC.read_text()) == generated()[name]


def test_every_word_of_the_line_is_documented() -> None:
    everything = Stats(**{f.name: 1 for f in fields(Stats) if f.default == 0})
    words = {word for word in re.findall(r"[a-z_]{2,}", format_line(everything, GAUGES, 10)) if word != "kvtier"}
    known = {word for cell in documented("field") for word in re.findall(r"[a-z_]+", cell)}
    assert words - known == set()


def test_every_json_key_is_documented_or_a_counter_or_gauge() -> None:
    keys = set(json.loads(format_json(Stats(), GAUGES, 10)))
    assert keys - {f.name for f in (*fields(Stats), *fields(Gauges))} <= documented("key")


if __name__ == "__main__":
    text = DOC.read_text()
    for part_name, content in generated().items():
        text = text.replace(part(part_name, text) or "\n", content)
    DOC.write_text(text)
