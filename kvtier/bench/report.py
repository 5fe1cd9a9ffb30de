"""Report: results -> the JSON object for machines and the table for people."""

from __future__ import annotations

import math
import os
import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from kvtier.bench.base import Result
from kvtier.codec import forms
from kvtier.machine import DiskSpace, Machine
from kvtier.tables import columns
from kvtier.units import format_bytes

_VERSIONS = ("kvtier", "numpy", "zstandard", "lmdb", "xxhash", "vllm")


def machine_facts(folder: Path) -> dict[str, Any]:
    """What the figures were measured on: processor, memory, the file system under `folder`, versions."""
    space = DiskSpace.at(folder)
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "ram_bytes": Machine.here().ram_bytes,
        "file_system": space.fs_type,
        "free_bytes": space.free_bytes,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "byte_planes": forms.describe(),
        "versions": {name: version for name in _VERSIONS if (version := _version(name)) is not None},
    }


def to_tree(bench: str, machine: Mapping[str, Any], results: Iterable[Result]) -> dict[str, Any]:
    """The JSON object that scripts read."""
    return {
        "bench": bench,
        "machine": dict(machine),
        "results": [
            {"name": result.name, "value": result.value, "unit": result.unit, "vs": dict(result.vs)}
            for result in results
        ],
    }


def to_text(machine: Mapping[str, Any], results: Sequence[Result], notes: Sequence[str]) -> str:
    """A table: each figure, and beside it what it is to be held against."""
    rows = [
        (result.name, number(result.value, result.unit), ", ".join(f"{n} {number(v)}" for n, v in result.vs.items()))
        for result in results
    ]
    lines = columns(rows, left=(0, 2)) if rows else []
    lines += ["", *notes] if notes else [""]
    ram = format_bytes(machine["ram_bytes"])
    lines.append(
        f"{machine['cpu']}, {machine['cores']} cores, {ram}, {machine['file_system'] or 'unknown file system'}; "
        f"byte planes: {machine['byte_planes']}"
    )
    return "\n".join(lines) + "\n"


def number(value: float, unit: str = "") -> str:
    """`value` with three significant digits, and its unit where one is given."""
    if not math.isfinite(value):
        text = str(value)
    elif value == 0 or abs(value) >= 1000:
        text = f"{value:,.0f}"
    else:
        text = f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"
    return f"{text} {unit}".rstrip()


def _cpu() -> str:
    try:
        match = re.search(r"(?m)^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    except OSError:
        match = None
    return match[1].strip() if match else platform.machine()


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
