"""Opening a trace: a path -> the Trace in it, its format found out from the first line that says it."""

from __future__ import annotations

import gzip
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Final

from kvtier.errors import InputError
from kvtier.sim.formats import HashedLines, Recording, json_object
from kvtier.sim.prompts import Prompts
from kvtier.sim.trace import BadLineError, Parser, Trace

FORMATS: Final = ("mooncake", "qwen", "kvtier", "prompts")
PROMPT_TOKENS_PER_CHUNK: Final = 16
_LINES_LOOKED_AT: Final = 1000


@contextmanager
def open_trace(
    path: str,
    *,
    kind: str | None = None,
    tokens_per_chunk: int | None = None,
    tokenizer: Path | None = None,
    skip_bad: bool = False,
) -> Iterator[Trace]:
    """The trace in a file, a gzipped file (*.gz), or `-` for standard input.

    `kind` is one of FORMATS, or None to find out. `tokens_per_chunk` replaces what the format says. Raises InputError.
    """
    name = "standard input" if path == "-" else path
    parser_of = partial(_parser, tokens_per_chunk=tokens_per_chunk, tokenizer=tokenizer)
    if path == "-":
        yield _trace(name, sys.stdin.buffer, kind, parser_of, skip_bad)
        return
    try:
        file = gzip.open(path) if path.endswith(".gz") else Path(path).open("rb")  # noqa: SIM115 closed by `with file`
    except OSError as error:
        raise InputError(f"{name}: cannot be read: {error.strerror or error}") from error
    with file:
        yield _trace(name, file, kind, parser_of, skip_bad)


def _trace(
    name: str,
    lines: Iterable[bytes],
    kind: str | None,
    parser_of: Callable[[str], Parser],
    skip_bad: bool,
) -> Trace:
    iterator = _readable(name, lines)
    if kind is None:
        looked_at: list[bytes] = []
        kind = _find_kind(name, iterator, looked_at, skip_bad)
        return Trace(name, chain(looked_at, iterator), parser_of(kind), skip_bad)
    return Trace(name, iterator, parser_of(kind), skip_bad)


def _readable(name: str, lines: Iterable[bytes]) -> Iterator[bytes]:
    try:
        yield from lines
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{name}: cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _parser(kind: str, tokens_per_chunk: int | None, tokenizer: Path | None) -> Parser:
    if kind == "mooncake":
        return HashedLines(tokens_per_chunk or 512, seconds_per_tick=0.001)
    if kind == "qwen":
        return HashedLines(tokens_per_chunk or 16, seconds_per_tick=1.0)
    if kind == "kvtier":
        if tokens_per_chunk is not None:
            raise InputError("a recorded trace says itself how many tokens a chunk has: leave out --block-tokens")
        return Recording()
    if tokenizer is None:
        raise InputError("prompts need the model's tokenizer: --tokenizer DIR, a folder with a tokenizer.json")
    return Prompts(tokenizer, tokens_per_chunk or PROMPT_TOKENS_PER_CHUNK)


def _find_kind(name: str, lines: Iterator[bytes], looked_at: list[bytes], skip_bad: bool) -> str:
    for line in lines:
        looked_at.append(line)
        if not line.strip():
            continue
        try:
            record = json_object(line)
        except BadLineError as error:
            if not skip_bad:
                raise InputError(f"{name}, line {len(looked_at)}: {error}") from error
            record = {}
        if "kvtier_trace" in record:
            return "kvtier"
        if "hash_ids" in record:
            return "qwen" if "chat_id" in record else "mooncake"
        if "prompt" in record or "messages" in record:
            return "prompts"
        if not skip_bad or len(looked_at) >= _LINES_LOOKED_AT:
            break
    if not any(line.strip() for line in looked_at):
        raise InputError(f"{name}: empty: expected one JSON object per line")
    raise InputError(
        f"{name}, line {len(looked_at)}: expected a trace: `hash_ids` (Mooncake, Qwen-Bailian), the header "
        "`kvtier_trace`, or `prompt` or `messages`; --format says which it is"
    )
