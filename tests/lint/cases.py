"""The labelled cases: YAML -> prompt files and the causes that must be named."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from kvtier.lint.causes import Cause
from kvtier.lint.pieces import Cutter
from kvtier.lint.read import parse
from kvtier.lint.report import Report, report
from kvtier.lint.tokens import ByteCounter, TokenCounter
from kvtier.lint.tree import PrefixTree

HERE = Path(__file__).parent
TEXTS: dict[str, Any] = yaml.safe_load((HERE / "texts.yaml").read_text())


@dataclass(frozen=True)
class Case:
    name: str
    expect: frozenset[Cause]
    records: tuple[dict[str, Any], ...]


def load(name: str) -> list[Case]:
    return [
        Case(raw["name"], frozenset(map(Cause, raw["expect"])), tuple(_records(raw)))
        for raw in yaml.safe_load((HERE / name).read_text())
    ]


def lint(records: tuple[dict[str, Any], ...], counter: TokenCounter | None = None) -> Report:
    counter = counter or ByteCounter()
    tree = PrefixTree(Cutter(counter))
    for number, record in enumerate(records, start=1):
        tree.add(parse(json.dumps(record).encode(), number))
    return report(tree.tally, file="case", counted_with=counter.name)


def score(cases: list[Case], counter: TokenCounter | None = None) -> tuple[float, float, list[str]]:
    """Precision and recall over (case, cause), and what went wrong."""
    right = named = expected = 0
    wrong = []
    for case in cases:
        found = {finding.cause for finding in lint(case.records, counter).findings}
        right += len(found & case.expect)
        named += len(found)
        expected += len(case.expect)
        if found != case.expect:
            wrong.append(f"{case.name}: {sorted(found)} instead of {sorted(case.expect)}")
    return right / named, right / expected, wrong


def _records(raw: dict[str, Any]) -> list[dict[str, Any]]:
    if "prompts" in raw:
        return [_record(_filled(prompt, ())) for prompt in raw["prompts"]]
    return [_record(_filled(raw["template"], values)) for values in raw["values"]]


def _record(prompt: Any) -> dict[str, Any]:
    if isinstance(prompt, str):
        return {"prompt": prompt}
    return {"messages": prompt} if isinstance(prompt, list) else prompt


def _filled(value: Any, values: Any) -> Any:
    if isinstance(value, list):
        return [_filled(item, values) for item in value]
    if isinstance(value, dict):
        return {key: _filled(item, values) for key, item in value.items()}
    if not isinstance(value, str):
        return value
    if value.startswith("@") and not isinstance(TEXTS.get(value[1:], ""), str):
        return TEXTS[value[1:]]
    for i, item in reversed(list(enumerate(values))):
        value = value.replace(f"${i}", str(item))
    for name, text in TEXTS.items():
        if isinstance(text, str):
            value = value.replace(f"@{name}", text)
    return value
