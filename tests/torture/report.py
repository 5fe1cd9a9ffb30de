"""Rows as a table for people, or as JSON for machines."""

import json
from collections.abc import Sequence

from tests.torture.scenario import Row

COLUMNS = ("fault", "injected", "detected", "no effect", "served wrong", "failed requests", "requests", "worst call ms")


def as_table(rows: Sequence[Row]) -> str:
    """One line a row, under a line per scenario; what was broken or skipped follows its row."""
    cells = [COLUMNS, *(_cells(row) for row in rows)]
    widths = [max(len(line[n]) for line in cells) for n in range(len(COLUMNS))]
    lines = [_line(COLUMNS, widths)]
    for row in rows:
        if lines[-1] and row.scenario not in (r.scenario for r in rows[: rows.index(row)]):
            lines.append(f"-- {row.scenario} ".ljust(sum(widths) + 2 * len(widths) - 2, "-"))
        lines.append(_line(_cells(row), widths))
        shown = {name: value for name, value in row.figures.items() if value not in (0, "")}
        if shown:
            lines.append("    " + ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in shown.items()))
        lines += [f"    BROKEN: {promise}" for promise in row.violations]
        lines += [f"    skipped: {row.skipped}"] if row.skipped else []
    return "\n".join(lines)


def verdict(rows: Sequence[Row], seed: int) -> str:
    """The last line."""
    broken = sum(bool(row.violations) for row in rows)
    n_faults, n_wrong = sum(r.injected for r in rows), sum(r.served_wrong for r in rows)
    failed = f"{sum(r.failed_requests for r in rows)} of {sum(r.requests for r in rows)} requests failed"
    said = f"seed {seed}: {n_faults} faults injected, {n_wrong} chunks served wrong, {failed}"
    return f"{said}; {broken} kinds of fault broke a promise" if broken else f"{said}; every promise was kept"


def as_json(rows: Sequence[Row], seed: int) -> str:
    """Everything, as one object."""
    kept = not any(row.violations for row in rows)
    return json.dumps({"seed": seed, "kept": kept, "rows": [row.as_dict() for row in rows]}, indent=1)


def _cells(row: Row) -> tuple[str, ...]:
    counts = (row.injected, row.detected, row.harmless, row.served_wrong, row.failed_requests, row.requests)
    return (row.fault, *map(str, counts), f"{row.worst_call_s * 1000:.1f}")


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join([cells[0].ljust(widths[0]), *map(str.rjust, cells[1:], widths[1:])])
