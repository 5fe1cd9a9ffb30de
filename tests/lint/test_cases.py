"""How often `kvtier lint` names the right cause, over labelled prompt files."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


def _cases() -> ModuleType:
    spec = importlib.util.spec_from_file_location("lint_cases", Path(__file__).with_name("cases.py"))
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["lint_cases"] = module
    spec.loader.exec_module(module)
    return module


cases = _cases()
BOTH = ("cases.yaml", "held_out.yaml")


def test_there_are_enough_cases_and_enough_of_them_have_no_defect():
    known = [cases.load(name) for name in BOTH]
    assert sum(map(len, known)) >= 60
    assert len(known[1]) * 3 >= len(known[0])
    assert all(sum(not case.expect for case in part) >= 10 for part in known)
    names = [case.name for part in known for case in part]
    assert len(names) == len(set(names))


def test_every_cause_has_cases_with_it():
    named = {cause for name in BOTH for case in cases.load(name) for cause in case.expect}
    assert named == set(cases.Cause)


@pytest.mark.parametrize("name", BOTH)
def test_what_is_named_is_right_and_little_is_missed(name: str):
    precision, recall, wrong = cases.score(cases.load(name))
    assert precision >= 0.95, wrong
    assert recall >= 0.85, wrong


@pytest.mark.parametrize("case", [c for name in BOTH for c in cases.load(name) if not c.expect], ids=lambda c: c.name)
def test_prompts_without_a_defect_get_no_finding(case):
    found = cases.lint(case.records).findings
    assert not found, found
