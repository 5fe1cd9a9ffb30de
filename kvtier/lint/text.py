"""The report in words: Report -> lines for a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Final

from kvtier.lint.causes import TITLES
from kvtier.lint.report import Finding, Report
from kvtier.lint.view import Branch, view

_WIDTH: Final = 110
_TREE_LINES: Final = 30
NOTE: Final = (
    "Hit rates are shares of tokens in a cache that never forgets; an engine shares whole blocks, so up to one block "
    "per request less. What lies behind several causes counts for each of them."
)


def to_text(report: Report) -> str:
    """All of it."""
    return "\n".join(_lines(report))


def _lines(report: Report) -> Iterator[str]:
    tally = report.tally
    yield f"{report.file}: {plural(tally.requests, 'request')}, {tally.tokens:,} tokens{_span(report)}"
    yield f"tokens counted with {report.counted_with}"
    if report.n_skipped:
        yield f"{plural(report.n_skipped, 'bad line')} left out"
    yield ""
    yield f"prefix hit rate now          {percent(report.hit_rate)}"
    if not report.findings:
        yield "nothing found that breaks a shared prefix"
    else:
        yield f"with everything below fixed  {percent(report.hit_rate_after)}"
    for number, finding in enumerate(report.findings, start=1):
        yield ""
        yield from _finding(number, finding)
    if tally.requests:
        yield ""
        yield "shared prefixes (requests, tokens):"
        lines = list(_tree(view(tally.root), 0))
        yield from lines[:_TREE_LINES]
        if len(lines) > _TREE_LINES:
            yield f"  ... {len(lines) - _TREE_LINES} more lines; --html FILE shows the whole tree"
    yield ""
    yield from textwrap.wrap(NOTE, _WIDTH)


def _finding(number: int, finding: Finding) -> Iterator[str]:
    site = finding.site
    where = f' at "{site.shown}"' if site.label else ""
    yield f"{number}. {TITLES[finding.cause]}{where} ({site.role})"
    yield f"   requests     {finding.requests:,} of {finding.of:,} that have it; lines {_numbers(finding)}"
    yield f"   tokens lost  {finding.lost_tokens:,} behind it, {finding.lost_tokens // finding.requests:,} per request"
    yield (
        f"   hit rate     {percent(finding.hit_rate_after)} with this fixed alone, "
        f"{percent(finding.hit_rate_with_above)} with those above it as well"
    )
    yield f"   rewrite      {site.rewrite}"


def _numbers(finding: Finding) -> str:
    more = ", ..." if finding.requests > len(finding.lines) else ""
    return ", ".join(str(line) for line in finding.lines) + more


def _tree(branch: Branch, depth: int) -> Iterator[str]:
    indent = "  " * (depth + 1)
    head = f"{indent}{branch.requests:,} x {branch.tokens:,}"
    shown = " ".join(branch.text.split()) or "(all)"
    lost = f"  [{branch.lost_tokens:,} tokens lost here]" if branch.lost_tokens else ""
    room = max(_WIDTH - len(head) - len(lost) - 2, 20)
    yield f"{head}  {shown if len(shown) <= room else shown[: room - 3] + '...'}{lost}"
    for child in branch.children:
        yield from _tree(child, depth + 1)
    if branch.others and branch.children:
        yield f"{indent}  {branch.others:,} go other ways"


def _span(report: Report) -> str:
    tally = report.tally
    parts = [plural(len(tally.tenants), "tenant")] if tally.tenants else []
    if tally.first_s is not None and tally.last_s is not None and tally.last_s > tally.first_s:
        hours = (tally.last_s - tally.first_s) / 3600
        parts.append(f"{hours:,.1f} hours" if hours >= 1 else f"{hours * 60:,.1f} minutes")
    return "".join(f", {part}" for part in parts)


def percent(rate: float) -> str:
    """One decimal."""
    return f"{rate * 100:5.1f} %"


def plural(number: int, noun: str) -> str:
    """`1 request`, `2 requests`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
