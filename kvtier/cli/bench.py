"""`kvtier bench`: what this machine, this disk and this build give -> figures beside their peers and ceilings."""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from kvtier.bench.base import Conditions, Result
from kvtier.bench.registry import BENCHES
from kvtier.errors import ConfigError, InputError, KvtierError, StoreError
from kvtier.machine import DiskSpace
from kvtier.units import format_bytes, parse_bytes

ALL = "all"
_SMALLEST_BYTES = 4 << 10
_FULL_BYTES, _QUICK_BYTES = 2 << 30, 64 << 20
_FULL_REPEATS, _QUICK_REPEATS = 7, 2
_SPACE_FACTOR = 4
"""Benchmarks hold their data on disk once for each peer they compare with; room for that must be there."""


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add `bench`."""
    parser = subparsers.add_parser(
        "bench",
        help="measure codec, disk and index on this machine, beside their peers and ceilings",
        description="Measure on this machine. Every figure stands beside a peer or a ceiling measured in the same run: "
        "medians over rounds in which all take turns.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n".join(
            [*(f"  {name:10} {what}" for name, what in BENCHES.items()), f"  {ALL:10} one after the other"]
        ),
    )
    parser.add_argument("bench", choices=(*BENCHES, ALL), metavar="BENCH", help="one of those below")
    parser.add_argument(
        "--dir", type=Path, default=Path(), metavar="DIR", help="on the disk to measure (default: here)"
    )
    parser.add_argument("--quick", action="store_true", help="small and rough: seconds instead of minutes")
    parser.add_argument("--size", type=_size, metavar="SIZE", help="KV to move (default: 2GiB, with --quick 64MiB)")
    parser.add_argument("--chunk", type=_size, default="1MiB", metavar="SIZE", help="of one chunk (default: 1MiB)")
    parser.add_argument("--repeats", type=_count, metavar="N", help="rounds (default: 7, with --quick 2)")
    parser.add_argument("--sample", type=Path, metavar="DIR", help="captured KV (default: .cache/kv-sample if there)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the figures (png, svg, pdf)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure and print; 1 when one of `all` could not be measured."""
    from kvtier.bench import kv, plot, report  # noqa: PLC0415 - numpy, for this command alone

    if args.plot:
        plot.check_available()
    data_bytes = args.size or (_QUICK_BYTES if args.quick else _FULL_BYTES)
    if args.chunk > data_bytes:
        raise ConfigError(f"--chunk {format_bytes(args.chunk)} is more than the {format_bytes(data_bytes)} to move")
    _check_place(args.dir, data_bytes)
    conditions = Conditions(
        folder=args.dir,
        data_bytes=data_bytes,
        chunk_bytes=args.chunk,
        n_repeats=args.repeats or (_QUICK_REPEATS if args.quick else _FULL_REPEATS),
        quick=args.quick,
        sample=args.sample or (kv.DEFAULT_SAMPLE if (kv.DEFAULT_SAMPLE / kv.MANIFEST).exists() else None),
    )
    results: list[Result] = []
    failed = False
    for name in BENCHES if args.bench == ALL else [args.bench]:
        try:
            results += _measure(name, conditions)
        except KvtierError as error:
            if args.bench != ALL:
                raise
            print(f"kvtier: bench {name}: {error}", file=sys.stderr)
            failed = True
    machine = report.machine_facts(args.dir) | {
        "settings": {
            "size_bytes": conditions.data_bytes,
            "chunk_bytes": conditions.chunk_bytes,
            "repeats": conditions.n_repeats,
            "quick": conditions.quick,
        },
        "notes": conditions.notes,
    }
    if args.plot:
        plot.plot(results, f"kvtier bench {args.bench}", args.plot)
    if args.json:
        print(json.dumps(report.to_tree(args.bench, machine, results), indent=2, allow_nan=False))
    else:
        print(report.to_text(machine, results, conditions.notes), end="")
    return 1 if failed else 0


def _measure(name: str, conditions: Conditions) -> Iterator[Result]:
    """Run one benchmark in a folder of its own that is gone afterwards, also when it is interrupted."""
    from kvtier.bench import registry  # noqa: PLC0415 - as above

    progress = _Progress(name)
    folder = Path(tempfile.mkdtemp(prefix=f"kvtier-bench-{name}-", dir=conditions.folder))
    try:
        yield from registry.load(name)(replace(conditions, folder=folder, progress=progress.say))
    except OSError as error:
        raise StoreError(f"{folder}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        progress.end()


class _Progress:
    """What is being done, on stderr: one line that is rewritten on a terminal, a line each where there is none."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._live = sys.stderr.isatty()

    def say(self, what: str) -> None:
        line = f"bench {self._name}: {what}"
        print(
            f"\r\x1b[K{line[:100]}" if self._live else line, end="" if self._live else "\n", file=sys.stderr, flush=True
        )

    def end(self) -> None:
        if self._live:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _check_place(folder: Path, data_bytes: int) -> None:
    if not folder.is_dir():
        raise InputError(f"{folder}: not a directory; --dir names one on the disk to measure")
    space = DiskSpace.at(folder)
    needed = _SPACE_FACTOR * data_bytes
    if not space.writable:
        raise InputError(f"{folder}: cannot be written; --dir names a directory on the disk to measure")
    if space.free_bytes < needed:
        raise ConfigError(
            f"{folder}: {format_bytes(space.free_bytes)} free, up to {format_bytes(needed)} needed; "
            "name another disk with --dir or move less with --size"
        )


def _size(text: str) -> int:
    try:
        n_bytes = parse_bytes(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    if n_bytes < _SMALLEST_BYTES:
        raise argparse.ArgumentTypeError(f"{text!r}: expected at least {format_bytes(_SMALLEST_BYTES)}")
    return n_bytes


def _count(text: str) -> int:
    if not re.fullmatch(r"0*[1-9][0-9]{0,3}", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number, 1 to 9999")
    return int(text)
