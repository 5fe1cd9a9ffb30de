"""`kvtier plan`: a model, a workload and hardware -> what to buy and set, or not to buy, and a kvtier.yaml to match.

Exit code 0: at least one tier pays; 1: none does; 2: the options do not make a plan.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from pathlib import Path
from typing import Any

from kvtier.cli.arguments import size
from kvtier.errors import ConfigError, KvtierError
from kvtier.kvshape import KV_DTYPES

_GPUS = ("h100", "h200", "a100-80", "l40s", "l4", "rtx4090")
_FORMATS = ("mooncake", "qwen", "kvtier", "prompts")
_PLAIN = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,9})?)", re.ASCII)
_PERCENT = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,9})?)%", re.ASCII)
_WHOLE = re.compile(r"([0-9]{1,12})", re.ASCII)
_PARAMETERS = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,9})?)[BM]", re.ASCII)


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add `plan`."""
    parser = subparsers.add_parser(
        "plan",
        help="say which tiers pay for a model, a workload and hardware, and how large they should be",
        description="Say which tiers pay for a model, a workload and hardware, how large they should be, what they "
        "bring, and write a kvtier.yaml. Exit code: 0 a tier pays, 1 none does, 2 errors.",
    )
    model = parser.add_argument_group("model")
    model.add_argument("--model", type=Path, metavar="DIR", required=True, help="model folder with a config.json")
    model.add_argument("--kv-cache-dtype", choices=KV_DTYPES, default="auto", metavar="DTYPE", help="as for the engine")
    model.add_argument("--tensor-parallel-size", type=_count, default=1, metavar="N", help="as for the engine")
    model.add_argument("--active-parameters", type=_parameters, metavar="N", help="of one token, for example 3.3B")
    _add_workload(parser.add_argument_group("workload: a trace, or a description"))
    _add_hardware(parser.add_argument_group("hardware of one engine"))
    _add_prices(parser.add_argument_group("prices, in any currency"))
    output = parser.add_argument_group("output")
    output.add_argument("--write", type=Path, metavar="FILE", help="write the plan as a kvtier.yaml; not over a file")
    output.add_argument("--path", type=Path, default=Path("/mnt/nvme/kvtier"), metavar="DIR", help="its `disk.path`")
    output.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Plan, print, write."""
    try:
        return _run(args)
    except KvtierError as error:
        if not args.json:
            raise
        print(json.dumps({"errors": [str(error)]}, indent=2))
        return 2


def _run(args: argparse.Namespace) -> int:
    # Slow to import, and every other subcommand would pay for it.
    from kvtier.cli.plan_inputs import gather, proof_of, shown  # noqa: PLC0415
    from kvtier.planning.choose import Prices, choose  # noqa: PLC0415
    from kvtier.planning.recommend import to_yaml  # noqa: PLC0415
    from kvtier.planning.report import Report  # noqa: PLC0415

    if args.write and args.write.exists():
        raise ConfigError(f"--write {args.write}: it exists already: name another file, or remove it")
    prices = Prices(
        gpu_hour=None if args.gpu_hour is None else args.gpu_hour * args.tensor_parallel_size,
        ram_gib=args.ram_price,
        disk_tb=args.disk_price,
        years=args.years,
        hours_per_day=args.hours_per_day,
    )
    try:
        inputs = gather(args)
        choice = choose(inputs.engine, inputs.demand, prices, args.tbw)
        proof = proof_of(args, inputs, choice)
    finally:
        shown()
    report = Report(
        model=args.model.absolute().name,
        engine=inputs.engine,
        demand=inputs.demand,
        prices=prices,
        tbw_bytes=args.tbw,
        choice=choice,
        mean_prompt=inputs.mean_prompt,
        sources=inputs.sources,
        proof=proof,
    )
    print(json.dumps(report.to_tree(), indent=2) if args.json else report.to_text())
    if args.write and report.pays:
        heading = f"{report.model}: {inputs.demand.description}"
        text = to_yaml(choice, inputs.engine, path=args.path, mean_prompt=inputs.mean_prompt, heading=heading)
        _write(args.write, text)
    elif args.write:
        print(f"kvtier: {args.write} was not written: there is nothing to buy", file=sys.stderr)
    return 0 if report.pays else 1


def _write(file: Path, text: str) -> None:
    try:
        with file.open("x", encoding="utf-8") as out:
            out.write(text)
    except OSError as error:
        raise ConfigError(f"--write {file}: cannot write it: {error.strerror or error}") from error
    print(f"kvtier: wrote {file}", file=sys.stderr)


def _add_workload(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--trace", type=Path, metavar="FILE", help="a trace, as for `kvtier replay`")
    group.add_argument("--format", choices=_FORMATS, help="of the trace (found out)")
    group.add_argument("--tokenizer", type=Path, metavar="DIR", help="for a trace of prompts")
    group.add_argument("--skip-bad", action="store_true", help="leave out bad lines of the trace and count them")
    group.add_argument("--rate", type=_positive, metavar="N", help="requests a second (of a trace: instead of its own)")
    group.add_argument(
        "--prompt-tokens", type=_lengths, metavar="MEAN[:P95]", help="length of prompts; with P95, log-normal"
    )
    group.add_argument(
        "--output-tokens", type=_not_negative, default=256.0, metavar="N", help="length of answers (256)"
    )
    group.add_argument("--prefixes", type=_count, metavar="N", help="how many different beginnings prompts share")
    group.add_argument("--prefix-tokens", type=_positive, metavar="N", help="length of those beginnings")
    group.add_argument("--reuse", type=_share, metavar="PERCENT", help="requests that begin with one of them, as 80%%")
    group.add_argument("--zipf", type=_not_negative, default=1.0, metavar="S", help="how unequal: 0 = all alike (1)")


def _add_hardware(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--gpu", choices=_GPUS, help="a preset: peak rate, memory, link")
    group.add_argument(
        "--prefill", type=_rates, metavar="RATE@TOKENS,...", help="measured tokens/s at a prompt length, once or more"
    )
    group.add_argument("--device-cache", type=size, metavar="SIZE", help="KV cache on all GPUs (from --gpu)")
    group.add_argument("--ram", type=size, metavar="SIZE", help="most RAM for the host tier (half of this machine's)")
    group.add_argument("--pcie", type=_positive, metavar="GB/S", help="host to device, all GPUs together (from --gpu)")
    group.add_argument("--disk", type=size, metavar="SIZE", help="most disk for the disk tier; 0B for none")
    group.add_argument("--disk-read", type=_positive, metavar="GB/S", help="the drive, reading")
    group.add_argument("--disk-write", type=_positive, metavar="GB/S", help="the drive, writing")
    group.add_argument("--probe", type=Path, metavar="DIR", help="measure the disk under DIR (512 MiB) and memory here")
    group.add_argument("--compression", type=_ratio, metavar="X", help="KV bytes per byte on disk (1.3 for bf16)")
    group.add_argument("--step", type=_not_negative, default=30.0, metavar="MS", help="first token of a full hit (30)")


def _add_prices(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--gpu-hour", type=_not_negative, metavar="PRICE", help="one GPU for an hour")
    group.add_argument("--ram-price", type=_not_negative, metavar="PRICE", help="one GiB of RAM, bought")
    group.add_argument("--disk-price", type=_not_negative, metavar="PRICE", help="one TB (10^12 bytes) of disk, bought")
    group.add_argument(
        "--years", type=_positive, default=3.0, metavar="N", help="until bought things are written off (3)"
    )
    group.add_argument("--tbw", type=size, metavar="SIZE", help="what the drive may be written in its life, as 7PB")
    group.add_argument("--hours-per-day", type=_hours, default=24.0, metavar="N", help="of this load (24)")


def _number(text: str, expected: str, low: float, high: float = math.inf, *, form: re.Pattern[str] = _PLAIN) -> float:
    match = form.fullmatch(text)
    if match is None or not low <= float(match[1]) <= high:
        raise argparse.ArgumentTypeError(f"{text!r}: expected {expected}")
    return float(match[1])


def _positive(text: str) -> float:
    return _number(text, "a number, more than 0", 1e-9)


def _not_negative(text: str) -> float:
    return _number(text, "a number, 0 or more", 0)


def _ratio(text: str) -> float:
    return _number(text, "a number, 1 or more", 1)


def _hours(text: str) -> float:
    return _number(text, "hours, more than 0 and at most 24", 1e-9, 24)


def _share(text: str) -> float:
    return _number(text, "a percentage from 0% to 100%", 0, 100, form=_PERCENT) / 100


def _lengths(text: str) -> tuple[float, float | None]:
    mean, colon, p95 = text.partition(":")
    expected = "tokens, as 8000, or mean and 95th percentile, as 8000:20000"
    return _number(mean, expected, 1), _number(p95, expected, 1) if colon else None


def _rates(text: str) -> list[tuple[float, float]]:
    expected = "tokens a second and prompt length, as 37600@8192, several with commas"
    pairs = [part.split("@") for part in text.split(",")]
    if any(len(pair) != 2 for pair in pairs):
        raise argparse.ArgumentTypeError(f"{text!r}: expected {expected}")
    return [(_number(rate, expected, 1e-3), _number(tokens, expected, 1)) for rate, tokens in pairs]


def _parameters(text: str) -> float:
    number = _number(text, "parameters, as 3.3B or 135M", 1e-3, form=_PARAMETERS)
    return number * (1e9 if text.endswith("B") else 1e6)


def _count(text: str) -> int:
    return int(_number(text, "a whole number, at least 1", 1, form=_WHOLE))
