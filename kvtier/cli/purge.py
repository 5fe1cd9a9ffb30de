"""`kvtier purge`: frames deleted for good, by namespace, age, tenant salt, or all of them."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from kvtier.cli.arguments import duration
from kvtier.cli.target import add_target, progress, show, stores_of
from kvtier.errors import InputError


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add `purge`."""
    parser = subparsers.add_parser(
        "purge",
        help="delete from the disk tier for good, by namespace, age, tenant or all",
        description="Delete frames and erase their bytes from the files. Several choices together mean what fits all "
        "of them. Engines may be running: what they hold of it in host RAM goes too. Exit code: 0 done, 1 an engine "
        "did not say in time that it dropped its part, 2 it could not be done.",
    )
    add_target(parser)
    parser.add_argument("--namespace", metavar="NAME", help="name, model or key family as `kvtier inspect` shows them")
    parser.add_argument(
        "--older-than", type=duration, metavar="TIME", help="written longer ago than this, for example 7d"
    )
    parser.add_argument("--salt", metavar="SALT", help="a tenant's: the cache_salt of its requests; - asks for it")
    parser.add_argument("--all", action="store_true", help="everything")
    parser.add_argument("--dry-run", action="store_true", help="say what would go, delete nothing")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Purge and print."""
    from kvtier.admin.purge import Choice, purge  # noqa: PLC0415 - imports lmdb

    narrow = args.namespace is not None or args.older_than is not None or args.salt is not None
    if args.all == narrow:
        raise InputError("purge what? --namespace, --older-than and --salt choose; --all alone means everything")
    choice = Choice(
        namespace=args.namespace,
        salt=_salt(args.salt),
        before_ns=None if args.older_than is None else time.time_ns() - int(args.older_than * 1e9),
    )
    stores: list[Path] = stores_of(args.target)
    done = [purge(store, choice, dry_run=args.dry_run, progress=progress("frames")) for store in stores]
    show(args, {"stores": [one.to_tree() for one in done]}, "\n".join(one.to_text() for one in done))
    return 1 if any(one.late for one in done) else 0


def _salt(given: str | None) -> str | None:
    """`-` keeps the salt out of the shell's history and the process list."""
    if given != "-":
        return given
    if sys.stdin.isatty():
        print("cache_salt: ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().rstrip("\n")
