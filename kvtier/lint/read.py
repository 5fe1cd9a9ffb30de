"""Prompt files: JSONL on disk -> requests made of turns. One line at a time; nothing is kept."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from kvtier.errors import InputError

Json = dict[str, Any]  # what json.loads gives for an object


@dataclass(frozen=True, slots=True)
class Turn:
    """One message, or one marked part of a rendered prompt."""

    role: str  # "prompt": the text has no markers of roles
    text: str
    lead: str = ""  # what the template wrote before it: markers, and the end of the turn before


@dataclass(frozen=True, slots=True)
class Request:
    """One line of the file."""

    line: int  # from 1
    turns: tuple[Turn, ...]
    timestamp: float | None  # unix seconds
    tenant: str | None


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that is not a request."""

    line: int
    expected: str


def read(
    path: Path, *, skip: Callable[[BadLine], None] | None = None, seen: Callable[[int], None]
) -> Iterator[Request]:
    """The requests of `path`, in file order; `seen` hears the number of bytes of each line.

    A bad line raises InputError with its number and what was expected, or goes to `skip` when one is given. Blank
    lines are no lines. A file that cannot be read raises InputError.
    """
    try:
        with path.open("rb") as file:
            for number, data in enumerate(file, start=1):
                seen(len(data))
                if not data.strip():
                    continue
                try:
                    yield parse(data, number)
                except _BadError as error:
                    if skip is None:
                        raise InputError(f"{path}: line {number}: {error}; --skip-bad leaves such lines out") from error
                    skip(BadLine(number, str(error)))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error


class _BadError(Exception):
    """What was expected of a line."""


def parse(data: bytes, number: int) -> Request:
    """One line. Raises an exception that says what was expected."""
    try:
        record = json.loads(data.removeprefix(b"\xef\xbb\xbf") if number == 1 else data)
    except UnicodeDecodeError:
        raise _BadError("expected UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise _BadError(f"expected one JSON object: {getattr(error, 'msg', 'nested too deep')}") from None
    if not isinstance(record, dict):
        raise _BadError(f"expected a JSON object, not {_kind(record)}")
    outer: Json = record
    body = outer.get("body")
    inner: Json = body if isinstance(body, dict) else outer  # a line of an OpenAI batch file
    if "messages" in inner:
        turns = _of_messages(inner)
    elif "prompt" in inner:
        if not isinstance(inner["prompt"], str):
            raise _BadError(f'expected "prompt" to be text, not {_kind(inner["prompt"])}')
        turns = of_prompt(inner["prompt"])
    else:
        raise _BadError('expected a "prompt" or "messages" key')
    return Request(number, turns, _timestamp(outer), _tenant(outer))


def _of_messages(record: Json) -> tuple[Turn, ...]:
    messages = record["messages"]
    if not isinstance(messages, list) or not messages:
        raise _BadError('expected "messages" to be a list with at least one message')
    turns = [_of_message(message, i) for i, message in enumerate(messages)]
    tools = record.get("tools")
    if tools:
        if not isinstance(tools, list):
            raise _BadError(f'expected "tools" to be a list, not {_kind(tools)}')
        at = 1 if turns[0].role in {"system", "developer"} else 0
        turns.insert(at, Turn("tools", "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)))
    return tuple(turns)


def _of_message(message: object, index: int) -> Turn:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise _BadError(f'expected messages[{index}] to be an object with a "role"')
    content = message.get("content")
    if content is None:
        text = ""
    elif isinstance(content, str):
        text = content
    elif isinstance(content, list):
        text = "\n".join(_of_part(part, index) for part in content)
    else:
        raise _BadError(f"expected the content of messages[{index}] to be text or a list of parts")
    calls = message.get("tool_calls")
    return Turn(message["role"], f"{text}\n{json.dumps(calls, ensure_ascii=False)}" if calls else text)


def _of_part(part: object, index: int) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, dict):
        if isinstance(part.get("text"), str):
            return str(part["text"])
        kind = str(part.get("type", ""))
        if "image" in kind:
            source = part.get("image_url", part.get("image", part.get("source", "")))
            where = source.get("url", source.get("data", "")) if isinstance(source, dict) else source
            return f"<image {hashlib.blake2b(str(where).encode('utf-8', 'replace'), digest_size=16).hexdigest()}>"
        if kind:
            return json.dumps(part, ensure_ascii=False)
    raise _BadError(f"expected every part of messages[{index}] to have a type")


_MARKER: Final = re.compile(
    r"<\|im_start\|>\s*(?P<chatml>[a-z]+)[^\S\n]*\n?"
    r"|<\|start_header_id\|>\s*(?P<llama>[a-z]+)\s*<\|end_header_id\|>\s*"
    r"|<\|(?P<bar>system|user|assistant)\|>[^\S\n]*\n?"
    r"|(?P<inst>\[INST\])\s*|(?P<rest>\[/INST\])\s*"
)
_LINE_MARKER: Final = re.compile(r"^(?P<line>System|User|Human|Assistant|AI): ?", re.MULTILINE)
_ENDS: Final = ("<|im_end|>", "<|eot_id|>", "<|end|>", "</s>")
_START: Final = re.compile(r"\A\s*(?:<s>|<\|begin_of_text\|>|<bos>)\s*")
_ROLES: Final = {"human": "user", "ai": "assistant"}


def of_prompt(text: str) -> tuple[Turn, ...]:
    """The turns of a rendered prompt, by the markers of common chat templates; without any, one turn "prompt"."""
    lead = ""
    if start := _START.match(text):
        lead, text = start.group(), text[start.end() :]
    marks = list(_MARKER.finditer(text)) if "<|" in text or "[INST]" in text else []
    if not marks:
        marks = list(_LINE_MARKER.finditer(text)) if "Assistant:" in text or "AI:" in text else []
        if not {"User", "Human"} & {m["line"] for m in marks} or not {"Assistant", "AI"} & {m["line"] for m in marks}:
            return (Turn("prompt", text, lead),)
    turns: list[Turn] = []
    head = text[: marks[0].start()]
    if head.strip():
        turns.append(Turn("system", head, lead))
        lead = ""
    for mark, following in zip(marks, [*marks[1:], None], strict=True):
        body = text[mark.end() : following.start() if following else len(text)]
        n_text = _text_end(body)
        turns.append(Turn(_role(mark), body[:n_text], lead + mark.group()))
        lead = body[n_text:]
    return tuple(turns)


def _text_end(body: str) -> int:
    """Where the end marker of a turn begins, with the space before it."""
    stripped = body.rstrip()
    end = next((end for end in _ENDS if stripped.endswith(end)), None)
    return len(stripped.removesuffix(end).rstrip()) if end else len(body)


def _role(mark: re.Match[str]) -> str:
    if mark.re is _MARKER:
        if mark["inst"]:
            return "user"
        if mark["rest"]:
            return "assistant"
        return mark["chatml"] or mark["llama"] or mark["bar"]
    name = mark["line"].lower()
    return _ROLES.get(name, name)


def _timestamp(record: Json) -> float | None:
    value = record.get("timestamp")
    if value is None:
        return None
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return value / 1000 if abs(value) > 1e11 else float(value)
    if isinstance(value, str):
        try:
            return dt.datetime.fromisoformat(value).timestamp()
        except (ValueError, OverflowError, OSError):
            pass
    raise _BadError('expected "timestamp" to be unix seconds, milliseconds or ISO 8601')


def _tenant(record: Json) -> str | None:
    value = record.get("tenant")
    if value is None or isinstance(value, str):
        return value
    raise _BadError(f'expected "tenant" to be text, not {_kind(value)}')


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return names.get(type(value), "null")
