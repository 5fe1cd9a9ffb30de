"""Trace: requests as a simulator sees them, one by one, and how a line of a file becomes one or is refused."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from kvtier.errors import InputError
from kvtier.types import NAMESPACE_BYTES, ChunkKey

NAMESPACE = bytes(NAMESPACE_BYTES)
"""A trace is the traffic of one model, so all its keys share one namespace."""

MAX_SHOWN_CHARS = 60


class Request(NamedTuple):
    """One prompt: when it came, how long it is, and the chunks it is made of, head first."""

    time_s: float  # any origin; only differences count
    n_tokens: int
    n_output_tokens: int
    keys: list[ChunkKey]  # the last may be a partial one
    n_whole: int  # keys of chunks that the prompt fills, which is what an engine offers for keeping


class BadLineError(Exception):
    """A line is not what its format says; the message tells what was expected. Never leaves `kvtier.sim`."""


class Parser(Protocol):
    """Turns lines of one format into requests. Holds what spans lines; memory is bounded by distinct chunks."""

    @property
    def tokens_per_chunk(self) -> int:
        """Tokens of a whole chunk, >= 1."""
        ...

    def parse(self, line: bytes) -> Request | None:
        """The request of a line, None for a line that is no request. Raises BadLineError."""
        ...


@dataclass(slots=True)
class Trace:
    """Requests of a text source, streamed. `n_skipped` lines were bad and left out, `n_odd` had an odd length."""

    name: str
    lines: Iterable[bytes]
    parser: Parser
    skip_bad: bool
    n_skipped: int = 0
    n_odd: int = 0  # input_length and the number of chunks do not belong together
    first_skipped: list[str] = field(default_factory=list)  # the first three complaints

    @property
    def tokens_per_chunk(self) -> int:
        """Tokens of a whole chunk."""
        return self.parser.tokens_per_chunk

    def __iter__(self) -> Iterator[Request]:
        """Yield the requests in file order. Raises InputError at the first bad line unless they are to be skipped."""
        for number, line in enumerate(self.lines, 1):
            if not line or line.isspace():
                continue
            try:
                request = self.parser.parse(line)
            except BadLineError as error:
                complaint = f"{self.name}, line {number}: {error}"
                if not self.skip_bad:
                    raise InputError(f"{complaint} (--skip-bad leaves such lines out and counts them)") from error
                self.n_skipped += 1
                if len(self.first_skipped) < 3:
                    self.first_skipped.append(complaint)
                continue
            if request is not None:
                self.n_odd += len(request.keys) - request.n_whole > 1
                self.n_odd += request.n_tokens > (len(request.keys) + 1) * self.parser.tokens_per_chunk
                yield request


class Keys(dict[object, ChunkKey]):
    """Chunk ids of a file -> keys, made once per distinct id."""

    def __missing__(self, chunk_id: object) -> ChunkKey:
        """Make the key of an id seen for the first time. Raises BadLineError."""
        if isinstance(chunk_id, bool) or not isinstance(chunk_id, int | str):
            raise BadLineError(f"expected whole numbers or strings as chunk ids, got {shown(chunk_id)}")
        key = self[chunk_id] = ChunkKey(NAMESPACE + str(chunk_id).encode())
        return key


def shown(value: object) -> str:
    """A value as it appears in a message, cut to a readable length."""
    text = repr(value)
    return text if len(text) <= MAX_SHOWN_CHARS else text[: MAX_SHOWN_CHARS - 3] + "..."
