"""Deletion for good: a choice of frames -> gone from the index, and their bytes from the files."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvtier.admin.directory import Named, read_names
from kvtier.errors import InputError
from kvtier.keys import FAMILY_BYTES, tenant_digest, tenant_of
from kvtier.purges import Notice, post, unconfirmed, withdraw
from kvtier.store.listing import records_of
from kvtier.store.lmdb import LmdbStore
from kvtier.types import ChunkKey, Record
from kvtier.units import format_bytes

CONFIRM_S = 10.0
"""How long engines may take to drop from host RAM what is purged."""

_BATCH = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Which frames: those that fit everything that is given. Nothing given is everything."""

    namespace: str | None = None  # name or beginning of it, model, or key family in hex
    salt: str | None = None  # a tenant's `cache_salt`
    before_ns: int | None = None  # written earlier than this

    def families(self, names: dict[bytes, Named], present: set[bytes]) -> set[bytes]:
        """The key families that `namespace` means. InputError when it fits none, or several namespaces."""
        wanted = self.namespace
        if wanted is None:
            return present | set(names)
        fits = {
            family for family, named in names.items() if wanted in (named.name, named.model, named.fields.get("model"))
        }
        if not fits and len(wanted) >= 4:
            fits = {family for family, named in names.items() if named.name.startswith(wanted)}
        fits |= {family for family in present if family.hex() == wanted}
        namespaces = {names[family].name if family in names else family.hex() for family in fits}
        if not fits:
            known = sorted({f"{named.name} ({named.model})" for named in names.values()})
            raise InputError(
                f"--namespace {wanted!r}: there is none; there are: {', '.join(known) or 'none with a name'}"
            )
        if len(namespaces) > 1:
            raise InputError(f"--namespace {wanted!r} fits {', '.join(sorted(namespaces))}: name one of them")
        return fits


@dataclass(frozen=True, slots=True, kw_only=True)
class Purged:
    """What a purge did, or would do."""

    path: Path
    frames: int
    stored_bytes: int
    erased_bytes: int  # of the files, those of frames deleted earlier included
    set_aside: tuple[str, ...]  # files of damaged shards that went as well
    notices: tuple[str, ...]
    late: tuple[int, ...]  # processes of engines that did not say in time that they have dropped it from host RAM
    dry_run: bool

    def to_tree(self) -> dict[str, Any]:
        """For machines."""
        return {
            "path": str(self.path),
            "frames": self.frames,
            "stored_bytes": self.stored_bytes,
            "erased_bytes": self.erased_bytes,
            "set_aside": list(self.set_aside),
            "notices": list(self.notices),
            "engines_unconfirmed": list(self.late),
            "dry_run": self.dry_run,
        }

    def to_text(self) -> str:
        """For people."""
        what = f"{self.frames:,} frames, {format_bytes(self.stored_bytes)}"
        if self.dry_run:
            return f"{self.path}: would purge {what}"
        lines = [f"{self.path}: purged {what}; {format_bytes(self.erased_bytes)} of the files erased"]
        lines += [f"{self.path / name}: deleted with what was left in it" for name in self.set_aside]
        lines += [f"notice: {notice}" for notice in self.notices]
        if self.late:
            who = ", ".join(map(str, self.late))
            lines.append(f"warning: engines (process {who}) have not said yet that they dropped it from host RAM")
        return "\n".join(lines)


def purge(
    path: Path,
    choice: Choice,
    *,
    dry_run: bool = False,
    progress: Callable[[int, int], None] = lambda _done, _all: None,
) -> Purged:
    """Delete what `choice` means from the store at `path`, then erase all that deleted frames left in its files.

    Running engines drop what they hold of it in host RAM, and are waited for `CONFIRM_S`. Set-aside files of damaged
    shards are deleted too: nobody can tell what is in them. Raises InputError for a choice that cannot be meant,
    StoreError when the store cannot be opened or a shard cannot be erased.
    """
    names = read_names(path)
    store = LmdbStore.attach(path)
    try:
        records = list(records_of(store.scan()))
        families = choice.families(names, {record.key[:FAMILY_BYTES] for record in records})
        chosen = [record for record in records if _fits(record, families, choice)]
        aside = tuple(sorted(file.name for file in path.glob("shard-*.broken-*")))
        erased, late = 0, []
        if not dry_run:
            _delete(store, chosen, progress)
            late = _tell_engines(path, families, choice)
            # What an engine was writing when it heard of it has come to disk since.
            came = [record for record in records_of(store.scan()) if _fits(record, families, choice)]
            _delete(store, came, lambda *_: None)
            erased = store.erase_deleted()
            for name in aside:
                (path / name).unlink(missing_ok=True)
        return Purged(
            path=path,
            frames=len(chosen),
            stored_bytes=sum(record.n_bytes for record in chosen),
            erased_bytes=erased,
            set_aside=aside,
            notices=tuple(store.notices),
            late=tuple(late),
            dry_run=dry_run,
        )
    finally:
        store.close()


def _fits(record: Record, families: set[bytes], choice: Choice) -> bool:
    return (
        record.key[:FAMILY_BYTES] in families
        and (choice.salt is None or tenant_of(record.key) == tenant_digest(choice.salt))
        and (choice.before_ns is None or record.written_ns < choice.before_ns)
    )


def _tell_engines(path: Path, families: set[bytes], choice: Choice) -> list[int]:
    """Have running engines drop what is chosen from host RAM; the processes of those that did not say so in time."""
    if not unconfirmed(path, ""):
        return []
    tenant = None if choice.salt is None else tenant_digest(choice.salt)
    name = post(path, Notice(frozenset(families), tenant, choice.before_ns is not None))
    give_up_s = time.monotonic() + CONFIRM_S
    while late := unconfirmed(path, name):
        if time.monotonic() > give_up_s:
            return late  # the notice stays: they may carry it out yet
        time.sleep(0.05)
    withdraw(path, name)
    return []


def _delete(store: LmdbStore, records: list[Record], progress: Callable[[int, int], None]) -> None:
    by_shard: dict[int, list[ChunkKey]] = {}
    for record in records:
        by_shard.setdefault(record.shard, []).append(record.key)
    n_done = 0
    for shard, keys in by_shard.items():
        for start in range(0, len(keys), _BATCH):
            store.write(shard, [], keys[start : start + _BATCH])
            n_done += len(keys[start : start + _BATCH])
            progress(n_done, len(records))
    store.sync()
