"""Trace formats with hashed content, JSON lines -> Request: Mooncake's, Qwen-Bailian's and kvtier's own recording."""

from __future__ import annotations

import json
from typing import Any, Final

from kvtier.sim.trace import BadLineError, Keys, Request, shown

RECORD_VERSION: Final = 1
CHUNK_DIGITS: Final = 16  # hexadecimal digits of a salted chunk hash in a recording


class HashedLines:
    """Mooncake's and Qwen-Bailian's lines: `timestamp`, `input_length`, `output_length`, `hash_ids` of equal size.

    A Mooncake timestamp is in milliseconds and a hash id stands for 512 tokens; in Qwen-Bailian's traces it is
    seconds and 16 tokens. Other fields (`type`, `turn`, `chat_id`, `parent_chat_id`) are not needed.
    """

    def __init__(self, tokens_per_chunk: int, seconds_per_tick: float) -> None:
        """Read hash ids of `tokens_per_chunk` tokens each and timestamps in ticks."""
        self._tokens_per_chunk = tokens_per_chunk
        self._seconds_per_tick = seconds_per_tick
        self._keys = Keys()

    @property
    def tokens_per_chunk(self) -> int:
        """Tokens of one hash id."""
        return self._tokens_per_chunk

    def parse(self, line: bytes) -> Request:
        """The request of a line. Raises BadLineError."""
        record = json_object(line)
        ids = record.get("hash_ids")
        if not isinstance(ids, list):
            raise BadLineError(f"expected `hash_ids`, a list of chunk ids, got {shown(ids)}")
        n_tokens = count_of(record, "input_length")
        return Request(
            seconds_of(record, "timestamp") * self._seconds_per_tick,
            n_tokens,
            count_of(record, "output_length", default=0),
            keys_of(self._keys, ids),
            min(len(ids), n_tokens // self._tokens_per_chunk),
        )


class Recording:
    """kvtier's own traces: a header line, then one line per request. docs/replay.md defines every field."""

    def __init__(self) -> None:
        self._tokens_per_chunk = 1
        self._keys = Keys()
        self._headed = False

    @property
    def tokens_per_chunk(self) -> int:
        """Tokens of a chunk, as the header says. Known once the first request was parsed."""
        return self._tokens_per_chunk

    def parse(self, line: bytes) -> Request | None:
        """The request of a line, None for the header. Raises BadLineError."""
        record = json_object(line)
        if "kvtier_trace" in record:
            self._read_header(record)
            return None
        if not self._headed:
            raise BadLineError('expected the header {"kvtier_trace": 1, "tokens_per_chunk": ...} before any request')
        digits = record.get("chunks")
        if not isinstance(digits, str) or len(digits) % CHUNK_DIGITS:
            raise BadLineError(f"expected `chunks`, {CHUNK_DIGITS} hexadecimal digits per chunk, got {shown(digits)}")
        ids = [digits[i : i + CHUNK_DIGITS] for i in range(0, len(digits), CHUNK_DIGITS)]
        n_tokens = count_of(record, "in")
        whole = min(len(ids), n_tokens // self._tokens_per_chunk)
        output = count_of(record, "out", default=0)
        return Request(seconds_of(record, "t"), n_tokens, output, keys_of(self._keys, ids), whole)

    def _read_header(self, record: dict[str, Any]) -> None:
        if record["kvtier_trace"] != RECORD_VERSION:
            raise BadLineError(
                f"expected a trace of version {RECORD_VERSION}, got {shown(record['kvtier_trace'])}: "
                "read it with the kvtier that wrote it, or a later one"
            )
        tokens = count_of(record, "tokens_per_chunk")
        if tokens < 1 or (self._headed and tokens != self._tokens_per_chunk):
            same = f", {self._tokens_per_chunk} as before" if self._headed else ", at least 1"
            raise BadLineError(f"expected `tokens_per_chunk`{same}, got {tokens}")
        self._tokens_per_chunk = tokens
        self._headed = True


def json_object(line: bytes) -> dict[str, Any]:
    """The JSON object a line is. Raises BadLineError."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadLineError(f"expected one JSON object per line: {error}") from error
    if not isinstance(record, dict):
        raise BadLineError(f"expected one JSON object per line, got {shown(record)}")
    return record


def count_of(record: dict[str, Any], field: str, *, default: int | None = None) -> int:
    """A whole number that is not negative. Raises BadLineError."""
    value = record.get(field, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise BadLineError(f"expected `{field}`, a whole number of at least 0, got {shown(value)}")
    return value


def seconds_of(record: dict[str, Any], field: str) -> float:
    """A time stamp; 0 where there is none. Raises BadLineError."""
    value = record.get(field, 0)
    if isinstance(value, bool) or not isinstance(value, int | float) or not -1e15 < value < 1e15:
        raise BadLineError(f"expected `{field}`, a number, got {shown(value)}")
    return float(value)


def keys_of(keys: Keys, ids: list[Any]) -> list[Any]:
    """Keys of chunk ids. Raises BadLineError."""
    try:
        return [keys[chunk_id] for chunk_id in ids]
    except TypeError as error:  # not hashable
        raise BadLineError(f"expected whole numbers or strings as chunk ids: {error}") from error
