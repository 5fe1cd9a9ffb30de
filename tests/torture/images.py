"""Crash images: what a store's file can look like after the process died, or the power went, at any moment.

A scripted history is written through the real store; every page that each commit and each sync changed is kept. A
process that dies in the middle of a commit leaves some of its pages; a machine that loses power leaves, of each page
changed since the last sync, any version since then. Each image is opened and everything in it is read.
"""

import json
import random
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from kvtier.codec.frame import frame_bound, open_into, seal_into
from kvtier.codec.registry import codec_for
from kvtier.errors import FrameError, StoreError
from kvtier.store.base import SharedStore
from kvtier.store.listing import records_of
from kvtier.store.lmdb import LmdbStore
from kvtier.testing.faults import Fault, FaultyStore
from kvtier.types import NAMESPACE_BYTES, ChunkKey
from tests.torture.engine import MIB, Engine, content, traffic
from tests.torture.scenario import ChildDiedError, Row, Setting, in_child, timed

CAPACITY_BYTES = 16 * MIB  # one shard: what a power loss does to one it does to each
CHUNK_BYTES = 20_000
SHARD = "shard-0000.lmdb"
PAGE = 4096
SYNC_EVERY = 7
IMAGES_PER_CHILD = 25

Pages = dict[int, bytes]


class Step(NamedTuple):
    """One commit of the history."""

    pages: Pages  # that it changed
    live: frozenset[ChunkKey]  # frames there are afterwards
    synced: bool  # whether a sync followed


def crash_images(setting: Setting) -> Iterator[Row]:
    """Crashes at every write"""
    folder = setting.folder / "history"
    n_commits = setting.n(150, 40)
    birth, steps = record(folder, setting.rng("history"), n_commits)
    yield process_death(setting, folder, birth, steps)
    yield power_loss(setting, folder, birth, steps)
    yield power_loss_of_synced_commits(setting, folder, birth, steps)
    yield from failing_stores(setting)


def record(folder: Path, rng: random.Random, n_commits: int) -> tuple[Pages, list[Step]]:
    """Write the history. Returns the file as it was born and what each commit did to it."""
    store = LmdbStore.open(folder, CAPACITY_BYTES, shard_map_bytes=CAPACITY_BYTES)
    shard = folder / SHARD
    room, codec = memoryview(bytearray(frame_bound(CHUNK_BYTES, codec_for("bfloat16")))), codec_for("bfloat16")
    file = bytes(shard.stat().st_size)
    birth = _changed(shard.read_bytes(), file)
    live: dict[ChunkKey, int] = {}
    steps: list[Step] = []
    for n in range(n_commits):
        deletes = rng.sample(sorted(live), min(len(live), rng.randrange(6)))
        puts = []
        for _ in range(rng.randrange(1, 9)):
            key = ChunkKey(bytes(NAMESPACE_BYTES) + rng.randbytes(32))
            chunk = memoryview(content(key, CHUNK_BYTES))
            puts.append((key, memoryview(bytes(room[: seal_into(chunk, room, key=key, codec=codec)]))))
        full = sum(live.values()) + sum(store.frame_cost(len(frame)) for _, frame in puts) > store.shard_bytes
        deletes += [key for key in list(live)[: 20 * full] if key not in deletes]
        store.write(0, puts, deletes)
        for key in deletes:
            del live[key]
        live |= {key: store.frame_cost(len(frame)) for key, frame in puts}
        synced = n % SYNC_EVERY == SYNC_EVERY - 1
        if synced:
            store.sync()
        now = shard.read_bytes()
        steps.append(Step(_changed(now, file), frozenset(live), synced))
        file = now
    store.close()
    return birth, steps


def _changed(now: bytes, before: bytes) -> Pages:
    pages = ((at, now[at : at + PAGE]) for at in range(0, len(now), PAGE))
    return {at: page for at, page in pages if page != before[at : at + PAGE]}


def process_death(setting: Setting, folder: Path, birth: Pages, steps: Sequence[Step]) -> Row:
    """The page cache survives: everything before the commit is there, and any of its pages but the meta page."""
    row, rng = Row("crash", "process dies in the middle of a commit"), setting.rng("death")
    images: list[tuple[Pages, frozenset[ChunkKey]]] = []
    so_far: Pages = birth
    before: frozenset[ChunkKey] = frozenset()
    for step in steps:
        data = [at for at in step.pages if at >= 2 * PAGE]
        for n_written in (0, rng.randrange(len(data) + 1), len(data)):
            written = {at: step.pages[at] for at in data[:n_written]}
            images.append((so_far | written, before))
        so_far, before = so_far | step.pages, step.live
    _open_all(setting, row, folder, images, rebooted=False)
    row.expect(row.figures["lost"] == 0, f"{row.figures['lost']} committed frames were lost")
    return row


