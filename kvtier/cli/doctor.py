"""`kvtier doctor`: environment, limits, versions, the cache, and whether answers are the same with kvtier."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from kvtier import config as configuration
from kvtier.cli.target import add_target, show
from kvtier.config import Config
from kvtier.errors import InputError
from kvtier.machine import Machine


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add `doctor`."""
    parser = subparsers.add_parser(
        "doctor",
        help="what is wrong with this machine, installation or cache; --model checks answers",
        description="Look at versions, limits, shared memory, the disk and what is in the cache. With --model, answer "
        "prompts with vLLM alone, with kvtier, and from its disk tier after a restart, and compare every token. "
        "Exit code: 0 fine or warnings, 1 warnings with --strict, or an error.",
    )
    add_target(parser)
    parser.add_argument("--model", type=Path, metavar="DIR", help="model folder: run the identity check with it")
    parser.add_argument(
        "--engine-args", default="{}", metavar="JSON", help='for that engine, say {"tensor_parallel_size": 2}'
    )
    parser.add_argument("--strict", action="store_true", help="exit with 1 when there are warnings")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Look and print."""
    from kvtier.admin.doctor import Finding, diagnose  # noqa: PLC0415 - imports lmdb

    config = _config(args.target)
    findings: list[Finding] = []
    for finding in diagnose(config, Machine.here()):
        findings.append(finding)
        if not args.json:
            print(finding.to_text(), flush=True)
    if args.model is not None:
        findings.append(_identity(args))
        if not args.json:
            print(findings[-1].to_text())
    levels = {finding.level for finding in findings}
    summary = "error" if "error" in levels else "warning" if "warning" in levels else "ok"
    text = {"ok": "all is well", "warning": "works; see the warnings", "error": "something is wrong; see the errors"}
    show(args, {"level": summary, "findings": [finding.to_tree() for finding in findings]}, f"\n{text[summary]}")
    return 1 if summary == "error" or (summary == "warning" and args.strict) else 0


def _config(target: Path | None) -> Config:
    if target is None:
        return Config()
    return (
        configuration.parse({"disk": {"path": str(target.absolute())}})
        if target.is_dir()
        else configuration.load(target)
    )


def _identity(args: argparse.Namespace) -> Any:
    from kvtier.admin.doctor import Finding  # noqa: PLC0415 - imports lmdb
    from kvtier.admin.identity import check_identity  # noqa: PLC0415 - as above

    try:
        engine_args = json.loads(args.engine_args)
        if not isinstance(engine_args, dict):
            raise ValueError("not an object")  # noqa: TRY004 - one kind of error for whatever is wrong with it
    except ValueError as error:
        raise InputError(f"--engine-args {args.engine_args!r}: expected a JSON object: {error}") from error
    try:
        found = check_identity(args.model, engine_args, lambda step: print(f"identity: {step}", file=sys.stderr))
    except InputError as error:
        return Finding("identity", "error", str(error))
    hits = f"{found.host_tokens:,} tokens from host RAM, {found.disk_tokens:,} from disk"
    if found.differing:
        return Finding("identity", "error", "; ".join(found.differing), "switch kvtier off and report this")
    if not found.proven:
        return Finding("identity", "warning", f"equal, but {hits}: not all was tried", "prompts found nothing cached")
    return Finding("identity", "ok", f"{found.prompts} prompts equal to the token, computed and cached: {hits}")
