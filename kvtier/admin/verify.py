"""Every frame of a store read, checked and decoded, as an engine would: store -> what does not verify, and why."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Final, NamedTuple

from kvtier.codec.frame import HEADER_BYTES, check_identity, open_into, verify_frame
from kvtier.codec.guard import KEY_ID_BYTES, PLAIN, Guard
from kvtier.errors import FrameError, FrameForeignError, StoreError
from kvtier.store.listing import records_of
from kvtier.store.lmdb import LmdbStore
from kvtier.types import ChunkKey, Record

MAX_CHUNK_BYTES: Final = 1 << 30
"""A frame that claims a larger chunk is taken for a forgery: nothing is allocated for it."""

SHOWN: Final = 20
"""Bad frames that a report for people names."""

_BATCH = 64  # frames under way at once


class Bad(NamedTuple):
    """A frame that no engine would use."""

    key: ChunkKey
    shard: int
    kind: str  # corrupt, foreign or unreadable
    why: str


@dataclass(slots=True)
class Findings:
    """Result of verifying one store."""

    path: Path
    notices: list[str]
    frames: int = 0  # that were read and verify
    raw_bytes: int = 0
    stored_bytes: int = 0
    locked: int = 0  # of `frames`: under a key that is not at hand, so checked for damage and identity alone
    gone: int = 0  # deleted by an engine meanwhile
    bad: list[Bad] = field(default_factory=list)
    deleted: int = 0

    @property
    def sound(self) -> bool:
        """Whether nothing bad is left."""
        return len(self.bad) == self.deleted and not self.notices

    def to_tree(self) -> dict[str, Any]:
        """For machines."""
        return {
            "path": str(self.path),
            "sound_frames": self.frames,
            "raw_bytes": self.raw_bytes,
            "stored_bytes": self.stored_bytes,
            "locked_frames": self.locked,
            "gone_frames": self.gone,
            "bad_frames": [
                {"key": bad.key.hex(), "shard": bad.shard, "kind": bad.kind, "why": bad.why} for bad in self.bad
            ],
            "deleted_frames": self.deleted,
            "notices": self.notices,
            "sound": self.sound,
        }

    def to_text(self) -> str:
        """For people."""
        gone = f", {self.gone:,} deleted by an engine meanwhile" * bool(self.gone)
        lines = [f"{self.path}: {self.frames:,} frames verify{gone}; {len(self.bad):,} do not"]
        lines += [f"  {bad.key.hex()[:64]} in shard {bad.shard}: {bad.kind}: {bad.why}" for bad in self.bad[:SHOWN]]
        if self.locked:
            lines.append(f"  {self.locked:,} are under a key that was not given: checked for damage, not opened")
        if len(self.bad) > SHOWN:
            lines.append(f"  and {len(self.bad) - SHOWN:,} more (--json names all)")
        if self.deleted:
            lines.append(f"  {self.deleted:,} deleted")
        elif self.bad:
            lines.append("  --fix deletes them; an engine that meets one does the same and recomputes")
        return "\n".join([*lines, *(f"notice: {notice}" for notice in self.notices)])


def verify(
    path: Path,
    *,
    fix: bool = False,
    guard: Guard = PLAIN,
    progress: Callable[[int, int], None] = lambda _done, _all: None,
) -> Findings:
    """Check every frame of the store at `path`, on all cores; engines may be using it.

    Frames under the key of `guard` are opened; under other keys only damage and a wrong place can be found.
    `progress` is called with frames done and frames in all. With `fix` the bad ones are deleted, save those that could
    not be read. Raises StoreError when the store cannot be opened or its index cannot be read.
    """
    store = LmdbStore.attach(path)
    try:
        records = sorted(records_of(store.scan()), key=lambda record: (record.shard, record.written_ns))
        findings = Findings(path, list(store.notices))
        with ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="kvtier-verify") as pool:
            waiting = iter(records)
            for done in range(0, len(records), _BATCH):
                batch = list(islice(waiting, _BATCH))
                for record, outcome in zip(
                    batch, pool.map(lambda record: _check(store, record, guard), batch), strict=True
                ):
                    _tell(findings, record, outcome)
                progress(min(done + _BATCH, len(records)), len(records))
        if fix:
            findings.deleted = _delete(store, findings.bad)
        return findings
    finally:
        store.close()


class _Sound(NamedTuple):
    raw_bytes: int
    locked: bool


def _check(store: LmdbStore, record: Record, guard: Guard) -> Bad | _Sound | None:
    """What is in a sound frame, None when it is gone, or what is wrong with it."""
    try:
        with store.read(record.shard, record.key) as frame:
            if frame is None:
                return None
            header = verify_frame(frame)
            n_bytes = header.raw_bytes
            if header.flags and not _is_under(guard, frame, header.flags):
                check_identity(header, record.key)
                return _Sound(n_bytes, locked=True)
            if n_bytes > MAX_CHUNK_BYTES:
                raise FrameForeignError(f"frame of a chunk of {n_bytes} bytes, at most {MAX_CHUNK_BYTES} are believed")
            out = memoryview(bytearray(n_bytes))
            open_into(frame, out, key=record.key, guard=guard if header.flags else PLAIN)
            return _Sound(n_bytes, locked=False)
    except FrameError as error:
        kind = "foreign" if isinstance(error, FrameForeignError) else "corrupt"
        return Bad(record.key, record.shard, kind, str(error))
    except StoreError as error:
        return Bad(record.key, record.shard, "unreadable", str(error))


def _is_under(guard: Guard, frame: memoryview, flags: int) -> bool:
    return flags == guard.flags and guard.name.endswith(bytes(frame[HEADER_BYTES:][:KEY_ID_BYTES]).hex())


def _tell(findings: Findings, record: Record, outcome: Bad | _Sound | None) -> None:
    if isinstance(outcome, Bad):
        findings.bad.append(outcome)
    elif outcome is None:
        findings.gone += 1
    else:
        findings.frames += 1
        findings.raw_bytes += outcome.raw_bytes
        findings.locked += outcome.locked
        findings.stored_bytes += record.n_bytes


def _delete(store: LmdbStore, bad: list[Bad]) -> int:
    """Delete what was found bad, shard by shard; how many."""
    n_deleted = 0
    for shard, keys in _by_shard(bad):
        store.write(shard, [], keys)
        n_deleted += len(keys)
    store.sync()
    return n_deleted


def _by_shard(bad: list[Bad]) -> Iterator[tuple[int, list[ChunkKey]]]:
    for shard in sorted({one.shard for one in bad}):
        keys = [one.key for one in bad if one.shard == shard and one.kind != "unreadable"]
        if keys:
            yield shard, keys