def power_loss_of_synced_commits(setting: Setting, folder: Path, birth: Pages, steps: Sequence[Step]) -> Row:
    """With `durability: commit` a commit's pages are on the medium before its meta page is written."""
    row, rng = Row("crash", "power lost, durability: commit"), setting.rng("commit")
    images: list[tuple[Pages, frozenset[ChunkKey]]] = []
    so_far: Pages = birth
    before: frozenset[ChunkKey] = frozenset()
    for step in steps:
        some = {at: page for at, page in step.pages.items() if at >= 2 * PAGE and rng.random() < 0.5}
        images.append((so_far | some, before))
        so_far, before = so_far | step.pages, step.live
        images.append((so_far, before))
    _open_all(setting, row, folder, images, rebooted=True)
    row.expect(row.figures["lost"] == 0, f"{row.figures['lost']} committed frames were lost")
    row.expect(row.figures["aside"] == 0, f"{row.figures['aside']} shards were set aside")
    return row


def power_loss(setting: Setting, folder: Path, birth: Pages, steps: Sequence[Step]) -> Row:
    """What was synced is there; of each page written since, any version."""
    row, rng = Row("crash", "power lost, durability: interval"), setting.rng("power")
    images: list[tuple[Pages, frozenset[ChunkKey]]] = []
    synced: Pages = birth
    promised: frozenset[ChunkKey] = frozenset()
    since: dict[int, list[bytes]] = {}
    deleted: set[ChunkKey] = set()
    for step, before in zip(steps, [None, *steps], strict=False):
        for at, page in step.pages.items():
            since.setdefault(at, [synced.get(at, bytes(PAGE))]).append(page)
        deleted |= (before.live if before else frozenset()) - step.live
        for kept in (0.5, rng.random()):
            drawn = {at: rng.choice(v) if rng.random() < kept else v[0] for at, v in since.items()}
            images.append((synced | drawn, promised - deleted))
        if step.synced:
            synced = synced | {at: versions[-1] for at, versions in since.items()}
            images.append((synced, step.live))
            promised, since, deleted = step.live, {}, set()
    _open_all(setting, row, folder, images, rebooted=True)
    return row


def _open_all(
    setting: Setting, row: Row, folder: Path, images: Sequence[tuple[Pages, frozenset[ChunkKey]]],
    *, rebooted: bool,
) -> None:  # fmt: skip
    """Open every image and read all of it, in children: a file that kills is to be counted, not to end the run."""
    totals = dict.fromkeys(("promised", "lost", "wrong", "refused", "aside", "too_big", "not_writable"), 0)
    with timed(row):
        for first in range(0, len(images), IMAGES_PER_CHILD):
            setting.tell(f"{row.fault}: {first} of {len(images)}")
            some = images[first : first + IMAGES_PER_CHILD]

            def open_some(some: Sequence[tuple[Pages, frozenset[ChunkKey]]] = some) -> str:
                found = dict.fromkeys(totals, 0)
                for image, promised in some:
                    work = _image(setting.folder / "image", folder, image, rebooted=rebooted)
                    for name, n in _read_back(work, promised).items():
                        found[name] += n
                return json.dumps(found)

            try:
                for name, n in json.loads(in_child(open_some)).items():
                    totals[name] += n
            except ChildDiedError as death:
                row.violations.append(f"one of images {first} to {first + len(some) - 1}: {death}")
    row.injected, row.served_wrong = len(images), totals.pop("wrong")
    row.detected = totals["aside"]
    row.harmless = row.injected - row.detected
    kept = 100 * (1 - totals["lost"] / max(1, totals["promised"]))
    row.figures |= totals | {"kept_percent": round(kept, 2)}
    row.expect(not row.served_wrong, "a wrong byte was served")
    row.expect(not totals["too_big"], "files were larger than the capacity")
    row.expect(not totals["not_writable"], "a store that was opened could not be written")


