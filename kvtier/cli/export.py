"""`kvtier export`: a namespace of a cache directory -> one file that `kvtier import` takes."""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from kvtier.cli.target import add_target, progress, show, stores_of
from kvtier.errors import InputError


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add `export`."""
    parser = subparsers.add_parser(
        "export",
        help="write a namespace of the disk tier to a file",
        description="Write all sound frames of a namespace to a file, for `kvtier import` on another machine that "
        "serves the same model in the same way. Engines may be running.",
    )
    add_target(parser)
    parser.add_argument("--namespace", required=True, metavar="NAME", help="name or model, as `kvtier inspect` has it")
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="FILE", help="to be written; - is stdout")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Export and print. The file is there whole or not at all."""
    from kvtier.admin.carry import export  # noqa: PLC0415 - imports lmdb and the codecs

    store, *others = stores_of(args.target)
    if others:
        raise InputError(f"several stores: {', '.join(map(str, (store, *others)))}; name one of them")
    if str(args.output) == "-":
        done = export(store, args.namespace, sys.stdout.buffer, progress=progress("frames"))
        print(f"kvtier: {done.to_text('wrote')}", file=sys.stderr)
        return 0
    draft = args.output.with_name(args.output.name + ".part")
    try:
        flags = os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(draft, flags, 0o600), "wb") as out:
            done = export(store, args.namespace, out, progress=progress("frames"))
        draft.replace(args.output)
    except OSError as error:
        raise InputError(f"{args.output}: cannot be written: {error.strerror}") from error
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
    done.file = str(args.output)
    show(args, done.to_tree(), done.to_text("wrote"))
    return 0
