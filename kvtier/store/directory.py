"""Settling a store's directory before use: what is on disk -> whole, private shard files together within capacity.

Every step leaves a directory that the next start understands, wherever a crash falls: files come before the manifest
that lists them, and go after the manifest that does not.
"""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple, Protocol

from kvtier.errors import StoreError
from kvtier.store.lmdb_file import FRONT_BYTES, cut_back, fetch, find_damage
from kvtier.store.manifest import (
    MANIFEST,
    MANIFEST_BYTES,
    Manifest,
    Plan,
    boot_id,
    pid_namespace,
    plan_shards,
    read_manifest,
    shards_bytes,
    write_manifest,
)
from kvtier.store.private import keep_private

LOCK = "kvtier-store.lock"
OUR_NAMES = re.compile(r"kvtier-.*|shard-.*|format-.*|namespaces|purges|engines|lost\+found")
_SHARD = re.compile(r"shard-(\d{4})\.lmdb")
_BROKEN = re.compile(r"shard-\d{4}\.lmdb\.broken-.*")

# A damaged shard is kept for whoever wants to look into it, but in the place of a whole one: up to this share of the
# capacity, so that a machine that nobody looks after keeps most of its cache.
_BROKEN_SHARE = 0.25

INSPECT_S = 0.5
"""A start walks the trees of all shards, which liblmdb trusts: of 400 random bits flipped in tree pages 2 ended the
process by a signal and 16 left a store that could not be opened, and the walk found each of them. So many seconds it
also looks at the first pages of values, one small read each, which matter when a value is deleted (40,000 to 57,000 of
a million that were on the disk, with other work on the machine); after a reboot at those of all."""

WALKED_TOGETHER = 16
"""Shards of which the disk is asked for pages before any of them is waited for."""

PROGRESS_S = 5.0
"""A start that takes longer than this says so as often, and how far it is."""


class Summary(NamedTuple):
    """What a shard holds."""

    n_frames: int
    newest_ns: int  # when its youngest frame was written; 0 when it is empty


class Shards(Protocol):
    """What must be done to shard files through the database library. Every failure is a StoreError."""

    def create(self, path: Path, map_bytes: int) -> None:
        """Make an empty shard file of exactly `map_bytes`, where nothing is yet."""
        ...

    def summarize(self, path: Path, map_bytes: int) -> Summary:
        """Read what a shard holds; StoreError when it cannot be read."""
        ...

    def walk(self, paths: Sequence[Path]) -> list[str | None]:
        """Walk the trees of shards without trusting them: of each the first damage found, or None. Any thread."""
        ...

    def look(self, path: Path, until_s: float) -> str | None:
        """Look at where the values of a shard that was walked begin, until then (monotonic): as `walk`."""
        ...


class Settled(NamedTuple):
    """A directory ready for use."""

    manifest: Manifest
    notices: list[str]  # what the operator should know, one line each
    dropped_frames: int  # that had to go because the capacity is smaller than before
    alone: bool = True  # nobody else had it open


def shard_path(directory: Path, number: int) -> Path:
    """The data file of a shard."""
    return directory / f"shard-{number:04}.lmdb"


def shard_number(path: Path) -> int:
    """The number in the name of a shard's data file."""
    match = _SHARD.fullmatch(path.name)
    assert match is not None, path
    return int(match[1])


def lock_path(shard: Path) -> Path:
    """The lock file that LMDB keeps beside a data file."""
    return shard.with_name(shard.name + "-lock")


def settle(
    directory: Path,
    capacity_bytes: int,
    target_map_bytes: int,
    shards: Shards,
    *,
    inspect: bool,
    report: Callable[[str], None],
) -> Settled:
    """Bring `directory` to a state in which every listed shard is whole and all files fit `capacity_bytes`.

    The caller holds the directory alone. `inspect` looks at where every value begins, however long that takes. `report`
    prints a line every `PROGRESS_S`.
    """
    return _Settling(directory, capacity_bytes, shards, report).run(target_map_bytes, inspect=inspect)


