"""The report as one HTML file that needs nothing else: Report -> text. Everything from prompts is escaped."""

from __future__ import annotations

import html
from collections.abc import Iterator
from typing import Final

from kvtier.lint.causes import TITLES
from kvtier.lint.report import Finding, Report
from kvtier.lint.text import NOTE, percent, plural
from kvtier.lint.view import Branch, view

_OPEN_DEPTH: Final = 3
_STYLE: Final = """
:root { color-scheme: light dark; --line: #8884; --bad: #c0392b; --bar: #2e86c1; }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; overflow-wrap: anywhere; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; width: 100%; }
th, td { padding: .35rem .6rem; border-bottom: 1px solid var(--line); }
th { text-align: left; } td.n, th.n { text-align: right; white-space: nowrap; }
meter { width: 12rem; vertical-align: middle; }
details { margin-left: 1.1rem; border-left: 1px solid var(--line); padding-left: .5rem; }
summary { cursor: pointer; } .leaf { margin-left: 2.3rem; }
code { font: 13px ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; }
.count { display: inline-block; min-width: 9rem; opacity: .75; } .cause { color: var(--bad); font-weight: 600; }
.lost { color: var(--bad); } .quiet { opacity: .7; }
"""
_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'"  # nothing is fetched and no script runs


def to_html(report: Report) -> str:
    """The whole file."""
    return "\n".join(_page(report)) + "\n"


def _page(report: Report) -> Iterator[str]:
    title = f"kvtier lint: {html.escape(report.file)}"
    yield '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">'
    yield f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>"
    tally = report.tally
    skipped = f", {plural(report.n_skipped, 'bad line')} left out" if report.n_skipped else ""
    yield f"<p>{plural(tally.requests, 'request')}, {tally.tokens:,} tokens{skipped}. "
    yield f"Tokens counted with {html.escape(report.counted_with)}.</p>"
    yield "<table>"
    yield _rate_row("Prefix hit rate now", report.hit_rate)
    yield _rate_row("With all findings fixed", report.hit_rate_after)
    yield "</table>\n<h2>Findings</h2>"
    yield from _findings(report.findings)
    yield "<h2>Shared prefixes</h2>"
    yield '<p class="quiet">Requests and tokens of each part; what is indented continues what is above it.</p>'
    yield from _branch(view(tally.root), 0)
    yield f'<p class="quiet">{html.escape(NOTE)}</p>\n</body>\n</html>'


def _rate_row(name: str, rate: float) -> str:
    return f'<tr><th>{name}</th><td class="n">{percent(rate)}</td><td><meter value="{rate:.4f}"></meter></td></tr>'


def _findings(findings: tuple[Finding, ...]) -> Iterator[str]:
    if not findings:
        yield "<p>Nothing found that breaks a shared prefix.</p>"
        return
    yield '<table class="findings"><thead><tr><th>Cause</th><th>Where</th><th class="n">Requests</th>'
    yield '<th class="n">Tokens lost</th><th class="n">Hit rate, fixed alone</th>'
    yield '<th class="n">with those above</th><th>Rewrite</th></tr></thead><tbody>'
    for finding in findings:
        site = finding.site
        where = f"<code>{html.escape(site.shown)}</code> " if site.label else ""
        lines = ", ".join(map(str, finding.lines))
        yield f'<tr><td class="cause">{TITLES[finding.cause]}</td>'
        yield f'<td>{where}({html.escape(site.role)})<br><span class="quiet">lines {lines}</span></td>'
        yield f'<td class="n">{finding.requests:,} of {finding.of:,}</td><td class="n">{finding.lost_tokens:,}</td>'
        yield f'<td class="n">{percent(finding.hit_rate_after)}</td>'
        yield f'<td class="n">{percent(finding.hit_rate_with_above)}</td>'
        yield f"<td>{html.escape(site.rewrite)}</td></tr>"
    yield "</tbody></table>"


def _branch(branch: Branch, depth: int) -> Iterator[str]:
    count = f'<span class="count">{branch.requests:,} x {branch.tokens:,}</span>'
    kind = ' class="cause"' if branch.site else ""
    text = html.escape(branch.text) or "(all requests)"
    lost = f' <span class="lost">{branch.lost_tokens:,} tokens lost here</span>' if branch.lost_tokens else ""
    label = f"{count}<code{kind}>{text}</code>{lost}"
    if not branch.children:
        yield f'<div class="leaf">{label}</div>'
        return
    yield f"<details{' open' if depth < _OPEN_DEPTH else ''}><summary>{label}</summary>"
    for child in branch.children:
        yield from _branch(child, depth + 1)
    if branch.others:
        yield f'<div class="leaf quiet">{branch.others:,} go other ways</div>'
    yield "</details>"
