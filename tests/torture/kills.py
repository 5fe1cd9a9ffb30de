"""SIGKILL at random moments: a child serves, spills, evicts, syncs, opens and resizes; its parent ends it and looks.

The child keeps a journal, in a file of its own, of what its store had committed. After each kill the store is opened
again and compared with it: a process that dies loses nothing that was committed.
"""

import json
import os
import random
import signal
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from kvtier.codec.frame import open_into
from kvtier.errors import FrameError
from kvtier.store.base import News, SharedStore
from kvtier.store.listing import Listing, records_of
from kvtier.store.lmdb import LmdbStore
from kvtier.types import ChunkKey, UsePages
from tests.torture.engine import CHUNK_BYTES, MIB, SHARD_BYTES, Engine, content, traffic
from tests.torture.scenario import Row, Setting, in_child, timed

CAPACITIES = (24 * MIB, 32 * MIB, 40 * MIB)
_NOTE = struct.Struct("<cHB64s")  # what, shard, length of the key, key
PUT, DELETE, END, SCANNED = b"P", b"D", b"E", b"S"


def killed_engines(setting: Setting) -> Iterator[Row]:
    """kill -9 under load"""
    row, rng = Row("kill", "SIGKILL of the cache process under load"), setting.rng("kills")
    folder, journal = setting.folder / "store", setting.folder / "journal"
    totals: dict[str, int] = {}
    capacity = rng.choice(CAPACITIES)
    with timed(row):
        for n in range(setting.n(200, 12)):
            setting.tell(f"kill {n}")
            if rng.random() < 0.2:
                capacity = rng.choice(CAPACITIES)
            delay_s = rng.choice(
                [rng.uniform(0, 0.05), *[rng.uniform(0.05, 1.0)] * 3]
            )  # while opening, and while serving
            _run_and_kill(folder, journal, capacity, seed=rng.randrange(1 << 30), delay_s=delay_s, row=row)
            seen = json.loads(in_child(lambda capacity=capacity: _look(folder, journal, capacity)))  # type: ignore[misc]
            for name, count in {**seen, "with_a_loss": bool(seen["lost"])}.items():
                totals[name] = totals.get(name, 0) + count
            row.injected += 1
            if not folder.exists():
                continue
            n_bytes = sum(path.lstat().st_size for path in folder.glob("*") if path.is_file())
            row.expect(n_bytes <= max(CAPACITIES), f"kill {n}: {n_bytes} bytes on disk")
    row.harmless = row.injected - totals["with_a_loss"]
    row.served_wrong += totals.pop("wrong")
    kept = 100 * (1 - totals["lost"] / max(1, totals["committed"]))
    row.figures |= totals | {"kept_percent": round(kept, 3)}
    row.expect(kept >= 99, f"{totals['lost']} of {totals['committed']} committed frames were lost")
    row.expect(not totals["aside"], "a kill left a shard that had to be set aside")
    row.expect(not totals["does_not_verify"], "a kill left frames that do not verify")
    row.expect(not totals["over_capacity"], "files were larger than the capacity")
    row.expect(not row.served_wrong and not row.failed_requests, "a request failed or was served wrong bytes")
    yield row


def _run_and_kill(folder: Path, journal: Path, capacity: int, *, seed: int, delay_s: float, row: Row) -> None:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        try:
            _serve_for_ever(folder, journal, capacity, seed, writer)
        finally:
            os._exit(3)  # it never returns unless something went wrong
    os.close(writer)
    time.sleep(delay_s)
    os.kill(pid, signal.SIGKILL)
    with os.fdopen(reader) as said_by:
        for line in said_by.read().splitlines():
            seen = json.loads(line)
            row.requests += 1
            row.served_wrong += seen["wrong"]
            row.failed_requests += seen["failed"]
            row.worst_call_s = max(row.worst_call_s, seen["worst_call_s"])
            row.violations += seen["errors"]
    _, status = os.waitpid(pid, 0)
    row.expect(os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, f"the child ended by itself: {status}")


def _serve_for_ever(folder: Path, journal: Path, capacity: int, seed: int, writer: int) -> None:
    rng = random.Random(seed)
    engine = Engine(
        folder,
        capacity_bytes=capacity,
        disk={"sync_every": f"{rng.choice([20, 200, 5000])}ms"},
        wrap=lambda store: Journal(store, journal),
    )
    if not engine.has_disk:
        os.write(writer, _line({"wrong": 0, "failed": 0, "worst_call_s": 0, "errors": engine.reports}))
    while True:
        # More prompts than fit, so that every start evicts; those few requested most often are always there.
        traffic(engine, rng, n_prompts=400)
        done = engine.outcome
        worst = {"wrong": done.wrong, "failed": done.failed, "worst_call_s": done.worst_call_s, "errors": done.errors}
        os.write(writer, _line(worst))
        done.wrong = done.failed = 0
        done.errors = []


