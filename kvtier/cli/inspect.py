"""`kvtier inspect`: what is in a cache directory. Looks only; engines may be using it."""

from __future__ import annotations

import argparse
from typing import Any

from kvtier.cli.target import add_target, show, stores_of


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add `inspect`."""
    parser = subparsers.add_parser(
        "inspect",
        help="what is in the disk tier: namespaces, bytes, ratio, ages, hits",
        description="Show what is in a disk tier: namespaces with their model, frames, bytes, compression ratio, ages "
        "and hits. Looks only; engines may be running.",
    )
    add_target(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Look and print."""
    from kvtier.admin.inspect import examine, now_ns  # noqa: PLC0415 - imports lmdb

    found = [examine(store) for store in stores_of(args.target)]
    now = now_ns()
    show(args, {"stores": [one.to_tree() for one in found]}, "\n\n".join(one.to_text(now) for one in found))
    return 0
