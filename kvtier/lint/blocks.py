"""Parts of a prompt whose order may change and not their meaning: text -> JSON values, tool lists, documents."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from kvtier.lint.causes import Cause


@dataclass(frozen=True, slots=True)
class Block:
    """text[start:end], in forms from what was written to what could be written always.

    The first form is the text itself; two texts that agree in form i and not in form i - 1 differ by causes[i - 1].
    """

    start: int
    end: int
    forms: tuple[str, ...]
    causes: tuple[Cause, ...]


_MAX_TEXT: Final = 1_000_000  # a search for lists in more would take longer than it is worth


def blocks(text: str) -> list[Block]:
    """The blocks of `text`, in order, apart from each other; none of a text of more than a million characters."""
    if len(text) > _MAX_TEXT:
        return []
    found: list[Block] = []
    for block in (*_tagged(text), *_numbered(text), *_bulleted(text), *_json(text)):
        if all(block.end <= other.start or other.end <= block.start for other in found):
            found.append(block)
    return sorted(found, key=lambda block: block.start)


_TAGS: Final = r"document|doc|passage|context|source|chunk|snippet|result|article"
_TAG: Final = re.compile(rf"<(?P<tag>{_TAGS})(?P<attributes>\s[^<>]*)?>")
_RANK: Final = re.compile(r"\b(?:index|rank|n|no|number|score|position)=(?:\"[^\"]*\"|'[^']*'|\S+)")


def _tagged(text: str) -> list[Block]:
    found: list[Block] = []
    run: list[_Tagged] = []
    for item in (*_tags(text), None):
        if run and (item is None or text[run[-1].end : item.start].strip()):
            if len(run) > 1:
                bodies = [tagged.body for tagged in run]
                found.append(_unordered(text, run[0].start, run[-1].end, bodies, Cause.DOCUMENT_ORDER))
            run = []
        if item:
            run.append(item)
    return found


class _Tagged(NamedTuple):
    start: int
    end: int
    body: str  # with what identifies it, without its rank


def _tags(text: str) -> Iterator[_Tagged]:
    at = 0
    while match := _TAG.search(text, at):
        close = f"</{match['tag']}>"
        end = text.find(close, match.end())
        if end < 0:
            return
        at = end + len(close)
        attributes = _RANK.sub("", match["attributes"] or "")
        yield _Tagged(match.start(), at, f"{match['tag']}{attributes}\n{text[match.end() : end]}")


_HEADER: Final = re.compile(
    r"^[^\S\n]*(?:#+[^\S\n]*)?(?:\[\d+\]"
    r"|\[?(?:Document|Doc|Passage|Source|Context|Result|Snippet|Chunk|Article)[^\S\n]*#?[^\S\n]*\d+\]?)[^\S\n]*[:.)-]?[^\S\n]*",
    re.MULTILINE | re.IGNORECASE,
)
_AFTER: Final = re.compile(r"^(?:Question|Query|Q|Answer|User|Task|Instructions?|Using|Based|Given)\b", re.MULTILINE)


def _numbered(text: str) -> list[Block]:
    heads = list(_HEADER.finditer(text))
    if len(heads) < 2:
        return []
    bodies = [text[a.end() : b.start()] for a, b in itertools.pairwise(heads)]
    if any(not body.strip() for body in bodies):
        return []  # a list of references
    last = text[heads[-1].end() :]
    if after := _AFTER.search(last):
        last = last[: after.start()]
    lines = max(len(body.strip().splitlines()) for body in bodies)
    if lines == 1:
        last = next((line for line in last.split("\n") if line.strip()), "")
        last = text[heads[-1].end() : text.index(last, heads[-1].end()) + len(last)]
    else:
        last = re.split(r"\n\s*\n", last.lstrip("\n"), maxsplit=1)[0]
        last = text[heads[-1].end() : text.index(last, heads[-1].end()) + len(last)]
    if not last.strip():
        return []
    end = heads[-1].end() + len(last.rstrip())
    return [_unordered(text, heads[0].start(), end, [*bodies, last], Cause.DOCUMENT_ORDER)]


_TOOL_LIST: Final = re.compile(
    r"^(?P<head>[^\n]{0,200}:)[^\S\n]*\n\s*?(?P<items>(?:[^\S\n]*(?:[-*]|\d+[.)])[^\S\n]+\S[^\n]*(?:\n|\Z)){2,})",
    re.MULTILINE,
)
_TOOL_WORD: Final = re.compile(r"\b(?:tools|functions)\b", re.IGNORECASE)
_BULLET: Final = re.compile(r"^\s*(?:[-*]|\d+[.)])\s+")


def _bulleted(text: str) -> list[Block]:
    if not _TOOL_WORD.search(text):
        return []
    found = []
    for match in _TOOL_LIST.finditer(text):
        if not _TOOL_WORD.search(match["head"]):
            continue
        items = match["items"].rstrip("\n")
        start = match.start("items")
        bodies = [_BULLET.sub("", line) for line in items.split("\n")]
        found.append(_unordered(text, start, start + len(items), bodies, Cause.TOOL_ORDER))
    return found


def _unordered(text: str, start: int, end: int, bodies: list[str], cause: Cause) -> Block:
    clean = [" ".join(body.split()) for body in bodies]
    forms = (text[start:end], "\n".join(clean), "\n".join(sorted(clean)))
    return Block(start, end, forms, (Cause.WHITESPACE, cause))


_OPEN: Final = re.compile(r"[{\[]\s*[{\"]")
_MAX_OPENINGS: Final = 64  # of one text: a long list of broken JSON must not cost a parse each
_DECODER: Final = json.JSONDecoder()


def _json(text: str) -> list[Block]:
    values: list[tuple[int, int, Any]] = []
    at = 0
    for _ in range(_MAX_OPENINGS):
        match = _OPEN.search(text, at)
        if match is None:
            break
        try:
            value, end = _DECODER.raw_decode(text, match.start())
        except (ValueError, RecursionError):
            at = match.start() + 1
            continue
        at = end
        if (
            values
            and isinstance(value, dict)
            and _same_list(values[-1][2], value)
            and not text[values[-1][1] : match.start()].strip(" \r\n\t,")
        ):
            start, _, before = values.pop()
            values.append((start, end, [*before, value] if isinstance(before, list) else [before, value]))
        else:
            values.append((match.start(), end, value))
    return [_json_block(text, *value) for value in values if _has_order(value[2])]


def _same_list(before: object, value: object) -> bool:
    last = before[-1] if isinstance(before, list) and before else before
    return (_is_tool(last) and _is_tool(value)) or (_is_document(last) and _is_document(value))


def _json_block(text: str, start: int, end: int, value: object) -> Block:
    forms = [text[start:end], _dump(value, sort=False), _dump(value, sort=True)]
    causes = [Cause.WHITESPACE, Cause.JSON_KEY_ORDER]
    if isinstance(value, list) and len(value) > 1:
        cause = Cause.TOOL_ORDER if all(map(_is_tool, value)) else None
        cause = Cause.DOCUMENT_ORDER if all(map(_is_document, value)) else cause
        if cause:
            forms.append("\n".join(sorted(_dump(item, sort=True) for item in value)))
            causes.append(cause)
    return Block(start, end, tuple(forms), tuple(causes))


def _dump(value: object, *, sort: bool) -> str:
    if isinstance(value, list):
        return "\n".join(_dump(item, sort=sort) for item in value)  # an item per line: lines are cached
    return json.dumps(value, sort_keys=sort, separators=(",", ":"), ensure_ascii=False)


def _has_order(value: object) -> bool:
    if isinstance(value, dict):
        return len(value) > 1 or any(map(_has_order, value.values()))
    return isinstance(value, list) and any(map(_has_order, value))


def _is_tool(value: object) -> bool:
    if not isinstance(value, dict):
        return False
    inner = value.get("function")
    if isinstance(inner, dict):
        return isinstance(inner.get("name"), str)
    return isinstance(value.get("name"), str) and bool(
        value.keys() & {"parameters", "input_schema", "inputSchema", "description"}
    )


def _is_document(value: object) -> bool:
    keys = ("content", "text", "page_content", "passage", "snippet", "body", "document")
    return (
        isinstance(value, dict)
        and "role" not in value
        and "type" not in value
        and any(isinstance(value.get(key), str) for key in keys)
    )
