"""`kvtier import`: a file of `kvtier export` -> frames in a cache directory. Nothing there is evicted for it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from kvtier import config as configuration
from kvtier.cli.target import add_target, directory_of, guard_of, progress, show
from kvtier.config import Config
from kvtier.errors import ConfigError, InputError
from kvtier.machine import DiskSpace
from kvtier.sizing import disk_bytes


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add `import`."""
    parser = subparsers.add_parser(
        "import",
        help="read a file of `kvtier export` into the disk tier",
        description="Verify each frame of a file of `kvtier export` and put it into a disk tier, as far as there is "
        "room. An engine with the same model and settings finds them. A directory without a cache becomes one, as "
        "large as TARGET's YAML says.",
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="to be read; - is standard input")
    add_target(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Import and print."""
    from kvtier.admin.carry import import_  # noqa: PLC0415 - imports lmdb and the codecs

    store, guard = _store_for(args.target), guard_of(args.target)
    try:
        if str(args.file) == "-":
            done = import_(store, sys.stdin.buffer, guard=guard, progress=progress("frames"))
        else:
            with args.file.open("rb") as source:
                done = import_(store, source, guard=guard, progress=progress("frames"))
    except OSError as error:
        raise InputError(f"{args.file}: cannot be read: {error.strerror}") from error
    show(args, done.to_tree(), done.to_text("brought in"))
    return 0


def _store_for(target: Path | None) -> Path:
    """The directory of the store, which is made if there is none and a configuration says how large."""
    from kvtier.store.lmdb import LmdbStore  # noqa: PLC0415 - imports lmdb
    from kvtier.store.manifest import MANIFEST  # noqa: PLC0415 - as above

    path = directory_of(target)
    if (path / MANIFEST).exists():
        return path
    if target is not None and target.is_dir():
        raise ConfigError(f"{target}: no kvtier cache there yet; name the YAML file instead, which says how large")
    config = configuration.load(target) if target is not None else Config()
    LmdbStore.open(path, disk_bytes(config, DiskSpace.at(path))).close()
    return path
