"""Inputs of `kvtier plan`: parsed options, a model folder, presets and this machine -> an Engine and a Demand.

Every ConfigError names the option and what to do.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kvtier.errors import ConfigError
from kvtier.kvshape import Unknown, read_config
from kvtier.machine import DiskSpace, Machine
from kvtier.planning import hardware as known
from kvtier.planning.choose import Choice
from kvtier.planning.demand import Demand, Lengths, SharedPrefixes
from kvtier.planning.effect import Engine
from kvtier.planning.hardware import GPUS, Gpu, Hardware
from kvtier.planning.layout import KvLayout
from kvtier.planning.prefill import Flops, Prefill, flops_of, total_parameters
from kvtier.planning.probe import Probed, probe
from kvtier.planning.proof import Proof, prove
from kvtier.planning.recommend import pool_bytes
from kvtier.planning.replayed import Replayed, replayed
from kvtier.sim.source import open_trace
from kvtier.units import format_bytes

_WORKLOAD = ("rate", "prompt_tokens", "prefixes", "prefix_tokens", "reuse")


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a plan rests on."""

    engine: Engine
    demand: Demand
    mean_prompt: float
    sources: tuple[tuple[str, str], ...]


def gather(args: argparse.Namespace) -> Inputs:
    """Read everything the options name. Raises ConfigError or InputError."""
    model = read_config(args.model)
    layout = KvLayout.of_config(model, kv_dtype=args.kv_cache_dtype, tensor_parallel=args.tensor_parallel_size)
    if isinstance(layout, Unknown):
        raise ConfigError(f"--model {args.model}: cannot tell the size of its KV: {layout.reason}")
    if not layout.bytes_per_token:
        raise ConfigError(
            f"--model {args.model}: it keeps no KV per token, only a state of {format_bytes(layout.state_bytes)} a "
            "sequence: there is no prefix to keep in tiers"
        )
    demand, mean_prompt = _demand(args)
    gpu: Gpu | None = GPUS[args.gpu] if args.gpu else None
    prefill = _prefill(args, model, gpu)
    measured = probe(args.probe, show) if args.probe else None
    hardware, origin = _hardware(args, model, layout, gpu, measured)
    sources = [("prefill", prefill.source), *origin]
    return Inputs(Engine(layout, prefill, hardware), demand, mean_prompt, tuple(sources))


def _demand(args: argparse.Namespace) -> tuple[Demand, float]:
    if args.trace:
        demand = _trace(args)
        return demand, sum(o.weight * o.n_tokens for o in demand.outcomes(0, 0, 0))
    missing = [f"--{name.replace('_', '-')}" for name in _WORKLOAD if getattr(args, name) is None]
    if missing:
        raise ConfigError(f"no workload: give --trace FILE, or {', '.join(missing)} as well")
    mean, p95 = args.prompt_tokens
    if args.prefix_tokens >= mean:
        raise ConfigError(
            f"--prefix-tokens {args.prefix_tokens:,.0f}: as long as the prompts ({mean:,.0f}): give what prompts begin "
            "with alike, without the question"
        )
    lengths = Lengths(mean, p95)
    lengths.values()
    shared = SharedPrefixes(
        args.rate, lengths, args.output_tokens, args.prefixes, args.prefix_tokens, args.reuse, args.zipf
    )
    return shared, mean


def _trace(args: argparse.Namespace) -> Demand:
    for name in _WORKLOAD[1:]:
        if getattr(args, name) is not None:
            raise ConfigError(f"--{name.replace('_', '-')}: a trace says that itself: leave it or --trace out")
    with open_trace(str(args.trace), kind=args.format, tokenizer=args.tokenizer, skip_bad=args.skip_bad) as trace:
        found = replayed(
            str(args.trace),
            trace,
            lambda: trace.tokens_per_chunk,
            requests_per_s=args.rate,
            progress=lambda n: show(f"{n:,} requests read"),
        )
    if trace.n_skipped:
        print(f"{args.trace}: {trace.n_skipped:,} bad lines left out: {trace.first_skipped[0]}", file=sys.stderr)
    return found


def proof_of(args: argparse.Namespace, inputs: Inputs, choice: Choice) -> Proof | None:
    """What production's own cache makes of the trace at the chosen sizes. None without a trace, or with none to buy."""
    if not isinstance(inputs.demand, Replayed) or not (choice.host.pays or choice.disk.pays):
        return None
    pool = pool_bytes(choice, inputs.engine, inputs.mean_prompt)
    with open_trace(str(args.trace), kind=args.format, tokenizer=args.tokenizer, skip_bad=args.skip_bad) as trace:
        return prove(
            choice,
            inputs.engine,
            trace,
            inputs.demand.tokens_per_chunk,
            pool,
            progress=lambda n: show(f"{n:,} requests replayed"),
        )


def _prefill(args: argparse.Namespace, model: dict[str, object], gpu: Gpu | None) -> Prefill:
    flops = flops_of(model, args.active_parameters)
    if args.prefill:
        return Prefill.of_rates(args.prefill, flops if isinstance(flops, Flops) else None)
    if gpu is None:
        raise ConfigError(f"how fast is prefill? give --gpu ({', '.join(GPUS)}) or a measured --prefill RATE@TOKENS")
    if isinstance(flops, Unknown):
        raise ConfigError(f"--model {args.model}: {flops.reason}: give a measured --prefill RATE@TOKENS")
    n, share = args.tensor_parallel_size, known.PREFILL_EFFICIENCY
    source = (
        f"{flops.parameters / 1e9:.2f}e9 active parameters on {n} x {gpu.name}, {share:.0%} of {gpu.tflops:g} TFLOPS "
        "(assumed; --prefill takes a measured rate)"
    )
    return Prefill.of_flops(flops, gpu.tflops * share * n, source)


