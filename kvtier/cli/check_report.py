"""Report of `kvtier check`: Config + Machine + DiskSpace + KvShape -> sizes and findings -> a table or JSON. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final, TypeVar

from kvtier import sizing
from kvtier.config import Config
from kvtier.engines.vllm import allow_list
from kvtier.errors import ConfigError
from kvtier.sizing import DiskSpace, KvShape, Machine, Sized, Unknown
from kvtier.tables import columns
from kvtier.units import format_bytes

_PAGE_BYTES: Final = 4096  # slots are whole pages
_SMALL_CHUNK_BYTES: Final = 256 << 10
_LARGE_CHUNK_BYTES: Final = 16 << 20
_FEW_CHUNKS: Final = 16
_HOST_PER_DEVICE: Final = 3

_LOAD: Final = {
    "auto": "from disk only while that is measured to be faster than computing",
    "always": "whatever is on disk, however long it takes",
    "never": "nothing from disk; the tier is only written",
    "min_tokens": "from disk if a request could find {n:,} tokens or more there",
}

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a configuration comes to. A size that could not be determined is None, and `errors` says why."""

    name: str  # of the file
    config: Config
    machine: Machine
    space: DiskSpace | None  # None when the disk tier is off
    shape: KvShape | Unknown | None  # None when no model was named
    host: Sized | None
    disk: Sized | None  # n_bytes is 0 when the disk tier is off
    chunk_tokens: int | None
    errors: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def chunk_bytes(self) -> int | None:
        """Bytes of one slot, when the model's KV is known."""
        if self.chunk_tokens is None or not isinstance(self.shape, KvShape):
            return None
        return -(-self.chunk_tokens * self.shape.bytes_per_token // _PAGE_BYTES) * _PAGE_BYTES

    def n_chunks(self, tier: Sized | None) -> int | None:
        """Whole chunks that fit a tier, uncompressed."""
        return tier.n_bytes // self.chunk_bytes if tier and self.chunk_bytes else None

    def to_text(self) -> str:
        """For people: a table, the chunk, and what is wrong."""
        rows = [("tier", "capacity", "chunks", "tokens", "where", "rule"), self._row("host", self.host, self._shm())]
        if self.space is not None:
            kind = f"{self.space.fs_type}, " if self.space.fs_type else ""
            where = f"{self.space.path} ({kind}{format_bytes(self.space.free_bytes)} free)"
            rows.append(self._row("disk", self.disk, where))
        else:
            rows.append(("disk", "off", "-", "-", "-", "-"))
        lines = [
            f"{self.name} on this machine",
            "",
            *columns(rows, left=(0, 4, 5)),
            "",
            *(f"{k:<6}{v}" for k, v in self._facts()),
            "",
        ]
        lines += [f"{level}: {text}" for level, text in self._findings()] or ["no warnings"]
        return "\n".join(lines)

    def to_tree(self) -> dict[str, object]:
        """For machines: plain values only; sizes in bytes, null where unknown."""
        return {
            "file": self.name,
            "errors": list(self.errors),
            "warnings": list(self.warnings),
            "host": self._tier(self.host),
            "disk": self._tier(self.disk)
            | ({"path": str(self.space.path), "file_system": self.space.fs_type} if self.space else {}),
            "chunk": {"tokens": self.chunk_tokens, "bytes": self.chunk_bytes},
            "bytes_per_token": self.shape.bytes_per_token if isinstance(self.shape, KvShape) else None,
            "config": self.config.to_tree(),
        }

    def _tier(self, tier: Sized | None) -> dict[str, object]:
        n_chunks = self.n_chunks(tier)
        tokens = None if n_chunks is None or self.chunk_tokens is None else n_chunks * self.chunk_tokens
        return {
            "bytes": tier.n_bytes if tier else None,
            "rule": tier.rule if tier else None,
            "chunks": n_chunks,
            "tokens": tokens,
        }

    def _row(self, name: str, tier: Sized | None, where: str) -> tuple[str, ...]:
        if tier is None:
            return (name, "error", "-", "-", where, "-")
        facts = self._tier(tier)
        chunks, tokens = ("-" if facts[key] is None else f"{facts[key]:,}" for key in ("chunks", "tokens"))
        return (name, format_bytes(tier.n_bytes), chunks, tokens, where, tier.rule)

    def _shm(self) -> str:
        free, size = format_bytes(self.machine.shm_free_bytes), format_bytes(self.machine.shm_bytes)
        return f"/dev/shm ({free} of {size} free)"  # noqa: S108 - shown, not opened

    def _facts(self) -> Iterator[tuple[str, str]]:
        if isinstance(self.shape, KvShape):
            shape = self.shape
            layers = f"{shape.n_layers} layers x {shape.n_heads} heads x {shape.head_size} elements of K and V"
            yield "token", f"{shape.bytes_per_token:,} bytes ({shape.kind}, {layers}, {shape.dtype})"
        if self.chunk_tokens is not None:
            size = f" = {format_bytes(self.chunk_bytes)}" if self.chunk_bytes else ""
            yield "chunk", f"{self.chunk_tokens} tokens{size}"
        elif self.shape is None:
            yield "chunk", "sized by the engine's KV; --model DIR tells it here"
        disk = self.config.disk
        if disk is not None:
            after = f" after {disk.write_behind_after}" if disk.write == "ahead" else ""
            plain = "" if disk.codec == "raw" or self.chunk_bytes is None else "; tokens are counted uncompressed"
            yield "disk", f"write {disk.write}{after}, sync every {disk.sync_every}, codec {disk.codec}{plain}"
            yield "load", f"{disk.load}: {_LOAD[disk.load].format(n=disk.min_tokens or 0)}"

    def _findings(self) -> list[tuple[str, str]]:
        return [("error", text) for text in self.errors] + [("warning", text) for text in self.warnings]


def examine(
    config: Config,
    *,
    name: str,
    machine: Machine,
    disk: DiskSpace | None,
    shape: KvShape | Unknown | None,
    block_tokens: int,
    device_cache_bytes: int | None,
) -> Report:
    """Work out every size and everything that is wrong with it. Raises nothing: what does not fit is in `errors`."""
    errors: list[str] = []
    bytes_per_token = shape.bytes_per_token if isinstance(shape, KvShape) else None
    tokens = None
    if config.chunk.tokens is not None or bytes_per_token is not None:
        tokens = _attempt(
            errors, lambda: sizing.chunk_tokens(config, block_tokens=block_tokens, bytes_per_token=bytes_per_token or 1)
        )
    report = Report(
        name=name,
        config=config,
        machine=machine,
        space=disk,
        shape=shape,
        host=_attempt(errors, lambda: sizing.size_host(config, machine)),
        disk=_attempt(errors, lambda: sizing.size_disk(config, disk)) if disk else Sized(0, "off"),
        chunk_tokens=tokens,
        errors=(),
        warnings=(),
    )
    _attempt(errors, lambda: _read_key(config))
    if report.host:
        _attempt(errors, lambda: sizing.check_host_fits(config, machine))
    if report.disk and disk:
        _attempt(errors, lambda: sizing.check_disk_fits(config, disk))
    if report.n_chunks(report.host) == 0:
        errors.append("`host.capacity`: not one chunk fits; make it larger or `chunk.tokens` smaller")
    warnings = [
        *_of_chunk(report, block_tokens),
        *_of_host(report, device_cache_bytes),
        *_of_disk(report),
        *filter(None, [allow_list.excluded()]),
    ]
    return replace(report, errors=tuple(errors), warnings=tuple(warnings))


def _read_key(config: Config) -> None:
    if config.integrity.hmac_key_file is not None or config.encryption.key_file is not None:
        from kvtier.codec.guards import guard_for  # noqa: PLC0415 - imports the codecs

        guard_for(config)


def _attempt(errors: list[str], size: Callable[[], _T]) -> _T | None:
    try:
        return size()
    except ConfigError as error:
        errors.append(str(error))
        return None


def _of_chunk(report: Report, block_tokens: int) -> Iterator[str]:
    if isinstance(report.shape, Unknown):
        yield f"--model: cannot tell the bytes per token: {report.shape.reason}; the engine's start-up log says them"
    if report.chunk_bytes is None or report.chunk_tokens is None or not isinstance(report.shape, KvShape):
        return
    size = f"`chunk.tokens`: a chunk of {report.chunk_tokens} tokens is {format_bytes(report.chunk_bytes)}"
    if report.chunk_bytes < _SMALL_CHUNK_BYTES:
        block_bytes = block_tokens * report.shape.bytes_per_token
        enough = -(-_SMALL_CHUNK_BYTES // block_bytes) * block_tokens
        yield f"{size}: so many small copies and frames slow both tiers down; {enough} tokens or more are better"
    if report.chunk_bytes > _LARGE_CHUNK_BYTES:
        remedy = "write auto" if report.config.chunk.tokens else "a smaller --block-size of the engine helps"
        yield f"{size}: prefixes are found in such steps only, and one load delays the next; {remedy}"


def _of_host(report: Report, device_cache_bytes: int | None) -> Iterator[str]:
    if report.host is None:
        return
    n_bytes, machine, size = report.host.n_bytes, report.machine, format_bytes(report.host.n_bytes)
    by_ram = int(machine.ram_bytes * sizing.HOST_AUTO_RAM)
    if report.config.host.capacity.is_auto and n_bytes < by_ram * 0.98:
        remedy = sizing.enlarge_shm(int(by_ram / sizing.HOST_AUTO_SHM))
        yield f"`host.capacity`: auto is held to {size} by /dev/shm; for {format_bytes(by_ram)}: {remedy}"
    if machine.has_gpu and machine.memlock_bytes is not None and machine.memlock_bytes < n_bytes:
        yield (
            f"RLIMIT_MEMLOCK is {format_bytes(machine.memlock_bytes)}: where the driver respects it, {size} of host "
            "RAM cannot be pinned and copies are slow: `ulimit -l unlimited` (systemd: LimitMEMLOCK=infinity, "
            "container: --ulimit memlock=-1)"
        )
    if device_cache_bytes is not None and n_bytes < _HOST_PER_DEVICE * device_cache_bytes:
        enough = format_bytes(_HOST_PER_DEVICE * device_cache_bytes)
        yield (
            f"`host.capacity`: {size} is less than {_HOST_PER_DEVICE} times the device cache "
            f"({format_bytes(device_cache_bytes)}): most of what it could hold is still on the device, so it gains "
            f"little; {enough} or more is better"
        )
    n_chunks = report.n_chunks(report.host)
    if n_chunks and report.chunk_tokens and n_chunks < _FEW_CHUNKS:
        tokens = n_chunks * report.chunk_tokens
        yield f"`host.capacity`: {size} is {n_chunks} chunks: one prompt of {tokens:,} tokens fills it"


def _of_disk(report: Report) -> Iterator[str]:
    space, tier = report.space, report.disk
    if space is None:
        return
    if not space.writable:
        yield f"`disk.path`: {space.path} cannot be written by this user: the disk tier would be off"
    if space.is_memory:
        yield f"`disk.path`: {space.path} is on {space.fs_type}: it takes RAM, and a reboot empties it"
    if space.is_network:
        yield f"`disk.path`: {space.path} is on {space.fs_type}, a network file system: LMDB needs a local disk"
    if space.is_layer:
        yield f"`disk.path`: {space.path} is in the container's own layer and goes with it: mount a volume there"
    if tier is None:
        return
    if tier.n_bytes == 0:
        yield f"`disk.capacity`: auto finds too little room at {space.path}: the disk tier would be off"
    elif report.host and tier.n_bytes < report.host.n_bytes:
        yield (
            f"`disk.capacity`: {format_bytes(tier.n_bytes)} is less than the host tier "
            f"({format_bytes(report.host.n_bytes)}): it adds little to it; several times as much is better"
        )
