"""Turns of a request -> pieces: the runs of text that are shared or not as a whole, each with its two identities.

The exact identity is the text as sent; the settled one is what every request could have sent: values that change are
left out, spaces are single, JSON keys, tools and documents are sorted.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from kvtier.lint.blocks import Block, blocks
from kvtier.lint.causes import Cause, Site
from kvtier.lint.read import Turn
from kvtier.lint.tokens import TokenCounter
from kvtier.lint.volatile import masked, spans

ROLE_TOKENS: Final = 4  # of a message's frame in common chat templates
_FINE: Final = 128  # characters of a piece near the head of a line
_COARSE: Final = 512
_FINE_UNTIL: Final = 1024
_MAX_CACHED: Final = 32_000_000  # characters, of lines and of turns each
_SAID: Final = frozenset({"user", "assistant", "tool"})
_FINE_TOKENS: Final = 1024  # at the head of a turn that is cut line by line
_FINE_TOKENS_SAID: Final = 256
_JOINED_SHARE: Final = 16  # behind it a piece is about this part of what lies before it
_LABEL: Final = 40
_TYPOGRAPHY: Final = str.maketrans("\u2018\u2019\u201c\u201d\u2013\u2014", "''\"\"--", "\u200b\ufeff\u2060")


class Kind(enum.IntEnum):
    """What can differ between two pieces with the same settled identity."""

    PLAIN = 0  # nothing
    SPACED = 1  # spaces and line ends
    VOLATILE = 2  # the value
    BLOCK = 3  # order


@dataclass(frozen=True, slots=True)
class Piece:
    """One run of text. Identities are 64-bit hashes of this process."""

    exact: int
    settled: int
    tokens: int
    kind: Kind
    site: Site  # who is to blame when it differs
    forms: tuple[tuple[Site, int], ...]  # of a BLOCK: who is to blame when this form is known and the one before is not
    text: str  # for people, shortened


class Cutter:
    """Cuts turns into pieces, with bounded caches: most lines of most prompts are old ones. Not thread-safe."""

    def __init__(self, counter: TokenCounter) -> None:
        self._count = counter.count
        self._lines: dict[tuple[str, int, str, bool], tuple[Piece, ...]] = {}
        self._n_lines = self._n_turns = 0  # characters in them
        self._turns: dict[tuple[Turn, bool], tuple[Piece, ...]] = {}

    def cut(self, turn: Turn, *, fixed: bool) -> tuple[Piece, ...]:
        """The pieces of a turn. `fixed`: it is what somebody said, so only its spaces can be other than they are."""
        key = (turn, fixed)
        known = self._turns.get(key)
        if known is None:
            self._n_turns += len(turn.text) + 100
            if self._n_turns > _MAX_CACHED:
                self._turns.clear()
                self._n_turns = len(turn.text)
            known = self._turns[key] = tuple(self._cut(turn, fixed))
        return known

    def _cut(self, turn: Turn, fixed: bool) -> list[Piece]:
        role = turn.role
        pieces = []
        if role != "prompt" or turn.lead:
            tokens = self._count(turn.lead) if turn.lead else ROLE_TOKENS
            spaced = Site(Cause.WHITESPACE, "", role)
            settled = hash(role) if role != "prompt" else 0
            exact = hash((settled, turn.lead)) if turn.lead else settled
            kind = Kind.SPACED if turn.lead else Kind.PLAIN
            pieces.append(Piece(exact, settled, tokens, kind, spaced, (), f"[{role}]"))
        at, text = 0, turn.text
        for block in () if fixed else blocks(text):
            pieces += self._cut_text(text[at : block.start], role, fixed)
            pieces += self._cut_block(block, text, role)
            at = block.end
        pieces += self._cut_text(text[at:], role, fixed)
        return list(_joined(pieces, _FINE_TOKENS_SAID if role in _SAID else _FINE_TOKENS))

    def _cut_text(self, text: str, role: str, fixed: bool) -> list[Piece]:
        pieces: list[Piece] = []
        if not text:
            return pieces
        blank = 0
        for line in text.split("\n"):
            if line and not line.isspace():
                pieces += self._cut_line(line, blank, role, fixed)
                blank = 0
            else:
                blank += 1 + len(line)
        if blank:  # the end of the text, of which the settled form has nothing
            site = Site(Cause.WHITESPACE, "", role)
            pieces.append(Piece(hash(blank), 0, min(blank - 1, 1), Kind.SPACED, site, (), ""))
        return pieces

    def _cut_line(self, line: str, blank: int, role: str, fixed: bool) -> tuple[Piece, ...]:
        key = (line, blank, role, fixed)
        known = self._lines.get(key)
        if known is None:
            self._n_lines += len(line) + 100
            if self._n_lines > _MAX_CACHED:
                self._lines.clear()
                self._n_lines = len(line)
            known = self._lines[key] = tuple(self._new_line(line, blank, role, fixed))
        return known

    def _new_line(self, line: str, blank: int, role: str, fixed: bool) -> list[Piece]:
        pieces: list[Piece] = []
        at = 0
        for span in () if fixed else spans(line):
            pieces += self._static(line[at : span.start], blank if at == 0 else 0, role, head=at == 0)
            value = line[span.start : span.end]
            site = Site(span.cause, _label(line[: span.start]), role)
            mark = hash(("value", span.cause))
            pieces.append(Piece(hash(value), mark, self._count(value), Kind.VOLATILE, site, (), f"<{span.cause}>"))
            at = span.end
        return pieces + self._static(line[at:] + "\n", blank if at == 0 else 0, role, head=at == 0)

    def _static(self, text: str, blank: int, role: str, *, head: bool) -> list[Piece]:
        clean = text.translate(_TYPOGRAPHY)
        site = Site(Cause.WHITESPACE, "", role)
        if not clean or clean.isspace():
            if not blank and text in {"", "\n"}:
                return []
            return [Piece(hash((text, blank)), 0, min(blank, 1), Kind.SPACED, site, (), "")]
        pieces: list[Piece] = []
        parts = _parts(clean)
        for at, written in enumerate(parts):
            settled = " ".join(written.split())
            identity = exact = hash(settled)
            usual = written.removesuffix("\n") if at == len(parts) - 1 else written.removesuffix(" ")
            if not at and not head:
                usual = usual.removeprefix(" ")
            if clean != text:
                exact = hash((text, at))
            elif (blank and not at) or usual != settled:
                exact = hash((written, blank, at))
            kind = Kind.PLAIN if exact == identity else Kind.SPACED
            pieces.append(Piece(exact, identity, self._count(settled), kind, site, (), settled[:100]))
        return pieces

    def _cut_block(self, block: Block, text: str, role: str) -> list[Piece]:
        label = _label(text[: block.start].rsplit("\n", 1)[-1])
        forms = [hash((i, masked(form)[0])) for i, form in enumerate(block.forms)]
        values = masked(block.forms[0])[1]
        sites = [Site(cause, label if cause is Cause.JSON_KEY_ORDER else "", role) for cause in block.causes]
        shown = " ".join(block.forms[-1].split())[:100]
        blamed = tuple(zip(sites, forms[1:], strict=True))
        tokens = self._count(block.forms[0])
        pieces = [Piece(forms[0], forms[-1], tokens, Kind.BLOCK, sites[-1], blamed, shown)]
        lines = masked_labels(block.forms[0])
        for (span, value), before in zip(values, lines, strict=True):
            site = Site(span.cause, before, role)
            mark = hash(("value", span.cause))
            pieces.append(Piece(hash(value), mark, 0, Kind.VOLATILE, site, (), f"<{span.cause}>"))
        return pieces


def _joined(pieces: list[Piece], n_fine: int) -> Iterator[Piece]:
    """Join text deep in a turn to larger pieces: there a piece is small against what lies before it."""
    run: list[Piece] = []
    n_run = n_before = 0
    for piece in pieces:
        size = 0 if n_before < n_fine else n_before // _JOINED_SHARE
        n_before += piece.tokens
        text = piece.kind <= Kind.SPACED
        if run and not (text and n_run < size):
            yield _whole(run)
            run, n_run = [], 0
        if text and size:
            run.append(piece)
            n_run += piece.tokens
        else:
            yield piece
    if run:
        yield _whole(run)


def _whole(run: list[Piece]) -> Piece:
    if len(run) == 1:
        return run[0]
    settled = tuple(piece.settled for piece in run if piece.settled)
    return Piece(
        exact=hash(tuple(piece.exact for piece in run)),
        settled=hash(settled) if settled else 0,
        tokens=sum(piece.tokens for piece in run),
        kind=max(piece.kind for piece in run),
        site=run[0].site,
        forms=(),
        text=run[0].text,
    )


def masked_labels(text: str) -> list[str]:
    """The label of each value that `masked(text)` takes out, in the same order."""
    return [_label(line[: span.start]) for line in text.split("\n") for span in spans(line)]


_UNIT: Final = re.compile(r"\s*\S{1,64}\s*")  # a word, or a part of text without spaces


def _parts(text: str) -> list[str]:
    """`text` in parts whose ends do not depend on how many spaces are in it."""
    if len(text) <= _FINE:
        return [text]
    parts, start, n_part, n_all = [], 0, 0, 0
    for unit in _UNIT.finditer(text):
        n_unit = len(unit.group().strip()) + 1
        if n_part + n_unit > (_FINE if n_all < _FINE_UNTIL else _COARSE) and n_part:
            parts.append(text[start : unit.start()])
            start, n_part = unit.start(), 0
        n_part += n_unit
        n_all += n_unit
    return [*parts, text[start:]]


_WORD_START: Final = re.compile(r"\s")


def _label(before: str) -> str:
    """The end of the text before a value, without values of its own: what a person would call the place."""
    clean = before
    for span in reversed(spans(before)):
        clean = f"{clean[: span.start]}...{clean[span.end :]}"
    clean = " ".join(clean.split()).rstrip("\"'<([{#")
    if len(clean) > _LABEL:
        clean = clean[-_LABEL:]
        cut = _WORD_START.search(clean)
        clean = clean[cut.end() :] if cut else clean
    return clean.rstrip()