class _Settling:
    def __init__(self, directory: Path, capacity_bytes: int, shards: Shards, report: Callable[[str], None]) -> None:
        self._directory = directory
        self._capacity_bytes = capacity_bytes
        self._shards = shards
        self._report = report
        self._notices: list[str] = []
        self._dropped = 0

    def run(self, target_map_bytes: int, *, inspect: bool) -> Settled:
        before = self._read()
        self._remove_unlisted(before)
        here = boot_id()
        inspect = inspect or not here or before.boot_id != here
        until_s = float("inf") if inspect else time.monotonic() + INSPECT_S
        # In another order each time: where not all can be walked, a damaged one is met sooner or later.
        order = random.sample(before.shards, len(before.shards))
        whole = self._vet(order, before.map_bytes, values_until_s=until_s)
        broken_bytes = self._trim_broken(len(whole), before.map_bytes)
        budget_bytes = self._capacity_bytes - MANIFEST_BYTES - broken_bytes
        plan = plan_shards(budget_bytes, target_map_bytes, Plan(len(whole), before.map_bytes))
        kept = self._drop_oldest(whole, 0 if plan.map_bytes < before.map_bytes else plan.n_shards, before)
        if not (self._directory / MANIFEST).exists():
            # Without one, a shard whose creation is cut short would be taken for a damaged one.
            write_manifest(self._directory, before._replace(map_bytes=before.map_bytes or plan.map_bytes))
        if kept and plan.map_bytes > before.map_bytes:
            for number in kept:
                os.truncate(shard_path(self._directory, number), plan.map_bytes)
        numbers = sorted(kept)
        unused = (number for number in range(10_000) if number not in kept)
        while len(numbers) < plan.n_shards:
            numbers.append(self._create(next(unused), plan.map_bytes))
        manifest = Manifest(plan.map_bytes, self._capacity_bytes, tuple(sorted(numbers)), here, pid_namespace())
        if manifest != before:
            write_manifest(self._directory, manifest)
        return Settled(manifest, self._notices, self._dropped)

    def _read(self) -> Manifest:
        """The manifest, or one made up from the files when it is lost."""
        manifest = read_manifest(self._directory)
        if manifest is not None:
            return manifest
        lengths = {number: shard_path(self._directory, number).lstat().st_size for number in self._numbers()}
        usual = max(set(lengths.values()), key=list(lengths.values()).count, default=0)
        if lengths or (self._directory / MANIFEST).exists():
            self._notices.append(
                f"{self._directory / MANIFEST} is missing or unreadable; written anew from {len(lengths)} shard files"
            )
        return Manifest(usual, self._capacity_bytes, tuple(lengths), "")

    def _numbers(self) -> list[int]:
        found = (_SHARD.fullmatch(path.name) for path in self._directory.iterdir())
        return sorted(int(match[1]) for match in found if match)

    def _remove_unlisted(self, manifest: Manifest) -> None:
        """Files of a start that was cut short, before it had listed them or after it had struck them off."""
        for draft in self._directory.glob(f"{MANIFEST}.*.new"):
            draft.unlink()
        for number in self._numbers():
            if number not in manifest.shards:
                self._remove(number)

    def _vet(self, numbers: list[int], map_bytes: int, *, values_until_s: float) -> list[int]:
        """Those of the shards that are whole. Damaged ones are out of the way afterwards.

        A thread walks ahead, while this one looks at values.
        """
        whole: list[int] = []
        next_report_s = time.monotonic() + PROGRESS_S
        groups = [numbers[at : at + WALKED_TOGETHER] for at in range(0, len(numbers), WALKED_TOGETHER)]
        with ThreadPoolExecutor(1, thread_name_prefix="kvtier-walk") as walker:
            found = chain.from_iterable(walker.map(partial(self._walk, map_bytes), groups))
            for n_done, (number, damage) in enumerate(zip(numbers, found, strict=True)):
                if time.monotonic() > next_report_s:
                    self._report(f"{self._directory}: {n_done} of {len(numbers)} shards looked at")
                    next_report_s += PROGRESS_S
                damage = damage or self._shards.look(shard_path(self._directory, number), values_until_s)  # noqa: PLW2901
                if damage is None:
                    whole.append(number)
                else:
                    self._set_aside(number, damage)
        return whole

    def _walk(self, map_bytes: int, numbers: list[int]) -> list[str | None]:
        paths = [shard_path(self._directory, number) for number in numbers]
        damages: dict[Path, str | None] = {}
        for path in paths:
            fetch(path, FRONT_BYTES)
            fetch(lock_path(path), FRONT_BYTES)
        for path in paths:
            keep_private(path)
            keep_private(lock_path(path))
            cut_back(path, map_bytes)  # a start that was to lengthen it may have been cut short
            damages[path] = find_damage(path, map_bytes)
        sound = [path for path in paths if damages[path] is None]
        damages |= zip(sound, self._shards.walk(sound), strict=True)
        return [damages[path] for path in paths]

    def _set_aside(self, number: int, damage: str) -> None:
        path = shard_path(self._directory, number)
        lock_path(path).unlink(missing_ok=True)
        if not path.exists():
            self._notices.append(f"{path}: {damage}; its frames are lost, begun anew")
            return
        aside = path.with_name(f"{path.name}.broken-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}")
        path.replace(aside)
        self._notices.append(f"{path}: {damage}; set aside as {aside.name}, its frames are lost, begun anew")

    def _trim_broken(self, n_whole: int, map_bytes: int) -> int:
        """Keep the newest set-aside files that fit beside the whole shards, delete the others; bytes to set apart."""
        room_bytes = self._capacity_bytes - MANIFEST_BYTES - shards_bytes(n_whole, map_bytes)
        kept_bytes = 0
        broken = [path for path in self._directory.iterdir() if _BROKEN.fullmatch(path.name)]
        for path in sorted(broken, key=lambda path: path.name.partition(".broken-")[2], reverse=True):
            n_bytes = shards_bytes(1, max(map_bytes, path.lstat().st_size))
            if kept_bytes + n_bytes <= min(room_bytes, self._capacity_bytes * _BROKEN_SHARE):
                kept_bytes += n_bytes
                self._notices.append(f"{path} takes {n_bytes} bytes of the capacity; delete it to give them back")
            else:
                path.unlink()
                self._notices.append(f"{path} deleted: set-aside files may take a quarter of the capacity at most")
        return kept_bytes

    def _drop_oldest(self, whole: list[int], n_kept: int, before: Manifest) -> set[int]:
        """Remove shards until `n_kept` are left, the ones whose youngest frame is oldest first."""
        if len(whole) <= n_kept:
            return set(whole)
        holds = {number: self._summarize(number, before.map_bytes) for number in whole}
        by_age = sorted(whole, key=lambda number: (holds[number].newest_ns, number), reverse=True)
        kept, dropped = by_age[:n_kept], by_age[n_kept:]
        self._dropped = sum(holds[number].n_frames for number in dropped)
        write_manifest(self._directory, before._replace(shards=tuple(sorted(kept))))
        for number in dropped:
            self._remove(number)
        self._notices.append(
            f"{self._directory}: capacity is {self._capacity_bytes} bytes now; {len(dropped)} of {len(whole)} "
            f"shards and {self._dropped} frames dropped to fit"
        )
        return set(kept)

    def _summarize(self, number: int, map_bytes: int) -> Summary:
        try:
            return self._shards.summarize(shard_path(self._directory, number), map_bytes)
        except StoreError:
            return Summary(0, 0)  # unreadable: the first to go

    def _create(self, number: int, map_bytes: int) -> int:
        self._shards.create(shard_path(self._directory, number), map_bytes)
        return number

    def _remove(self, number: int) -> None:
        path = shard_path(self._directory, number)
        path.unlink(missing_ok=True)
        lock_path(path).unlink(missing_ok=True)
