"""What is in a cache directory: store -> namespaces with bytes, ratio, ages and hits -> a table or JSON. Looks only."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from kvtier.admin.directory import Named, read_names
from kvtier.keys import ADAPTER_BYTES, FAMILY_BYTES, NO_ADAPTER, NO_TENANT, tenant_of
from kvtier.store.listing import records_of
from kvtier.store.lmdb import LmdbStore
from kvtier.tables import columns
from kvtier.types import Record
from kvtier.units import format_age, format_bytes

HEAD: Final = ("namespace", "model", "kv", "epoch", "frames", "stored", "ratio", "oldest", "newest", "asked", "hits")
UNKNOWN: Final = "(unknown)"


@dataclass(slots=True)
class Holding:
    """All frames of one key family in one store."""

    family: bytes
    named: Named | None
    frames: int = 0
    stored_bytes: int = 0
    oldest_ns: int = 0
    newest_ns: int = 0
    adapters: set[bytes] = field(default_factory=set)
    tenants: set[bytes] = field(default_factory=set)

    def add(self, record: Record) -> None:
        """Count one frame."""
        self.oldest_ns = min(self.oldest_ns or record.written_ns, record.written_ns)
        self.newest_ns = max(self.newest_ns, record.written_ns)
        self.frames += 1
        self.stored_bytes += record.n_bytes
        self.adapters.add(record.key[FAMILY_BYTES : FAMILY_BYTES + ADAPTER_BYTES])
        self.tenants.add(tenant_of(record.key))

    @property
    def raw_bytes(self) -> int | None:
        """What the frames are uncompressed, where that is known."""
        chunk_bytes = self.named.chunk_bytes if self.named else None
        return chunk_bytes * self.frames if chunk_bytes else None

    @property
    def ratio(self) -> float | None:
        """Uncompressed bytes for one stored."""
        return self.raw_bytes / self.stored_bytes if self.raw_bytes and self.stored_bytes else None

    def to_tree(self) -> dict[str, Any]:
        """For machines."""
        named = self.named
        return {
            "family": self.family.hex(),
            "namespace": named.name if named else None,
            "model": named.model if named else None,
            "kv_dtype": named.dtype if named else None,
            "epoch": named.epoch if named else None,
            "current": named.current if named else False,
            "frames": self.frames,
            "stored_bytes": self.stored_bytes,
            "raw_bytes": self.raw_bytes,
            "compression_ratio": round(self.ratio, 4) if self.ratio else None,
            "oldest_written_s": self.oldest_ns / 1e9 if self.frames else None,
            "newest_written_s": self.newest_ns / 1e9 if self.frames else None,
            "adapters": sorted(adapter.hex() for adapter in self.adapters - {NO_ADAPTER}),
            "tenants": len(self.tenants - {NO_TENANT}),
            "usage": dict(named.usage) if named else {},
            "fields": dict(named.fields) if named else {},
        }


@dataclass(slots=True)
class Contents:
    """What one store holds."""

    path: Path
    capacity_bytes: int
    file_bytes: int
    n_shards: int
    holdings: list[Holding]  # the largest first; namespaces without a frame last
    notices: list[str]
    set_aside: list[str]  # names of damaged shards' files

    def to_tree(self) -> dict[str, Any]:
        """For machines: plain values, bytes, seconds since 1970; null where unknown."""
        return {
            "path": str(self.path),
            "capacity_bytes": self.capacity_bytes,
            "file_bytes": self.file_bytes,
            "shards": self.n_shards,
            "frames": sum(holding.frames for holding in self.holdings),
            "stored_bytes": sum(holding.stored_bytes for holding in self.holdings),
            "namespaces": [holding.to_tree() for holding in self.holdings],
            "set_aside": self.set_aside,
            "notices": self.notices,
        }

    def to_text(self, now_ns: int) -> str:
        """For people."""
        n_frames = sum(holding.frames for holding in self.holdings)
        stored = format_bytes(sum(holding.stored_bytes for holding in self.holdings))
        taken = f"{format_bytes(self.file_bytes)} of {format_bytes(self.capacity_bytes)}"
        lines = [f"{self.path}: {n_frames:,} frames, {stored}, in {self.n_shards} shards; files take {taken}"]
        if self.holdings:
            rows = [HEAD, *(tuple(_cells(holding, now_ns)) for holding in self.holdings)]
            lines += ["", *columns(rows, left=(0, 1, 2))]
        lines += [f"set aside: {name}; delete it to have its capacity back" for name in self.set_aside]
        return "\n".join([*lines, *(f"notice: {notice}" for notice in self.notices)])


def examine(path: Path) -> Contents:
    """Read the index of the store at `path`; engines may be using it. Raises StoreError."""
    names = read_names(path)
    store = LmdbStore.attach(path)
    try:
        holdings = _count(records_of(store.scan()), names)
        return Contents(
            path=path,
            capacity_bytes=store.capacity_bytes,
            file_bytes=store.file_bytes(),
            n_shards=store.n_shards,
            holdings=holdings,
            notices=list(store.notices),
            set_aside=sorted(file.name for file in path.glob("shard-*.broken-*")),
        )
    finally:
        store.close()


def _count(records: Iterable[Record], names: dict[bytes, Named]) -> list[Holding]:
    holdings = {family: Holding(family, named) for family, named in names.items() if named.current}
    for record in records:
        family = record.key[:FAMILY_BYTES]
        if family not in holdings:
            holdings[family] = Holding(family, names.get(family))
        holdings[family].add(record)
    return sorted(holdings.values(), key=lambda holding: (-holding.stored_bytes, holding.family))


def _cells(holding: Holding, now_ns: int) -> Iterator[str]:
    named = holding.named
    yield named.name if named else UNKNOWN
    yield named.model if named else f"family {holding.family.hex()}"
    yield named.dtype if named else "-"
    yield f"{named.epoch}{'' if named.current else ' (past)'}" if named else "-"
    yield f"{holding.frames:,}"
    yield format_bytes(holding.stored_bytes)
    yield f"{holding.ratio:.2f}" if holding.ratio else "-"
    for written_ns in (holding.oldest_ns, holding.newest_ns):
        yield format_age((now_ns - written_ns) / 1e9) if holding.frames else "-"
    usage = named.usage if named else {}
    asked = usage.get("asked_tokens", 0)
    hits = sum(usage.get(f"{tier}_hit_tokens", 0) for tier in ("device", "host", "disk"))
    yield f"{asked:,}" if asked else "-"
    yield f"{100 * hits / asked:.1f}%" if asked else "-"


def now_ns() -> int:
    """The wall clock that frames are dated by."""
    return time.time_ns()
