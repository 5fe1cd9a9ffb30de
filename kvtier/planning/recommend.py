"""Recommend: a Choice -> a commented kvtier.yaml that says the plan, and why. Text only; `kvtier check` reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from kvtier.planning.choose import LEAST_POOL_BYTES, Choice
from kvtier.planning.effect import Engine

_GIB: Final = 1 << 30
_MIB: Final = 1 << 20
_POOL_PROMPTS: Final = 8  # prompts on their way up from disk at once, where host RAM is no tier of its own


def pool_bytes(choice: Choice, engine: Engine, mean_prompt: float) -> int:
    """`host.capacity`: the host tier, or the least through which a disk tier can work. Whole GiB or MiB."""
    if choice.host.pays:
        return choice.host.n_bytes
    wanted = _POOL_PROMPTS * engine.layout.stored_bytes_per_token * mean_prompt
    most = min(engine.hardware.ram_bytes, max(LEAST_POOL_BYTES, int(wanted)))
    unit = _GIB if most >= 4 * _GIB else _MIB
    return most // unit * unit


def to_yaml(choice: Choice, engine: Engine, *, path: Path, mean_prompt: float, heading: str) -> str:
    """The file. Call it only when a tier pays. `path` is the directory of the disk tier, `heading` one line."""
    assert choice.host.pays or choice.disk.pays
    host = pool_bytes(choice, engine, mean_prompt)
    shm = -(-host * 11 // 10 // _GIB)
    lines = [
        f"# {heading}",
        "#",
        "# Written by `kvtier plan`: estimates, to be compared with the log line under load.",
        "#",
    ]
    lines += [f"# KV: {line.strip()}" for line in engine.layout.formula()]
    lines += ["", "host:"]
    if choice.host.pays:
        lines += [f"  # {choice.host.reason}; expected hit rate {choice.chosen.hit['host']:.1%} of prompt tokens"]
    else:
        lines += [f"  # no tier of its own ({choice.host.reason}),", "  # but what comes from disk passes through it"]
    lines += [
        f"  # /dev/shm must have as much free: `mount -o remount,size={shm}g /dev/shm` (container: --shm-size={shm}g)"
    ]
    lines += [f"  capacity: {_written(host)}", ""]
    if not choice.disk.pays:
        return "\n".join([*lines, f"# do not buy: {choice.disk.reason}", "disk: off", ""])
    effect = choice.chosen
    tokens = engine.disk_tokens(effect.disk_bytes)
    lines += [
        "disk:",
        f"  path: {_quoted(path)}  # a directory on local NVMe, never on a network file system",
        f"  # {choice.disk.reason}; expected hit rate {effect.hit['disk']:.1%};",
        f"  # about {tokens:,.0f} tokens at {engine.hardware.compression:g} times compression",
        f"  capacity: {_written(effect.disk_bytes)}",
    ]
    wear = f"  # {effect.written_bytes_per_s / 1e6:,.0f} MB/s of writes at this load"
    if choice.disk.years is not None:
        wear += f": the drive lasts {choice.disk.years:.1f} years"
    lines += [wear, "  write: ahead"]
    hardware = engine.hardware
    lines += [
        f"  # {hardware.disk_read_gbps:g} GB/s of reading need as many threads at {hardware.open_gbps:g} GB/s each",
        f"  promote_threads: {hardware.promote_threads}",
        "",
    ]
    return "\n".join(lines)


def _written(n_bytes: int) -> str:
    """As a configuration writes it, exactly."""
    return f"{n_bytes // _GIB}GiB" if n_bytes % _GIB == 0 else f"{n_bytes // _MIB}MiB"


def _quoted(path: Path) -> str:
    """A YAML scalar in single quotes, whatever the path has in it."""
    return "'" + str(path).replace("'", "''") + "'"
