"""`kvtier lint`: a file of prompts -> what keeps them from sharing their prefixes, and the rewrite for each cause.

Exit code 0; 1: something found and --strict; 2: the file or the tokenizer cannot be used.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any, Final

from kvtier.errors import InputError
from kvtier.lint.html import to_html
from kvtier.lint.pieces import Cutter
from kvtier.lint.read import BadLine, read
from kvtier.lint.report import Limits, Report, report
from kvtier.lint.text import to_text
from kvtier.lint.tokens import counter
from kvtier.lint.tree import PrefixTree
from kvtier.lint.view import view

_PROGRESS_S: Final = 2.0
_BAD_SHOWN: Final = 5


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add `lint`."""
    parser = subparsers.add_parser(
        "lint",
        help="say why prompts do not share their prefixes, and how to rewrite them",
        description="Build the prefix tree of a file of prompts and say what makes prompts part ways that could share: "
        "times, ids, names, counters, changing order, spaces. Exit code: 0, 1 with findings and --strict, 2 errors.",
    )
    parser.add_argument("file", type=Path, metavar="PROMPTS", help='JSONL, a "prompt" or "messages" per line')
    parser.add_argument(
        "--tokenizer", type=Path, metavar="DIR", help="folder with a tokenizer.json; without it, 4 bytes per token"
    )
    parser.add_argument("--skip-bad", action="store_true", help="leave bad lines out and count them")
    parser.add_argument("--isolate-tenants", action="store_true", help='no sharing between values of "tenant"')
    parser.add_argument("--min-requests", type=_count, default=2, metavar="N", help="that lost tokens, per finding (2)")
    parser.add_argument(
        "--min-tokens", type=_count, default=16, metavar="N", help="lost per request, per finding (16: one block)"
    )
    parser.add_argument(
        "--min-share", type=_share, default=0.0005, metavar="X", help="lost of all tokens, per finding (0.0005)"
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a report to read in a browser as well")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")
    parser.add_argument("--strict", action="store_true", help="exit with 1 when there are findings")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Read, judge and print."""
    result = _lint(args)
    if args.html:
        try:
            args.html.write_text(to_html(result), encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            raise InputError(f"--html {args.html}: cannot be written: {error.strerror or error}") from error
    if args.json:
        print(json.dumps({**result.to_tree(), "tree": view(result.root).to_tree()}, indent=2))
    else:
        print(to_text(result))
    return 1 if result.findings and args.strict else 0


def _lint(args: argparse.Namespace) -> Report:
    counted = counter(args.tokenizer)
    tree = PrefixTree(Cutter(counted), isolate_tenants=args.isolate_tenants)
    skipped = _Skipped(args.file)
    progress = _Progress(args.file, quiet=args.quiet)
    for request in read(args.file, skip=skipped.add if args.skip_bad else None, seen=progress.read):
        tree.add(request)
        progress.show(tree.tally.requests)
    progress.end()
    skipped.end()
    if not tree.tally.requests:
        raise InputError(f'{args.file}: no requests in it; expected JSONL, a "prompt" or "messages" per line')
    return report(
        tree.tally,
        file=str(args.file),
        counted_with=counted.name,
        n_skipped=skipped.number,
        limits=Limits(requests=args.min_requests, tokens=args.min_tokens, share=args.min_share),
    )


class _Skipped:
    """Bad lines: the first ones on stderr, all of them counted."""

    def __init__(self, path: Path) -> None:
        self.number = 0
        self._path = path

    def add(self, bad: BadLine) -> None:
        """One more."""
        self.number += 1
        if self.number <= _BAD_SHOWN:
            print(f"kvtier: {self._path}: line {bad.line} left out: {bad.expected}", file=sys.stderr)

    def end(self) -> None:
        """Say how many were not shown."""
        if self.number > _BAD_SHOWN:
            print(f"kvtier: {self._path}: {self.number - _BAD_SHOWN} more lines left out", file=sys.stderr)


class _Progress:
    """A line on stderr every two seconds; on a terminal it is written over."""

    def __init__(self, path: Path, *, quiet: bool) -> None:
        self._total = path.stat().st_size if path.is_file() else 0
        self._done = 0
        self._quiet = quiet
        self._started = time.monotonic()
        self._next = self._started + _PROGRESS_S
        self._end = "\r" if sys.stderr.isatty() else "\n"
        self._shown = False

    def read(self, n_bytes: int) -> None:
        """One more line."""
        self._done += n_bytes

    def show(self, requests: int) -> None:
        """Print when it is time to."""
        if self._quiet or requests % 256:
            return
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _PROGRESS_S
            share = f"{100 * self._done / self._total:.0f} %" if self._total else f"{self._done:,} bytes"
            rate = requests / (now - self._started)
            print(
                f"kvtier: {share}, {requests:,} requests, {rate:,.0f}/s   ", end=self._end, file=sys.stderr, flush=True
            )
            self._shown = True

    def end(self) -> None:
        """Leave the line."""
        if self._shown and self._end == "\r":
            print(file=sys.stderr)


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 10**9):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number, at least 1")
    return int(text)


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a share between 0 and 1")
    return value
