"""What values that change from request to request look like: times, ids, names, counters, images."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from kvtier.lint.causes import Cause

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


class Pattern(NamedTuple):
    """One form of a value, and what a line with it must have: a glance at those is far cheaper than a search."""

    cause: Cause
    regex: re.Pattern[str]  # the last group, when there is one, is the value
    digit: bool = True
    longest: int = 0  # characters of the longest word, at least
    marks: tuple[str, ...] = ()  # one of them, in lower case
    heads: frozenset[str] = frozenset()  # the first letters of one of its words, as `heads` gives them
    hint: re.Pattern[str] | None = None


_WORD: Final = re.compile(r"[a-z]+")


def heads(text: str) -> frozenset[str]:
    """The first three letters of each word of `text`, which is in lower case."""
    return frozenset(word[:3] for word in _WORD.findall(text))


_PEOPLE: Final = "user|customer|client|patient|member|employee|student|guest|caller|recipient|traveller|passenger|name"
_ORDERED: Final = "order|ticket|invoice|transaction|case|session|trace|nonce|salt|booking"
_BUDGETS: Final = "credits|balance|quota|budget|remaining|left|tokens"

# In order of precedence.
PATTERNS: Final[tuple[Pattern, ...]] = (
    Pattern(
        Cause.IMAGE,
        re.compile(
            r"<image(?:[_:\s-][^<>\n]{0,4000})?/?>|<img\b[^<>\n]{0,4000}>|data:image/[\w.+-]+;base64,[A-Za-z0-9+/=]+"
            r"|!\[[^\]\n]{0,200}\]\([^)\s]{1,4000}\)|\[(?:image|img|IMG|Image)[ _:#-][^\]\n]{0,200}\]"
            r"|<\|(?:image|vision)[^|\n]{0,200}\|>"
        ),
        digit=False,
        marks=("<im", "data:image", "![", "[im", "<|image", "<|vision"),
    ),
    Pattern(
        Cause.USER,
        re.compile(r"(?<![\w.+-])[\w.+-]+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+"),
        digit=False,
        marks=("@",),
    ),
    Pattern(
        Cause.TIMESTAMP,
        re.compile(rf"(?<![\w.]){_DATE}(?:(?:T|,?\s+(?:at\s+)?){_TIME})?(?!\d)"),
        hint=re.compile(r"\d[-/.]\d|\d{4}"),
    ),
    Pattern(Cause.TIMESTAMP, re.compile(rf"(?<![\w.:]){_TIME}(?![\d:])"), marks=(":",)),
    Pattern(
        Cause.TIMESTAMP, re.compile(r"\b(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day\b"), digit=False, marks=("day",)
    ),
    Pattern(
        Cause.ID,
        re.compile(r"(?<![0-9A-Za-z])[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}(?![0-9A-Za-z])"),
        longest=36,
    ),
    Pattern(
        Cause.ID,
        re.compile(r"(?<![0-9A-Za-z])(?=[a-fA-F]*\d)(?=\d*[a-fA-F])[0-9a-fA-F]{16,64}(?![0-9A-Za-z])"),
        longest=16,
    ),
    Pattern(Cause.ID, re.compile(r"(?<![0-9A-Za-z])[0-7][0-9A-HJKMNP-TV-Z]{25}(?![0-9A-Za-z])"), longest=26),
    Pattern(
        Cause.ID,
        re.compile(
            r"(?<![0-9A-Za-z])(?:req|request|sess|session|trace|span|run|conv|thread|msg|job|task|call|usr|user|cus|"
            r"cust|ord|order|txn|chatcmpl|resp|acct)[-_](?=[A-Za-z0-9_-]*\d)[A-Za-z0-9_-]{6,}"
        ),
        longest=10,
    ),
    Pattern(
        Cause.ID,
        re.compile(
            r"(?<![\w.-])(?=(?:[a-z]*\d){2})(?=(?:\d*[a-z]){2})(?=[a-z0-9]{0,40}?(?:\d[a-z]{1,40}\d|[a-z]\d{1,40}[a-z]))"
            r"[a-z0-9]{8,40}(?![\w.-])"
        ),
        longest=8,
        hint=re.compile(r"[a-z]\d"),
    ),
    Pattern(
        Cause.ID,
        re.compile(
            rf"(?i)\b(?:{_OBJECT})[ _-]?(?:id|uuid|key|token|no\.?|nr\.?|number|num|reference)\b"
            rf"[\"']?(?:(?:\s+[a-z]+){{0,2}}\s*[:=#])?\s*[\"'#]?{_VALUE}"
        ),
        heads=heads(_OBJECT),
    ),
    Pattern(
        Cause.ID,
        re.compile(rf"(?i)\b(?:{_ORDERED})\s*[:=#]+\s*[\"'#]?{_VALUE}"),
        heads=heads(_ORDERED),
    ),
    Pattern(Cause.TIMESTAMP, re.compile(r"(?<![\w.-])1[4-9]\d{8}(?:\d{3}|\.\d+)?(?![\w.])"), longest=10),
    Pattern(
        Cause.COUNTER,
        re.compile(
            rf"(?i)\b(?:{_COUNTED})(?:[ _-]?(?:number|no\.?|num|nr\.?|count|index|counter))?\s*(?:[:=#]\s*#?|\s)\s*"
            r"(\d{1,9}(?:\s*(?:/|of)\s*\d+)?)(?![\w.:-])"
        ),
        heads=heads(_COUNTED),
    ),
    Pattern(
        Cause.COUNTER,
        re.compile(rf"(?i)\b(?:{_BUDGETS})\s*[:=]\s*(\d{{1,9}})(?![\w.:-])"),
        heads=heads(_BUDGETS),
    ),
    Pattern(
        Cause.COUNTER,
        re.compile(
            r"(?i)(?<![\w.])(\d{1,9})\s+(?:more\s+|free\s+)?(?:messages?|requests?|tokens?|credits?|calls?|turns?|steps?|"
            r"attempts?|questions?|points?)\s+(?:left|remain|remaining|used|so\s+far)\b"
        ),
        heads=heads("left|remain|used|so"),
    ),
    Pattern(
        Cause.USER,
        re.compile(rf"\b(?i:{_PEOPLE})(?:[ _-]?(?i:name))?[\"']?(?:\s*[:=]|\s+(?:is|named|called))\s*[\"']?{_NAME}"),
        digit=False,
        heads=heads(_PEOPLE),
    ),
    Pattern(
        Cause.USER,
        re.compile(
            r"\b(?i:(?:talking|speaking|chatting)\s+(?:to|with)|assisting|helping|serving|on\s+behalf\s+of|"
            r"(?:logged|signed)\s+in\s+as|hello|hi|dear|welcome(?:\s+back)?),?\s+"
            rf"(?i:(?:the\s+)?(?:user|customer|client)\s+)?{_NAME}"
        ),
        digit=False,
        heads=heads("talking|speaking|chatting|assisting|helping|serving|behalf|logged|signed|hello|hi|dear|welcome"),
    ),
    Pattern(
        Cause.USER,
        re.compile(r"(?i)\b(?:(?:user[ _-]?name|login|handle|nickname)[\"']?\s*[:=]|user\s*=)\s*[\"']?([\w.@-]{2,})"),
        digit=False,
        heads=heads("user|login|handle|nickname"),
    ),
)
