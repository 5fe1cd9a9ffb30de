"""Values that change from request to request: one line of text -> spans, each with its cause.

A span is only a candidate: it is blamed when its value differs between requests that go on alike behind it.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from typing import Final, NamedTuple

from kvtier.lint.causes import Cause


class Span(NamedTuple):
    """line[start:end] may change."""

    start: int
    end: int
    cause: Cause


_MONTH: Final = (
    r"(?:Jan(?:uary)?|Feb(?:ruary)?|Mar(?:ch)?|Apr(?:il)?|May|June?|July?|Aug(?:ust)?|Sept?(?:ember)?|Oct(?:ober)?"
    r"|Nov(?:ember)?|Dec(?:ember)?)\.?"
)
_DAY: Final = (
    r"(?:(?:Mon|Tues?|Wed|Thu|Thurs?|Fri|Sat|Sun|Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday),?"
    r"\s+(?:the\s+)?)?"
)
_TIME: Final = (
    r"\d{1,2}:\d{2}(?::\d{2}(?:[.,]\d+)?)?(?:\s?[AaPp]\.?[Mm]\b\.?)?"
    r"(?:\s?(?:Z|UTC|GMT|CET|CEST|[ECMP][SD]T|[+-]\d{2}:?\d{2})(?!\w))?"
)
_DATE: Final = (
    rf"(?:{_DAY}(?:\d{{4}}[-/.]\d{{1,2}}[-/.]\d{{1,2}}|\d{{1,2}}[/.]\d{{1,2}}[/.]\d{{2,4}}|\d{{1,2}}-\d{{1,2}}-\d{{4}}"
    rf"|{_MONTH}\s+\d{{1,2}}(?:st|nd|rd|th)?,?\s+\d{{4}}|\d{{1,2}}(?:st|nd|rd|th)?\.?\s+{_MONTH},?\s+\d{{4}}))"
)
_OBJECT: Final = (
    "request|session|trace|span|correlation|conversation|thread|chat|run|job|task|ticket|order|invoice|case|claim|"
    "transaction|user|account|customer|client|message|call|document|parcel|booking|reference|member"
)
_VALUE: Final = r"(?=[\w.:-]*\d)([A-Za-z0-9][\w.:-]*\w|\d)"
_UPPER: Final = r"[A-Z\u00c0-\u00de\u0100-\u017f]"
_NAME: Final = (
    rf"({_UPPER}[\w'\u2019.-]+(?:\s+(?:(?:van|von|de|der|den|da|bin|al|el)\s+)*{_UPPER}[\w'\u2019.-]*\w){{0,3}})"
)
_COUNTED: Final = (
    "request|turn|step|attempt|iteration|message|msg|round|seq|sequence|counter|count|call|visit|query|retry|retries|"
    "prompt|run|job|batch|sample|item|episode|trial|try"
)
_WEEKDAY: Final = re.compile(r"\b(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day\b")
_MAIL: Final = re.compile(r"(?<![\w.+-])[\w.+-]+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+")

# In order of precedence; the last group, when there is one, is the value.
_PATTERNS: Final[tuple[tuple[Cause, re.Pattern[str]], ...]] = (
    (
        Cause.IMAGE,
        re.compile(
            r"<image(?:[_:\s-][^<>\n]{0,4000})?/?>|<img\b[^<>\n]{0,4000}>|data:image/[\w.+-]+;base64,[A-Za-z0-9+/=]+"
            r"|!\[[^\]\n]{0,200}\]\([^)\s]{1,4000}\)|\[(?:image|img|IMG|Image)[ _:#-][^\]\n]{0,200}\]"
            r"|<\|(?:image|vision)[^|\n]*\|>"
        ),
    ),
    (Cause.USER, _MAIL),
    (Cause.TIMESTAMP, re.compile(rf"(?<![\w.]){_DATE}(?:(?:T|,?\s+(?:at\s+)?){_TIME})?(?!\d)")),
    (Cause.TIMESTAMP, re.compile(rf"(?<![\w.:]){_TIME}(?![\d:])")),
    (Cause.TIMESTAMP, _WEEKDAY),
    (Cause.ID, re.compile(r"(?<![0-9A-Za-z])[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}(?![0-9A-Za-z])")),
    (Cause.ID, re.compile(r"(?<![0-9A-Za-z])(?=[a-fA-F]*\d)(?=\d*[a-fA-F])[0-9a-fA-F]{16,64}(?![0-9A-Za-z])")),
    (Cause.ID, re.compile(r"(?<![0-9A-Za-z])[0-7][0-9A-HJKMNP-TV-Z]{25}(?![0-9A-Za-z])")),
    (
        Cause.ID,
        re.compile(
            r"(?<![0-9A-Za-z])(?:req|request|sess|session|trace|span|run|conv|thread|msg|job|task|call|usr|user|cus|"
            r"cust|ord|order|txn|chatcmpl|resp|acct)[-_](?=[A-Za-z0-9_-]*\d)[A-Za-z0-9_-]{6,}"
        ),
    ),
    (
        Cause.ID,
        re.compile(
            r"(?<![\w.-])(?=(?:[a-z]*\d){2})(?=(?:\d*[a-z]){2})(?=[a-z0-9]{0,40}?(?:\d[a-z]{1,40}\d|[a-z]\d{1,40}[a-z]))"
            r"[a-z0-9]{8,40}(?![\w.-])"
        ),
    ),
    (
        Cause.ID,
        re.compile(
            rf"(?i)\b(?:{_OBJECT})[ _-]?(?:id|uuid|key|token|no\.?|nr\.?|number|num|reference)\b"
            rf"[\"']?(?:(?:\s+[a-z]+){{0,2}}\s*[:=#])?\s*[\"'#]?{_VALUE}"
        ),
    ),
    (
        Cause.ID,
        re.compile(
            r"(?i)\b(?:order|ticket|invoice|transaction|case|session|trace|nonce|salt|booking)"
            rf"\s*[:=#]+\s*[\"'#]?{_VALUE}"
        ),
    ),
    (Cause.TIMESTAMP, re.compile(r"(?<![\w.-])1[4-9]\d{8}(?:\d{3}|\.\d+)?(?![\w.])")),
    (
        Cause.COUNTER,
        re.compile(
            rf"(?i)\b(?:{_COUNTED})(?:[ _-]?(?:number|no\.?|num|nr\.?|count|index|counter))?\s*(?:[:=#]\s*#?|\s)\s*"
            r"(\d{1,9}(?:\s*(?:/|of)\s*\d+)?)(?![\w.:-])"
        ),
    ),
    (
        Cause.COUNTER,
        re.compile(r"(?i)\b(?:credits|balance|quota|budget|remaining|left|tokens)\s*[:=]\s*(\d{1,9})(?![\w.:-])"),
    ),
    (
        Cause.COUNTER,
        re.compile(
            r"(?i)(?<![\w.])(\d{1,9})\s+(?:more\s+|free\s+)?(?:messages?|requests?|tokens?|credits?|calls?|turns?|steps?|"
            r"attempts?|questions?|points?)\s+(?:left|remain|remaining|used|so\s+far)\b"
        ),
    ),
    (
        Cause.USER,
        re.compile(
            r"\b(?i:user|customer|client|patient|member|employee|student|guest|caller|recipient|traveller|passenger|name)"
            rf"(?:[ _-]?(?i:name))?[\"']?(?:\s*[:=]|\s+(?:is|named|called))\s*[\"']?{_NAME}"
        ),
    ),
    (
        Cause.USER,
        re.compile(
            r"\b(?i:(?:talking|speaking|chatting)\s+(?:to|with)|assisting|helping|serving|on\s+behalf\s+of|"
            rf"(?:logged|signed)\s+in\s+as|hello|hi|dear|welcome(?:\s+back)?),?\s+(?i:(?:the\s+)?(?:user|customer|client)\s+)?{_NAME}"
        ),
    ),
    (
        Cause.USER,
        re.compile(r"(?i)\b(?:(?:user[ _-]?name|login|handle|nickname)[\"']?\s*[:=]|user\s*=)\s*[\"']?([\w.@-]{2,})"),
    ),
)  # fmt: skip
_DIGIT: Final = re.compile(r"\d")
_IMAGE_MARKS: Final = ("<image", "<img", "data:image", "![", "[i", "[I", "<|image", "<|vision")
_USER_WORDS: Final = (
    "name", "user", "customer", "client", "patient", "member", "employee", "student", "guest", "caller", "recipient",
    "traveller", "passenger", "talking", "speaking", "chatting", "assisting", "helping", "serving", "behalf", "in as",
    "hello", "hi", "dear", "welcome", "login", "handle",
)  # fmt: skip
_CACHED: Final = 1 << 16  # lines
_SHORT: Final = 2_000  # characters of a line worth caching
_SCANNED: Final = 20_000  # characters of a line, except for inline images
_CLOSE: Final = 12  # characters between two spans of one cause that are one thing to a reader


def spans(line: str) -> tuple[Span, ...]:
    """The spans of `line`, in order, apart from each other. Of a very long line only the head is looked at."""
    return _cached(line) if len(line) <= _SHORT else _spans(line)


def _spans(line: str) -> tuple[Span, ...]:
    found: list[Span] = []
    for cause, pattern in _candidates(line):
        group = pattern.groups
        for match in pattern.finditer(line, 0, len(line) if cause is Cause.IMAGE else _SCANNED):
            start, end = match.span(group)
            if not any(start < other.end and other.start < end for other in found):
                found.append(Span(start, end, cause))
    return tuple(_joined(sorted(found))) if found else ()


_cached = functools.lru_cache(_CACHED)(_spans)


def _candidates(line: str) -> Iterator[tuple[Cause, re.Pattern[str]]]:
    """The patterns that can match: looking for a word first is several times as fast as most of them."""
    digit = _DIGIT.search(line) is not None
    image = any(mark in line for mark in _IMAGE_MARKS)
    folded = line.lower()
    user = any(word in folded for word in _USER_WORDS)
    for cause, pattern in _PATTERNS:
        if cause is Cause.IMAGE:
            possible = image
        elif cause is Cause.USER:
            possible = "@" in line if pattern is _MAIL else user
        elif pattern is _WEEKDAY:
            possible = "day" in folded
        else:
            possible = digit
        if possible:
            yield cause, pattern


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