def _hardware(
    args: argparse.Namespace, model: dict[str, object], layout: KvLayout, gpu: Gpu | None, measured: Probed | None
) -> tuple[Hardware, list[tuple[str, str]]]:
    n, here = args.tensor_parallel_size, Machine.here()
    device_bytes, cache = args.device_cache, "as given"
    if device_bytes is None:
        device_bytes, cache = _device_cache(model, gpu, n)
    copies = layout.copies_on_device
    if copies > 1:
        device_bytes, cache = device_bytes // copies, f"{cache}, of which every rank holds a copy"
    pcie, link = args.pcie, "as given"
    if pcie is None:
        if gpu is None:
            raise ConfigError("--pcie: give the GB/s that host RAM and device reach, or --gpu")
        links = n // copies  # each rank loads its part, or all of it
        pcie, link = gpu.pcie_gbps * links, f"{links} x {gpu.pcie_gbps:.0f} GB/s"
    ram, memory = (
        (args.ram, "as given") if args.ram is not None else (here.ram_bytes // 2, "half of this machine's RAM")
    )
    disk, space = (args.disk, "as given") if args.disk is not None else _disk_here(args.path)
    read, write, drive = args.disk_read, args.disk_write, "as given"
    open_gbps = known.OPEN_GBPS_PER_THREAD
    if measured is not None:
        read, write = read or measured.disk_read_gbps, write or measured.disk_write_gbps
        drive, open_gbps = f"measured in {args.probe}", min(open_gbps, measured.copy_gbps)
    if disk and (read is None or write is None):
        raise ConfigError(
            "--disk-read and --disk-write: give the drive's GB/s, or --probe DIR, or --disk 0B for no disk"
        )
    read, write = read or 0.0, write or 0.0
    shape = layout.full or layout.window
    assert shape is not None
    ratio, packing = args.compression, "as given"
    if ratio is None:
        ratio, packing = known.COMPRESSION.get(shape.dtype, 1.0), f"assumed for {shape.dtype}"
    hardware = Hardware(
        device_cache_bytes=device_bytes,
        ram_bytes=ram,
        disk_bytes=disk if read and write else 0,
        pcie_gbps=pcie,
        disk_read_gbps=read,
        disk_write_gbps=write,
        compression=ratio,
        open_gbps=open_gbps,
        promote_threads=known.threads_for(read, ratio, open_gbps),
        step_s=args.step / 1000,
    )
    origin = list(_gpu_source(gpu))
    origin += [("device", f"{format_bytes(device_bytes)} of KV cache ({cache}), {pcie:.1f} GB/s from host ({link})")]
    origin += [("RAM", f"up to {format_bytes(ram)} ({memory})")]
    if hardware.disk_bytes:
        rates = f"reads {read:.2f} and writes {write:.2f} GB/s ({drive})"
        threads = f"{hardware.promote_threads} x {open_gbps:.1f} GB/s of promote_threads"
        origin += [("disk", f"up to {format_bytes(disk)} ({space}), {rates}; KV shrinks {ratio:g} times ({packing})")]
        origin += [("", f"{hardware.disk_kv_gbps:.1f} GB/s of KV into host RAM ({threads})")]
    if measured is not None:
        origin += [("memory", f"copies {measured.copy_gbps:.1f} GB/s on one thread (measured)")]
    return hardware, origin


def _gpu_source(gpu: Gpu | None) -> Iterator[tuple[str, str]]:
    if gpu is not None:
        yield "GPU", f"{gpu.name}: {gpu.source}"


def _disk_here(path: Path) -> tuple[int, str]:
    space = DiskSpace.at(path)
    return int((space.free_bytes + space.held_bytes) * 0.6), f"60 % of what is free at {path}"


def _device_cache(model: dict[str, object], gpu: Gpu | None, n: int) -> tuple[int, str]:
    if gpu is None:
        raise ConfigError("--device-cache: give the engine's KV cache (its start-up log says it), or --gpu")
    parameters = total_parameters(model)
    if isinstance(parameters, Unknown) or model.get("quantization_config"):
        raise ConfigError("--device-cache: give it: config.json does not tell how much memory the weights take")
    left = int(n * gpu.memory_bytes * known.WEIGHTS_SHARE - 2 * parameters)
    if left <= 0:
        raise ConfigError(
            f"--gpu: {2 * parameters / 1e9:.0f} GB of 16-bit weights do not fit {n} x {gpu.memory_bytes / 1e9:.0f} GB: "
            "raise --tensor-parallel-size, or give --device-cache if the weights are smaller than that"
        )
    return left, f"{known.WEIGHTS_SHARE:.0%} of memory less {2 * parameters / 1e9:.0f} GB of 16-bit weights"


def show(what: str, part: float | None = None) -> None:
    """Progress, on a terminal only, in one line that the next output replaces."""
    if sys.stderr.isatty():
        share = "" if part is None else f" {part:.0%}"
        print(f"\r\x1b[K{what}{share}\r", end="", file=sys.stderr, flush=True)


def shown() -> None:
    """Take the line of progress away."""
    if sys.stderr.isatty():
        print("\x1b[K", end="", file=sys.stderr, flush=True)