def _image(target: Path, folder: Path, image: Pages, *, rebooted: bool) -> Path:
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns("*.lmdb"))
    shard = target / SHARD
    with shard.open("wb") as file:
        file.truncate((folder / SHARD).stat().st_size)
        for at, page in image.items():
            file.seek(at)
            file.write(page)
    if rebooted:
        manifest = target / "kvtier-store.json"
        manifest.write_text(manifest.read_text().replace('"boot_id": "', '"boot_id": "earlier-'))
    return target


def _read_back(work: Path, promised: frozenset[ChunkKey]) -> dict[str, int]:
    store = LmdbStore.open(work, CAPACITY_BYTES, shard_map_bytes=CAPACITY_BYTES)
    out = memoryview(bytearray(CHUNK_BYTES))
    found, refused, wrong = set(), 0, 0
    for record_ in list(records_of(store.scan())):
        try:
            with store.read(record_.shard, record_.key) as frame:
                assert frame is not None
                open_into(frame, out, key=record_.key)
            found.add(record_.key)
            wrong += bytes(out) != content(record_.key, CHUNK_BYTES)
        except (FrameError, StoreError):
            refused += 1
    not_writable = 0
    try:
        for n in range(3):
            store.write(0, [(ChunkKey(bytes(NAMESPACE_BYTES) + b"%032d" % n), memoryview(bytes(50_000)))], [*found][:1])
        store.sync()
    except StoreError:
        not_writable = 1
    aside = any("set aside" in line for line in store.notices)
    store.close()
    size = sum(path.lstat().st_size for path in work.iterdir())
    return {
        "promised": len(promised),
        "lost": len(promised - found),
        "wrong": wrong,
        "refused": refused,
        "aside": aside,
        "too_big": size > CAPACITY_BYTES,
        "not_writable": not_writable,
    }


# ---- stores that fail or forget from the N-th write on


def failing_stores(setting: Setting) -> Iterator[Row]:
    """The same traffic once for every N: from its N-th write on the store fails, or says it wrote and did not."""
    n_writes = int(in_child(lambda: _run_with(setting, None)["writes"]))
    for fault, what in (
        ("store fails from the N-th write on", {"error": StoreError("input/output error")}),
        ("store raises what it must not from the N-th write on", {"error": OSError(5, "Input/output error")}),
        ("store forgets from the N-th write on", {"lost": True}),
    ):
        row = Row("crash", fault)
        with timed(row):
            for n in range(0, n_writes, setting.n(1, 12)):
                setting.tell(f"{fault}: {n} of {n_writes}")
                broken = Fault(method="write", after=n, **what)  # type: ignore[arg-type]
                seen = json.loads(in_child(lambda broken=broken: json.dumps(_run_with(setting, broken))))  # type: ignore[misc]
                row.injected += 1
                row.detected += seen["noticed"]
                row.harmless += not seen["noticed"]
                row.requests += seen["requests"]
                row.served_wrong += seen["wrong"]
                row.failed_requests += seen["failed"]
                row.worst_call_s = max(row.worst_call_s, seen["worst_call_s"])
                row.violations += seen["errors"]
        row.expect(not row.served_wrong and not row.failed_requests, "a failing store reached a request")
        yield row


def _run_with(setting: Setting, fault: Fault | None) -> dict[str, Any]:
    """Traffic over a store with the fault, then over the store as that left it."""
    folder = setting.folder / "failing"
    shutil.rmtree(folder, ignore_errors=True)
    stores: list[FaultyStore] = []

    def wrap(store: SharedStore) -> SharedStore:
        stores.append(FaultyStore(store, *([fault] if fault else [])))
        return stores[0]

    rng, engines = setting.rng("failing"), []
    for wrapper in (wrap, None):
        engine = Engine(folder, n_slots=16, wrap=wrapper)
        engines.append(engine)
        for _ in range(30):
            traffic(engine, rng, n_prompts=20)
            engine.settle(0.02)
        engine.stop()
    outcomes = [engine.outcome for engine in engines]
    return {
        "writes": stores[0].calls["write"],
        "noticed": bool(engines[0].count("spill_failed_chunks")),
        "requests": sum(o.requests for o in outcomes),
        "wrong": sum(o.wrong for o in outcomes),
        "failed": sum(o.failed for o in outcomes),
        "worst_call_s": max(o.worst_call_s for o in outcomes),
        "errors": [error for o in outcomes for error in o.errors][:3],
    }
