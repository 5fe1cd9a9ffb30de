"""Values that change from request to request: one line of text -> spans, each with its cause.

A span is only a candidate: it is blamed when its value differs between requests that go on alike behind it.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from typing import Final, NamedTuple

from kvtier.lint.causes import Cause
from kvtier.lint.patterns import PATTERNS, heads


class Span(NamedTuple):
    """line[start:end] may change."""

    start: int
    end: int
    cause: Cause


_DIGIT: Final = re.compile(r"\d")
_CACHED: Final = 1 << 16  # lines
_SHORT: Final = 2_000  # characters of a line worth caching
_SCANNED: Final = 20_000  # characters of a line, except for inline images
_CLOSE: Final = 12  # characters between two spans of one cause that are one thing to a reader


def spans(line: str) -> tuple[Span, ...]:
    """The spans of `line`, in order, apart from each other. Of a very long line only the head is looked at."""
    return _cached(line) if len(line) <= _SHORT else _spans(line)


def _spans(line: str) -> tuple[Span, ...]:
    found: list[Span] = []
    for cause, regex in _candidates(line):
        group = regex.groups
        for match in regex.finditer(line, 0, len(line) if cause is Cause.IMAGE else _SCANNED):
            start, end = match.span(group)
            if not any(start < other.end and other.start < end for other in found):
                found.append(Span(start, end, cause))
    return tuple(_joined(sorted(found))) if found else ()


_cached = functools.lru_cache(_CACHED)(_spans)


def _candidates(line: str) -> Iterator[tuple[Cause, re.Pattern[str]]]:
    """The patterns that can match."""
    digit = _DIGIT.search(line) is not None
    folded = line.lower()
    longest = max(map(len, line.split()), default=0) if digit else 0
    known = heads(folded)
    for cause, regex, needs_digit, least, marks, starts, hint in PATTERNS:
        if (needs_digit and not digit) or least > longest or (starts and starts.isdisjoint(known)):
            continue
        if marks and not any(mark in folded for mark in marks):
            continue
        if hint is None or hint.search(line):
            yield cause, regex


def _joined(found: list[Span]) -> list[Span]:
    joined: list[Span] = []
    for span in found:
        if joined and joined[-1].cause is span.cause and span.start - joined[-1].end <= _CLOSE:
            joined[-1] = Span(joined[-1].start, span.end, span.cause)
        else:
            joined.append(span)
    return joined


def masked(text: str) -> tuple[str, list[tuple[Span, str]]]:
    """`text` with the spans of its lines replaced by their causes, and the values taken out."""
    out: list[str] = []
    values: list[tuple[Span, str]] = []
    for line in text.split("\n"):
        at, parts = 0, []
        for span in spans(line):
            parts += [line[at : span.start], f"\0{span.cause}\0"]
            values.append((span, line[span.start : span.end]))
            at = span.end
        out.append("".join([*parts, line[at:]]))
    return "\n".join(out), values
