"""Prompts: JSON lines of prompts or OpenAI-style messages, tokenized with a model's own tokenizer -> Request.

Chunk keys are chained digests of token ids, as an engine makes them. Needs the `tokenizers` package, and jinja2 when
messages are to go through the model's chat template.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kvtier.errors import InputError
from kvtier.sim.formats import count_of, json_object, seconds_of
from kvtier.sim.trace import NAMESPACE, BadLineError, Request, shown
from kvtier.types import ChunkKey

_DIGEST_BYTES = 16


class Prompts:
    """Lines with `prompt` or `messages`; optional `timestamp` in seconds, `output_length` in tokens, `cache_salt`."""

    def __init__(self, tokenizer: Path, tokens_per_chunk: int) -> None:
        """Tokenize with the model folder `tokenizer`. Raises InputError when that is not possible."""
        self._tokens_per_chunk = tokens_per_chunk
        self._encode = _encoder(tokenizer)
        self._render = _template(tokenizer)

    @property
    def tokens_per_chunk(self) -> int:
        """Tokens of a whole chunk."""
        return self._tokens_per_chunk

    def parse(self, line: bytes) -> Request:
        """The request of a line. Raises BadLineError."""
        record = json_object(line)
        if "messages" in record:
            text = self._render(_messages(record["messages"]), record.get("tools"))
            tokens = self._encode(text, False)
        else:
            prompt = record.get("prompt")
            if not isinstance(prompt, str):
                raise BadLineError(f"expected `prompt`, a text, or `messages`, a list, got {shown(prompt)}")
            tokens = self._encode(prompt, True)
        keys = _chain(tokens, self._tokens_per_chunk, str(record.get("cache_salt") or ""))
        output = count_of(record, "output_length", default=0)
        whole = len(tokens) // self._tokens_per_chunk
        return Request(seconds_of(record, "timestamp"), len(tokens), output, keys, whole)


def _chain(tokens: list[int], tokens_per_chunk: int, salt: str) -> list[ChunkKey]:
    keys = []
    digest = salt.encode("utf-8", "replace")
    for first in range(0, len(tokens), tokens_per_chunk):
        chunk = array("q", tokens[first : first + tokens_per_chunk]).tobytes()
        digest = hashlib.blake2b(digest + chunk, digest_size=_DIGEST_BYTES).digest()
        keys.append(ChunkKey(NAMESPACE + digest))
    return keys


def _messages(messages: object) -> list[dict[str, Any]]:
    if not isinstance(messages, list) or not messages:
        raise BadLineError(f"expected `messages`, a list with at least one message, got {shown(messages)}")
    for i, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise BadLineError(f"expected messages[{i}], an object with a `role`, got {shown(message)}")
        content = message.get("content")
        if isinstance(content, list):
            parts = [part.get("text") for part in content if isinstance(part, dict)]
            messages[i] = message | {"content": "\n".join(part for part in parts if isinstance(part, str))}
        elif content is not None and not isinstance(content, str):
            raise BadLineError(f"expected messages[{i}].content, a text or a list of parts, got {shown(content)}")
    return messages


def _encoder(folder: Path) -> Callable[[str, bool], list[int]]:
    try:
        from tokenizers import Tokenizer  # noqa: PLC0415 an extra, and slow to import
    except ImportError as error:
        raise InputError("prompts need the tokenizers package: pip install 'kvtier[tokenizer]'") from error
    path = folder / "tokenizer.json" if folder.is_dir() else folder
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:
        raise InputError(f"{path}: not a tokenizer: {error}; give a model folder with a tokenizer.json") from error

    def encode(text: str, special: bool) -> list[int]:
        clean = text.encode("utf-8", "replace").decode()
        return list(tokenizer.encode(clean, add_special_tokens=special).ids)

    return encode


def _template(folder: Path) -> Callable[[list[dict[str, Any]], object], str]:
    """The model's chat template; a plain one where there is none, for prefixes come out alike in any."""
    config = folder / "tokenizer_config.json"
    settings: dict[str, Any] = {}
    if folder.is_dir() and config.is_file():
        try:
            settings = json.loads(config.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{config}: not JSON: {error}") from error
    source = settings.get("chat_template")
    beside = folder / "chat_template.jinja"
    if beside.is_file():
        source = beside.read_text(encoding="utf-8")
    if not isinstance(source, str):
        return _plain
    try:
        from jinja2.sandbox import ImmutableSandboxedEnvironment  # noqa: PLC0415 only chat templates need it
    except ImportError as error:
        raise InputError("the model's chat template needs the jinja2 package: pip install jinja2") from error
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = _raise
    template = environment.from_string(source)
    known = {name: _text(settings.get(name)) for name in ("bos_token", "eos_token", "unk_token", "pad_token")}

    def render(messages: list[dict[str, Any]], tools: object) -> str:
        try:
            return template.render(messages=messages, tools=tools, add_generation_prompt=True, **known)
        except Exception as error:
            raise BadLineError(f"expected messages that the model's chat template takes: {error}") from error

    return render


def _plain(messages: list[dict[str, Any]], tools: object) -> str:
    head = f"tools: {json.dumps(tools)}\n" if tools else ""
    return head + "".join(f"{message['role']}: {message.get('content') or ''}\n" for message in messages)


def _text(token: object) -> str:
    """A special token as tokenizer_config.json has it: a text, or an object with a `content`."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else ""


def _raise(message: str) -> None:
    raise ValueError(message)
