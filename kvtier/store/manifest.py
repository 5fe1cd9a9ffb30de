"""Which shards a directory holds and how many it should: manifest file <-> Manifest, capacity -> plan."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import NamedTuple

from kvtier.errors import ConfigError, StoreError, StoreFormatError
from kvtier.files import replace_file

DIRECTORY_FORMAT = 1
"""Of the directory: names, manifest, databases of a shard. An older build refuses a newer one."""

MANIFEST = "kvtier-store.json"
MIN_CAPACITY_BYTES = 16 << 20
MAX_SHARDS = 256
"""Each shard takes two file descriptors and a mapping; 256 of them stay below the common limit of 1024 open files."""

LOCK_FILE_BYTES = 16 << 10
"""Set apart for each shard's lock file (126 readers of 64 bytes and a header)."""

MANIFEST_BYTES = 64 << 10
"""Set apart for the manifest, its draft and the directory's own lock file."""

_MAP_STEP_BYTES = 64 << 10  # the largest page size in use anywhere


class Manifest(NamedTuple):
    """What the manifest file says."""

    map_bytes: int  # length of every shard file
    capacity_bytes: int  # that it was made for
    shards: tuple[int, ...]  # numbers in the file names, ascending
    boot_id: str  # of the machine run in which it was last used; another one means power may have been lost
    pid_namespace: str = ""  # whose process ids the users of the directory have; empty where the kernel does not say


class Plan(NamedTuple):
    """How many shards of which length a capacity gives."""

    n_shards: int
    map_bytes: int


def shards_bytes(n_shards: int, map_bytes: int) -> int:
    """All that `n_shards` can ever occupy, lock files included."""
    return n_shards * (map_bytes + LOCK_FILE_BYTES)


def plan_shards(budget_bytes: int, target_map_bytes: int, now: Plan) -> Plan:
    """The shards that make the most of `budget_bytes`, keeping as many of those there are `now` as fit.

    A shard can grow but not shrink. Every shard has the same length: one to two times `target_map_bytes`, less when the
    budget is, more when there would be more than `MAX_SHARDS`.
    """
    fresh = _fresh_plan(budget_bytes, target_map_bytes)
    if now.n_shards == 0:
        return fresh
    n_shards = max(now.n_shards, fresh.n_shards)
    if _longest_map(budget_bytes, n_shards) < now.map_bytes:
        n_shards = min(MAX_SHARDS, budget_bytes // shards_bytes(1, now.map_bytes))
    if n_shards == 0:
        return fresh  # not one of the old shards fits: begin anew with smaller ones
    return Plan(n_shards, max(now.map_bytes, _longest_map(budget_bytes, n_shards)))


def _fresh_plan(budget_bytes: int, target_map_bytes: int) -> Plan:
    # A capacity of just under n targets, as 1 GiB less some housekeeping is, still gives n shards.
    n_shards = min(max(1, (budget_bytes + budget_bytes // 16) // target_map_bytes), MAX_SHARDS)
    return Plan(n_shards, _longest_map(budget_bytes, n_shards))


def _longest_map(budget_bytes: int, n_shards: int) -> int:
    return (budget_bytes // n_shards - LOCK_FILE_BYTES) // _MAP_STEP_BYTES * _MAP_STEP_BYTES


def check_capacity(capacity_bytes: int) -> None:
    """ConfigError when the capacity is too small to be worth a directory."""
    if capacity_bytes < MIN_CAPACITY_BYTES:
        raise ConfigError(
            f"a disk capacity of {capacity_bytes} bytes is too small; "
            f"give it at least {MIN_CAPACITY_BYTES >> 20} MiB or switch the disk tier off"
        )


def read_manifest(directory: Path) -> Manifest | None:
    """The manifest of `directory`; None when there is none or it cannot be understood.

    StoreFormatError when a newer build wrote it: nothing in the directory may be touched then.
    """
    file = directory / MANIFEST
    try:
        content = json.loads(file.read_bytes()[:MANIFEST_BYTES])
        written_by = content["format"]
        if isinstance(written_by, int) and written_by > DIRECTORY_FORMAT:
            raise StoreFormatError(
                f"{file} has directory format {written_by}, this build knows {DIRECTORY_FORMAT}; "
                f"upgrade kvtier or give this engine another disk directory"
            )
        shards = tuple(sorted({int(number) for number in content["shards"]}))
        manifest = Manifest(
            int(content["map_bytes"]),
            int(content["capacity_bytes"]),
            shards,
            str(content.get("boot_id", "")),
            str(content.get("pid_namespace", "")),
        )
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):  # not JSON, or JSON of another shape
        return None
    except OSError as error:
        raise StoreError(f"{file} cannot be read: {error.strerror}") from error
    sane = manifest.map_bytes > 0 and all(0 <= number <= 9999 for number in shards)
    return manifest if sane and written_by == DIRECTORY_FORMAT else None


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Replace the manifest of `directory` as a whole."""
    content = {"format": DIRECTORY_FORMAT, **manifest._asdict()}
    replace_file(directory / MANIFEST, json.dumps(content, indent=1).encode() + b"\n")


def pid_namespace() -> str:
    """Names whose process ids this process has; empty where the kernel does not say."""
    try:
        return os.readlink("/proc/self/ns/pid")  # noqa: PTH115 - a name, not a path
    except OSError:
        return ""


def boot_id() -> str:
    """Names this run of the machine; empty where the kernel does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""
