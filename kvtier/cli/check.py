"""`kvtier check`: a YAML file and this machine -> what the file means here, and what is wrong with it.

Looks only; creates nothing. Exit code 0: fine, or warnings; 1: warnings and --strict; 2: errors.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from kvtier import config as configuration
from kvtier.cli.arguments import count, size
from kvtier.cli.check_report import Report, examine
from kvtier.config import Config
from kvtier.errors import ConfigError
from kvtier.kvshape import KV_DTYPES
from kvtier.sizing import DiskSpace, KvShape, Machine, Unknown


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add `check`."""
    parser = subparsers.add_parser(
        "check",
        help="say what a configuration means on this machine, before an engine runs",
        description="Say what a configuration means on this machine: paths, sizes, tokens per tier, and warnings. "
        "Exit code: 0 fine or warnings, 1 warnings with --strict, 2 errors.",
    )
    parser.add_argument("file", nargs="?", type=Path, metavar="FILE", help="kvtier YAML; without it, the defaults")
    parser.add_argument("--model", type=Path, metavar="DIR", help="model folder with a config.json: bytes per token")
    parser.add_argument(
        "--kv-cache-dtype",
        choices=KV_DTYPES,
        default="auto",
        metavar="DTYPE",
        help=f"as given to the engine: {', '.join(KV_DTYPES)}",
    )
    parser.add_argument("--tensor-parallel-size", type=count, default=1, metavar="N", help="as given to the engine")
    parser.add_argument(
        "--block-size", type=count, default=16, metavar="N", help="the engine's block in tokens (16; vLLM on CPU: 128)"
    )
    parser.add_argument("--device-cache", type=size, metavar="SIZE", help="the engine's KV cache, for example 20GiB")
    parser.add_argument("--strict", action="store_true", help="exit with 1 when there are warnings")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Examine and print."""
    try:
        report = _examine(args)
    except ConfigError as error:
        if args.json:
            print(json.dumps({"file": _name(args), "errors": [str(error)], "warnings": []}, indent=2))
        else:
            print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(report.to_tree(), indent=2) if args.json else report.to_text())
    if report.errors:
        return 2
    return 1 if report.warnings and args.strict else 0


def _examine(args: argparse.Namespace) -> Report:
    config = configuration.load(args.file) if args.file else Config()
    shape: KvShape | Unknown | None = None
    if args.model:
        tensor_parallel = args.tensor_parallel_size
        shape = KvShape.of_model(args.model, kv_dtype=args.kv_cache_dtype, tensor_parallel=tensor_parallel)
    return examine(
        config,
        name=_name(args),
        machine=Machine.here(),
        disk=DiskSpace.at(config.disk.path) if config.disk else None,
        shape=shape,
        block_tokens=args.block_size,
        device_cache_bytes=args.device_cache,
    )


def _name(args: argparse.Namespace) -> str:
    return str(args.file) if args.file else "the defaults"
