"""The `kvtier` command: argv -> one subcommand -> exit code. A subcommand is a module in COMMANDS."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import Any, Final, Protocol

from kvtier.cli import bench, check, doctor, export, import_, inspect, lint, plan, purge, replay, verify
from kvtier.errors import KvtierError


class Command(Protocol):
    """What a subcommand's module has. It imports anything slow inside `run`: `kvtier --help` imports all of them."""

    def add_parser(self, subparsers: argparse._SubParsersAction[Any]) -> None:
        """Add the subcommand's parser, with `run` as its default `run`."""
        ...

    def run(self, args: argparse.Namespace) -> int:
        """Do it and return the exit code. A KvtierError becomes one line on stderr and exit code 2."""
        ...


COMMANDS: Final[tuple[Command, ...]] = (
    bench,
    check,
    doctor,
    export,
    import_,
    inspect,
    lint,
    plan,
    purge,
    replay,
    verify,
)


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(prog="kvtier", description="Prefix-cache tier for LLM servers.")
    parser.add_argument("--version", action="version", version=f"kvtier {_version()}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the console script; returns the exit code. A wrong command line exits with 2 from argparse."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a path may be no text at all
    args = build_parser().parse_args(argv)
    try:
        code = int(args.run(args))
        sys.stdout.flush()
    except KvtierError as error:
        print(f"kvtier: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader left (`kvtier ... | head`); keep the interpreter from complaining when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return code


def _version() -> str:
    try:
        return metadata.version("kvtier")
    except metadata.PackageNotFoundError:
        return "(not installed)"


if __name__ == "__main__":
    sys.exit(main())
