"""`kvtier replay`: a trace of requests -> what hit rate each tier size and eviction policy would have given it."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, Final

from kvtier.cli.arguments import count, duration
from kvtier.errors import ConfigError, InputError
from kvtier.kvshape import KV_DTYPES, KvShape
from kvtier.sim.policies import DEFAULT, FORMS, Pair
from kvtier.sim.replay import Result, Rules, Setup, replay
from kvtier.sim.report import Prices, to_csv, to_text, to_tree
from kvtier.sim.source import FORMATS, open_trace
from kvtier.sim.trace import Trace
from kvtier.units import Admit, parse_bytes

_SIZE_FORMS: Final = "blocks (10k, 1.5M), bytes with a unit (64GiB, with --model or --bytes-per-token)"
_BLOCKS: Final = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,6})?)([kKmM]?)", re.ASCII)
_TIMES: Final = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,6})?)x", re.ASCII)
_FACTORS: Final = {"": 1, "k": 1000, "m": 1_000_000}


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add `replay`."""
    parser = subparsers.add_parser(
        "replay",
        help="what hit rate a tier size and a policy would give on recorded traffic",
        description="Replay recorded traffic through kvtier's own cache and policies, without bytes, for every "
        "combination of --host, --disk and --policy, and for what no cache can beat: one that knows the future, and "
        "one that forgets nothing.",
    )
    parser.add_argument("trace", metavar="TRACE", help="JSON lines, *.gz or - for standard input, too")
    parser.add_argument("--format", choices=FORMATS, help="of TRACE; found out when it is not given")
    sizes = f"host RAM: {_SIZE_FORMS}; several with commas"
    parser.add_argument("--host", default="1k,3k,10k,30k,100k", metavar="SIZES", help=sizes)
    parser.add_argument("--disk", default="0", metavar="SIZES", help="the same for disk, or 10x: ten times the host")
    policies = f"eviction: {FORMS}; two with a slash are host's and disk's; several with commas"
    parser.add_argument("--policy", default=f"lru,{DEFAULT}", metavar="NAMES", help=policies.replace("%", "%%"))
    parser.add_argument(
        "--partial-tail",
        choices=("auto", "keep", "skip"),
        default="auto",
        help="whether the last block of a prompt is kept though its tokens do not fill it; engines never do. auto: "
        "kept without a disk, as published single-tier tables have it, not kept with one",
    )
    parser.add_argument("--deployed", action="store_true", help="with the reserves that real, slow transfers need")
    parser.add_argument("--write-behind", type=duration, metavar="TIME", help="write to disk after a rest, say 30s")
    parser.add_argument("--admit", type=_admit, default=1.0, metavar="WHICH", help="as disk.admit in a configuration")
    parser.add_argument("--block-tokens", type=count, metavar="N", help="tokens of one hash id, or of prompts' chunks")
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="model folder, for traces of prompts")
    parser.add_argument("--model", type=Path, metavar="DIR", help="model folder with a config.json: bytes per token")
    parser.add_argument("--kv-cache-dtype", choices=KV_DTYPES, default="auto", metavar="DTYPE", help="with --model")
    parser.add_argument("--tensor-parallel-size", type=count, default=1, metavar="N", help="with --model")
    parser.add_argument("--bytes-per-token", type=count, metavar="N", help="of KV, instead of --model")
    parser.add_argument("--prefill-tokens-per-s", type=_rate, metavar="RATE", help="of one engine: time saved")
    parser.add_argument("--gpus", type=count, default=1, metavar="N", help="of one engine: GPU-hours saved")
    parser.add_argument("--skip-bad", action="store_true", help="leave bad lines out and count them")
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="print one JSON object")
    output.add_argument("--csv", action="store_true", help="print comma-separated values")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw hit rate against capacity (png, svg, pdf)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Replay and print."""
    if args.plot:
        from kvtier.sim import plot  # noqa: PLC0415 only when asked for

        plot.check_available()
    prices = Prices(_bytes_per_token(args), args.prefill_tokens_per_s, args.gpus)
    with open_trace(
        args.trace,
        kind=args.format,
        tokens_per_chunk=args.block_tokens,
        tokenizer=args.tokenizer,
        skip_bad=args.skip_bad,
    ) as trace:
        result = _replay(trace, args, prices)
        for complaint in _complaints(trace):
            print(f"kvtier: {complaint}", file=sys.stderr)
        facts = {"trace": trace.name, "skipped_lines": trace.n_skipped, "odd_lengths": trace.n_odd}
    if args.plot:
        plot.plot(result, trace.name, args.plot)
    if args.json:
        print(json.dumps(to_tree(result, prices, facts), indent=2, allow_nan=False))
    else:
        print(to_csv(result, prices) if args.csv else to_text(result, prices, trace.name), end="")
    return 0


def _replay(trace: Trace, args: argparse.Namespace, prices: Prices) -> Result:
    requests = iter(trace)
    first = next(requests, None)  # a recording tells its block size with it
    if first is None:
        raise InputError(f"{trace.name}: no requests in it ({trace.n_skipped} bad lines)")
    block_bytes = prices.bytes_per_token * trace.tokens_per_chunk if prices.bytes_per_token else None
    setups = list(_setups(args, block_bytes))
    two_tiers = any(setup.n_disk for setup in setups)
    if args.partial_tail == "auto" and two_tiers and not all(setup.n_disk for setup in setups):
        raise ConfigError("--disk mixes 0 with sizes: say --partial-tail skip or keep, for `auto` differs for them")
    rules = Rules(
        keep_partial=args.partial_tail == "keep" or (args.partial_tail == "auto" and not two_tiers),
        deployed=args.deployed,
        write_behind_after_s=args.write_behind,
        admit_share=args.admit,
        production_cache=args.deployed,
    )
    return replay(chain((first,), requests), trace.tokens_per_chunk, setups, rules, progress=_progress())


def _setups(args: argparse.Namespace, block_bytes: int | None) -> Iterator[Setup]:
    pairs = [Pair.parse(name.strip()) for name in args.policy.split(",")]
    for host in args.host.split(","):
        n_host = _blocks(host.strip(), "--host", block_bytes)
        if n_host < 1:
            raise ConfigError(f"--host {host}: less than one block")
        for disk in args.disk.split(","):
            times = _TIMES.fullmatch(disk.strip())
            n_disk = int(n_host * float(times[1])) if times else _blocks(disk.strip(), "--disk", block_bytes)
            for pair in pairs:
                yield Setup(n_host, n_disk, pair)


def _blocks(text: str, option: str, block_bytes: int | None) -> int:
    match = _BLOCKS.fullmatch(text)
    if match is not None:
        return round(float(match[1]) * _FACTORS[match[2].lower()])
    forms = f"{_SIZE_FORMS}, or 10x" if option == "--disk" else _SIZE_FORMS
    try:
        n_bytes = parse_bytes(text, forms=forms)
    except ConfigError as error:
        raise ConfigError(f"{option}: {error}") from error
    if block_bytes is None:
        raise ConfigError(f"{option} {text}: bytes need --model DIR or --bytes-per-token N, to become blocks")
    return n_bytes // block_bytes


def _bytes_per_token(args: argparse.Namespace) -> int | None:
    if args.bytes_per_token is not None:
        return int(args.bytes_per_token)
    if args.model is None:
        return None
    shape = KvShape.of_model(args.model, kv_dtype=args.kv_cache_dtype, tensor_parallel=args.tensor_parallel_size)
    if not isinstance(shape, KvShape):
        raise ConfigError(f"{args.model}: bytes per token unknown: {shape.reason}; say them with --bytes-per-token")
    return shape.bytes_per_token


def _complaints(trace: Trace) -> Iterator[str]:
    if trace.n_skipped:
        yield f"{trace.n_skipped} bad lines left out, the first: {trace.first_skipped[0]}"
    if trace.n_odd:
        yield (
            f"{trace.name}: the length of {trace.n_odd} requests does not fit their blocks of "
            f"{trace.tokens_per_chunk} tokens; --block-tokens says how large they are"
        )


def _progress() -> Callable[[int], None]:
    if not sys.stderr.isatty():
        return lambda _: None
    return lambda n: print(f"\r{n:,} requests", end="\r", file=sys.stderr, flush=True)


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 0 < rate < 1e12:
        raise argparse.ArgumentTypeError(f"{text!r}: expected tokens per second, more than 0")
    return rate


def _admit(text: str) -> float:
    try:
        return Admit(text).share
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
