"""`kvtier verify`: every frame of a disk tier checked. Exit code 0: nothing bad is left; 1: something is; 2: error."""

from __future__ import annotations

import argparse
from typing import Any

from kvtier.cli.target import add_target, guard_of, progress, show, stores_of


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add `verify`."""
    parser = subparsers.add_parser(
        "verify",
        help="check every frame of the disk tier",
        description="Read, check and decode every frame, as an engine would. Engines may be running. "
        "Exit code: 0 nothing bad is left, 1 something is, 2 it could not be done.",
    )
    add_target(parser)
    parser.add_argument("--fix", action="store_true", help="delete the frames that do not verify")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Verify and print."""
    from kvtier.admin.verify import verify  # noqa: PLC0415 - imports lmdb and the codecs

    guard = guard_of(args.target)
    found = [verify(store, fix=args.fix, guard=guard, progress=progress("frames")) for store in stores_of(args.target)]
    sound = all(one.sound for one in found)
    tree = {"sound": sound, "stores": [one.to_tree() for one in found]}
    show(args, tree, "\n".join(one.to_text() for one in found))
    return 0 if sound else 1
