"""Sizing: what `auto`, percentages and bytes of a Config come to on a Machine. Pure arithmetic on what was measured.

The shares stated here are the promise of `auto`: a kvtier that nobody configured never takes more.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Final

from kvtier.config import Config
from kvtier.errors import ConfigError
from kvtier.kvshape import KvShape, Unknown
from kvtier.machine import DiskSpace, Machine
from kvtier.units import Size, format_bytes

__all__ = [
    "DiskSpace",
    "KvShape",
    "Machine",
    "Sized",
    "Unknown",
    "check_disk_fits",
    "check_host_fits",
    "chunk_tokens",
    "disk_bytes",
    "enlarge_shm",
    "host_bytes",
    "size_disk",
    "size_host",
]

HOST_AUTO_RAM: Final = Fraction(25, 100)  # of RAM, or of the container's limit
HOST_LEAST_BYTES: Final = 1 << 20
HOST_AUTO_SHM: Final = Fraction(50, 100)  # of /dev/shm, where the host pool lives
DISK_LEAST_BYTES: Final = 16 << 20  # the store opens nothing smaller
DISK_AUTO_FREE: Final = Fraction(20, 100)  # of the free space, the store's own files counted as free
DISK_AUTO_MOST_BYTES: Final = 100 << 30
DISK_AUTO_LEAST_BYTES: Final = 256 << 20  # less is not worth a tier
CHUNK_AUTO_BYTES: Final = 2 << 20  # below it DMA and LMDB lose throughput
CHUNK_AUTO_MOST_TOKENS: Final = 256  # above it short prefixes are too short to be kept


@dataclass(frozen=True, slots=True)
class Sized:
    """A capacity and the rule that set it, for people."""

    n_bytes: int
    rule: str


def host_bytes(config: Config, machine: Machine) -> int:
    """Bytes of host RAM the tier may take, at least 1 MiB. Raises ConfigError when that is more than there is.

    The same in every process of an engine, early or late: it depends on what the machine has, never on what is free.
    Whether that much is free at the moment is for `check_host_fits` to say, once, before the pool is made.
    """
    return size_host(config, machine).n_bytes


def check_host_fits(config: Config, machine: Machine) -> None:
    """Raise ConfigError, with the remedy, when the host tier does not fit into what is free right now."""
    sized = size_host(config, machine)
    what = f"`host.capacity` is {_is(config.host.capacity, sized.n_bytes)}, but"
    if sized.n_bytes > machine.ram_available_bytes:
        raise ConfigError(
            f"{what} only {format_bytes(machine.ram_available_bytes)} of {format_bytes(machine.ram_bytes)} RAM are "
            "available now: make it smaller, or end what takes the rest"
        )
    if sized.n_bytes > machine.shm_free_bytes:
        needed = machine.shm_bytes - machine.shm_free_bytes + sized.n_bytes
        raise ConfigError(
            f"{what} /dev/shm has only {format_bytes(machine.shm_free_bytes)} of {format_bytes(machine.shm_bytes)} "
            f"free now: {enlarge_shm(needed)}, or make it smaller"
        )


def disk_bytes(config: Config, disk: DiskSpace) -> int:
    """Bytes the disk tier may take; 0 when it is off, or when `auto` finds no room for 256 MiB.

    `auto` stays the same from start to start: see `size_disk`. Raises ConfigError when anything else is too little;
    whether the file system has that much room now is for `check_disk_fits` to say.
    """
    return size_disk(config, disk).n_bytes


def chunk_tokens(config: Config, *, block_tokens: int, bytes_per_token: int) -> int:
    """Tokens per chunk for an engine with this block size. Raises ConfigError when `chunk.tokens` is no multiple of it.

    `auto`: the fewest blocks, doubling, that reach 2 MiB, but no more than 256 tokens unless one block is larger.
    """
    tokens = config.chunk.tokens
    if tokens is None:
        tokens = block_tokens
        while tokens * bytes_per_token < CHUNK_AUTO_BYTES and tokens * 2 <= CHUNK_AUTO_MOST_TOKENS:
            tokens *= 2
        return tokens
    if tokens % block_tokens:
        below, above = tokens // block_tokens * block_tokens, -(-tokens // block_tokens) * block_tokens
        near = f"{below} or {above}" if below else str(above)
        raise ConfigError(
            f"`chunk.tokens` is {tokens}, no multiple of the engine's block of {block_tokens} tokens: "
            f"write {near}, or leave it out"
        )
    return tokens


def size_host(config: Config, machine: Machine) -> Sized:
    """`host_bytes` and its rule."""
    size = config.host.capacity
    ram, shm = format_bytes(machine.ram_bytes), format_bytes(machine.shm_bytes)
    if size.is_auto:
        by_ram, by_shm = int(machine.ram_bytes * HOST_AUTO_RAM), int(machine.shm_bytes * HOST_AUTO_SHM)
        n_bytes = min(by_ram, by_shm) >> 20 << 20
        rule = f"auto: 25 % of {ram} RAM" if by_ram <= by_shm else f"auto: 50 % of {shm} /dev/shm"
    else:
        n_bytes, rule = _absolute(size, machine.ram_bytes, f"of {ram} RAM")
    what = f"`host.capacity` is {_is(size, n_bytes)}"
    if n_bytes > machine.ram_bytes:
        raise ConfigError(f"{what}, but there are {ram} RAM: make it smaller, or write auto")
    if n_bytes > machine.shm_bytes:
        raise ConfigError(f"{what}, but /dev/shm has {shm}: {enlarge_shm(n_bytes)}, or make it smaller")
    if n_bytes < HOST_LEAST_BYTES:
        remedy = enlarge_shm(2 << 30) if size.is_auto else "make it larger"
        raise ConfigError(f"{what}, less than {format_bytes(HOST_LEAST_BYTES)}, the least: {remedy}")
    return Sized(n_bytes, rule)


def size_disk(config: Config, disk: DiskSpace) -> Sized:
    """`disk_bytes` and its rule.

    `auto` must not wander between restarts, or each would throw away part of a warm tier. So the files the tier has
    already count as free; the share is rounded down to four significant bits, so that small changes of free space
    change nothing; and when others took much of the free space since, the tier keeps what it holds as long as that is
    at most half of what there would be without it.
    """
    if config.disk is None:
        return Sized(0, "off")
    size = config.disk.capacity
    room = disk.free_bytes + disk.held_bytes
    if size.is_auto:
        share = _steady(int(room * DISK_AUTO_FREE))
        # Lock files and page rounding add a little to what was allowed: without the 31/32 a full tier would creep up.
        held = min(_steady(-(-disk.held_bytes * 31 // 32), up=True), _steady(room // 2))
        n_bytes = min(max(share, held), DISK_AUTO_MOST_BYTES)
        if n_bytes < DISK_AUTO_LEAST_BYTES:
            return Sized(0, f"auto: too little room ({format_bytes(room)})")
        if n_bytes == DISK_AUTO_MOST_BYTES:
            return Sized(n_bytes, f"auto: the most it takes, of {format_bytes(room)} free")
        if n_bytes == share:
            return Sized(n_bytes, f"auto: 20 % of {format_bytes(room)} free, rounded down")
        return Sized(n_bytes, f"auto: what it holds already, {format_bytes(disk.held_bytes)}")
    n_bytes, rule = _absolute(size, disk.total_bytes, f"of {format_bytes(disk.total_bytes)}")
    if n_bytes < DISK_LEAST_BYTES:
        raise ConfigError(
            f"`disk.capacity` is {_is(size, n_bytes)}, less than {format_bytes(DISK_LEAST_BYTES)}, the least: "
            "make it larger, or switch the tier off with `disk: off`"
        )
    return Sized(n_bytes, rule)


def check_disk_fits(config: Config, disk: DiskSpace) -> None:
    """Raise ConfigError, with the remedy, when the file system has less room right now than the disk tier may take.

    An engine runs all the same: its writes stop when the disk is full, and what the tier holds already stays warm.
    """
    sized = size_disk(config, disk)
    room = disk.free_bytes + disk.held_bytes
    if config.disk is not None and sized.n_bytes > room:
        raise ConfigError(
            f"`disk.capacity` is {_is(config.disk.capacity, sized.n_bytes)}, but {disk.path} has room for "
            f"{format_bytes(room)}: free {format_bytes(sized.n_bytes - room)} there, make it smaller, "
            "or name another `disk.path`"
        )


def enlarge_shm(n_bytes: int) -> str:
    """The remedy for a /dev/shm that should have `n_bytes` in all."""
    size = f"{-(-n_bytes // (1 << 30))}g"
    return f"`mount -o remount,size={size} /dev/shm` (in a container: --shm-size={size})"


def _absolute(size: Size, whole: int, of: str) -> tuple[int, str]:
    percent = size.percent
    if percent is None:
        assert size.n_bytes is not None
        return size.n_bytes, "as written"
    return int(whole * percent / 100), f"{size} {of}"


def _is(size: Size, n_bytes: int) -> str:
    return str(size) if size.n_bytes is not None else f"{size} ({format_bytes(n_bytes)})"


def _steady(n_bytes: int, *, up: bool = False) -> int:
    """`n_bytes` rounded to its four highest bits."""
    step = 1 << max(0, n_bytes.bit_length() - 4)
    return -(-n_bytes // step) * step if up else n_bytes // step * step