def _line(what: dict[str, Any]) -> bytes:
    return json.dumps(what).encode() + b"\n"


class Journal:
    """A store that notes every write before and after: what the file says was ended, the medium must have."""

    def __init__(self, inner: SharedStore, path: Path) -> None:
        self._inner = inner
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)

    @property
    def n_shards(self) -> int:
        return self._inner.n_shards

    @property
    def shard_bytes(self) -> int:
        return self._inner.shard_bytes

    def frame_cost(self, n_bytes: int) -> int:
        return self._inner.frame_cost(n_bytes)

    def written_before(self, shard: int, before_ns: int) -> list[ChunkKey]:
        return self._inner.written_before(shard, before_ns)

    def scan(self) -> Iterator[Listing]:
        listings = list(self._inner.scan())
        self._note(b"".join(_note(SCANNED, r.shard, r.key) for r in records_of(listings)) + _note(END, 0, b""))
        return iter(listings)

    def write(self, shard: int, puts: Sequence[tuple[ChunkKey, memoryview]], deletes: Sequence[ChunkKey]) -> None:
        notes = [_note(DELETE, shard, key) for key in deletes] + [_note(PUT, shard, key) for key, _ in puts]
        self._note(b"".join(notes))
        self._inner.write(shard, puts, deletes)
        self._note(_note(END, shard, b""))

    def read(self, shard: int, key: ChunkKey) -> AbstractContextManager[memoryview | None]:
        return self._inner.read(shard, key)

    def lend(self, wanted: Sequence[tuple[int, ChunkKey]], use: UsePages) -> list[bool]:
        return self._inner.lend(wanted, use)

    @property
    def opened_alone(self) -> bool:
        return self._inner.opened_alone

    def is_behind(self, shard: int) -> bool:
        return self._inner.is_behind(shard)

    def news(self, shard: int) -> News:
        return self._inner.news(shard)

    def release_dead(self) -> None:
        self._inner.release_dead()

    def sync(self) -> None:
        self._inner.sync()

    def close(self) -> None:
        self._inner.close()

    def _note(self, notes: bytes) -> None:
        os.write(self._fd, notes)


def _note(what: bytes, shard: int, key: bytes) -> bytes:
    return _NOTE.pack(what, shard, len(key), key)


def _committed(journal: Path) -> tuple[set[tuple[int, bytes]], set[tuple[int, bytes]]] | None:
    """What was surely there, and what the interrupted write may have added or removed. None: it had not opened."""
    if not journal.exists():
        return None
    there: set[tuple[int, bytes]] = set()
    batch: list[tuple[bytes, int, bytes]] = []
    opened = False
    data = journal.read_bytes()
    for kind, shard, n_bytes, padded in _NOTE.iter_unpack(data[: len(data) // _NOTE.size * _NOTE.size]):
        if kind != END:
            batch.append((kind, shard, padded[:n_bytes]))
            continue
        opened = True
        for what, at, of in batch:
            (there.discard if what == DELETE else there.add)((at, of))
        batch = []
    return (there, {(at, of) for _, at, of in batch}) if opened else None


def _look(folder: Path, journal: Path, capacity: int) -> str:
    """Open what the killed process left, as the next start would, and compare."""
    expected = _committed(journal)
    journal.unlink(missing_ok=True)
    seen = dict.fromkeys(
        ("killed_before_it_opened", "committed", "lost", "wrong", "does_not_verify", "aside", "over_capacity"), 0
    )
    seen["killed_before_it_opened"] = expected is None
    if not folder.exists():
        return json.dumps(seen)
    store = LmdbStore.open(folder, capacity, shard_map_bytes=SHARD_BYTES)
    seen["aside"] = sum("set aside" in line for line in store.notices)
    found = set()
    out = memoryview(bytearray(CHUNK_BYTES))
    for record in list(records_of(store.scan())):
        try:
            with store.read(record.shard, record.key) as frame:
                assert frame is not None
                open_into(frame, out, key=record.key)
        except FrameError:
            seen["does_not_verify"] += 1
        else:
            seen["wrong"] += bytes(out) != content(record.key)
            found.add((record.shard, bytes(record.key)))
    if expected is not None:
        surely = expected[0] - expected[1]
        seen["committed"] = len(surely)
        seen["lost"] = len(surely - found)
    store.close()
    seen["over_capacity"] = sum(path.lstat().st_size for path in folder.glob("*") if path.is_file()) > capacity
    return json.dumps(seen)
