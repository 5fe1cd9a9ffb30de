"""What the commands that look after a cache have in common: TARGET -> stores, a progress line, output."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvtier import config as configuration
from kvtier.admin.directory import find_stores
from kvtier.config import Config
from kvtier.errors import ConfigError

if TYPE_CHECKING:
    from kvtier.codec.guard import Guard


def add_target(parser: argparse.ArgumentParser) -> None:
    """The positional argument TARGET and --json."""
    parser.add_argument(
        "target",
        nargs="?",
        type=Path,
        metavar="TARGET",
        help="a cache directory, or a kvtier YAML that names one; without it, the default directory",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def directory_of(target: Path | None) -> Path:
    """The cache directory that TARGET means. ConfigError when the disk tier is off in its YAML."""
    if target is not None and target.is_dir():
        return target
    config = configuration.load(target) if target is not None else Config()
    if config.disk is None:
        raise ConfigError(f"{target}: `disk` is off; there is no cache directory")
    return config.disk.path


def stores_of(target: Path | None) -> list[Path]:
    """The stores that TARGET means, at least one."""
    return find_stores(directory_of(target))


def guard_of(target: Path | None) -> Guard:
    """The guard of the frames, where TARGET is a YAML that names a key. ConfigError when it cannot be used."""
    from kvtier.codec.guards import guard_for  # noqa: PLC0415 - imports the codecs

    return guard_for(configuration.load(target) if target is not None and not target.is_dir() else Config())


def progress(what: str) -> Callable[[int, int], None]:
    """Prints `done of all what` over itself, at most ten times a second; silent unless stderr is a terminal.

    All is 0 where it is not known.
    """
    told_s = 0.0

    def tell(done: int, total: int) -> None:
        nonlocal told_s
        now = time.monotonic()
        if sys.stderr.isatty() and (now - told_s > 0.1 or done == total):
            told_s = now
            end = "\n" if done == total else "\r"
            print(f"\r{done:,}{f' of {total:,}' * bool(total)} {what}", end=end, file=sys.stderr, flush=True)

    return tell


def show(args: argparse.Namespace, tree: dict[str, Any], text: str) -> None:
    """One JSON object with --json, text without."""
    print(json.dumps(tree, indent=2, allow_nan=False) if args.json else text)
