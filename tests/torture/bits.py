"""Bytes that change on the medium: real stores are damaged from outside, then served from.

Every damaged frame must be a counted miss, nothing wrong may be served, and the damage must be gone afterwards.
"""

import importlib.util
import json
import os
import random
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import lmdb
import numpy as np

from kvtier.codec.frame import frame_bound, open_into, seal_into
from kvtier.codec.registry import codec_for
from kvtier.errors import FrameError
from kvtier.testing.faults import flipped
from kvtier.types import NAMESPACE_BYTES, ChunkKey
from tests.torture.engine import CHUNK_BYTES, MIB, Engine, chunk_hashes, content
from tests.torture.scenario import ChildDiedError, Row, Setting, clone, in_child, timed

PROMPTS, N_CHUNKS = range(90), 12
WANTED = {hash_ for prompt in PROMPTS for hash_ in chunk_hashes(prompt, N_CHUNKS)}
"""What is served afterwards. Other frames are only there to be in the way."""

CAPACITY_BYTES = 24 * MIB
"""A little more than the frames of all prompts take."""

PAGE = 4096
SECTOR = 512

Damage = Callable[[random.Random, list["Extent"]], list[tuple["Extent", int, bytes]]]
"""Some frames -> for each what to write where in its file. One damage a frame, so that each must be counted."""

Settings = Mapping[str, Any]
"""Beyond those that every engine of the torture has."""

PLAIN: Settings = MappingProxyType({})


class Extent(NamedTuple):
    """Where a live frame lies in its shard file."""

    shard: str
    offset: int
    n_bytes: int


def damaged_bytes(setting: Setting) -> Iterator[Row]:
    """Damage on the medium"""
    yield every_bit_of_a_frame()
    clean = setting.folder / "clean"
    in_child(lambda: fill(clean))
    for fault, damage, n_full, n_short, running in (
        ("bit flipped in a frame", flip, 10_000, 500, False),
        ("bit flipped in a frame under a running engine", flip, 2_000, 200, True),
        ("page zeroed", zero_page, 2_000, 200, False),
        ("sector of another frame", misdirect, 2_000, 200, False),
    ):
        yield damaged_frames(setting, clean, fault, damage, setting.n(n_full, n_short), running=running)
    yield rewritten(setting, clean, "frames swapped in pairs", swap)
    yield rewritten(setting, clean, "all values shuffled", shuffle)
    yield truncated(setting, clean)
    yield damaged_trees(setting, clean)
    yield from under_a_key(setting)


def fill(folder: Path, more: Settings = PLAIN) -> None:
    """A store as an engine leaves it, with frames evicted and pages used again on the way."""
    engine = Engine(folder, capacity_bytes=CAPACITY_BYTES, more=more)
    for prompt in (*range(1000, 1100), *PROMPTS):
        engine.request(prompt, N_CHUNKS)
        engine.settle()
    engine.stop()
    assert engine.outcome.failed == engine.outcome.wrong == 0, engine.outcome


def every_bit_of_a_frame() -> Row:
    row = Row("damage", "every bit of a small frame")
    key, codec = ChunkKey(bytes(range(48))), codec_for("bfloat16")
    chunk, room = content(key, 400), memoryview(bytearray(frame_bound(400, codec)))
    frame = bytes(room[: seal_into(memoryview(chunk), room, key=key, codec=codec)])
    with timed(row):
        for bit in range(len(frame) * 8):
            row.injected += 1
            try:
                open_into(memoryview(flipped(bit)(frame)), memoryview(bytearray(400)), key=key)
                row.served_wrong += 1
            except FrameError:
                row.detected += 1
    row.expect(row.detected == row.injected, "every flipped bit of a frame is detected")
    return row


# ---- damage inside frames


def flip(rng: random.Random, extents: list[Extent]) -> list[tuple[Extent, int, bytes]]:
    out = []
    for extent in extents:
        at = extent.offset + rng.randrange(extent.n_bytes)
        out.append((extent, at, bytes([_read(extent.shard, at, 1)[0] ^ 1 << rng.randrange(8)])))
    return out


def zero_page(rng: random.Random, extents: list[Extent]) -> list[tuple[Extent, int, bytes]]:
    """A page of the frame, less what LMDB keeps at the head of its first."""
    out = []
    for extent in extents:
        first = rng.randrange(0, extent.n_bytes, PAGE)
        out.append((extent, extent.offset + first, bytes(min(PAGE, extent.n_bytes - first))))
    return out


def misdirect(rng: random.Random, extents: list[Extent]) -> list[tuple[Extent, int, bytes]]:
    """A write that went to the wrong place: a sector of one frame lies in another."""
    out = []
    for extent in extents:
        other = rng.choice(extents)
        first, second = (rng.randrange(0, e.n_bytes - SECTOR) for e in (extent, other))
        stray = _read(other.shard, other.offset + second, SECTOR)
        if stray != _read(extent.shard, extent.offset + first, SECTOR):
            out.append((extent, extent.offset + first, stray))
    return out


def damaged_frames(
    setting: Setting,
    clean: Path,
    fault: str,
    damage: Damage,
    n_faults: int,
    *,
    running: bool = False,
    more: Settings = PLAIN,
) -> Row:
    row, rng = Row("damage", fault), setting.rng(fault)
    work = setting.folder / "work"
    with timed(row):
        while row.injected < n_faults:
            clone(clean, work)
            setting.tell(f"{fault}: {row.injected} of {n_faults}")

            def one_round(room: int = n_faults - row.injected, seed: int = rng.randrange(1 << 30)) -> str:
                chosen = random.Random(seed)
                extents = live_frames(work)
                writes = damage(chosen, chosen.sample(extents, min(room, len(extents) // 2)))
                if not running:
                    write_all(writes)
                return json.dumps(
                    {
                        "injected": len(writes),
                        **serve_twice(work, (lambda: write_all(writes)) if running else lambda: None, more),
                    }
                )

            add_up(row, in_child(one_round))
    check_healed(row)
    return row


def write_all(writes: list[tuple[Extent, int, bytes]]) -> None:
    """Change the files, past whoever has them open."""
    for extent, at, what in writes:
        with open(extent.shard, "r+b") as file:  # noqa: PTH123
            file.seek(at)
            file.write(what)


def serve_twice(folder: Path, while_open: Callable[[], None] = lambda: None, more: Settings = PLAIN) -> dict[str, Any]:
    """What an engine makes of a damaged store: everything is asked for, then again from a new start."""
    first = Engine(folder, capacity_bytes=CAPACITY_BYTES, more=more)
    while_open()
    for prompt in PROMPTS:
        first.request(prompt, N_CHUNKS)
        first.settle()
    noted = first.count("corrupt_frames") + first.count("foreign_frames")
    first.stop()
    second = Engine(folder, capacity_bytes=CAPACITY_BYTES, more=more)
    for prompt in PROMPTS:
        second.request(prompt, N_CHUNKS)
    again = second.count("corrupt_frames") + second.count("foreign_frames")
    second.stop()
    both = first.outcome, second.outcome
    return {
        "detected": noted,
        "again": again,
        "hits_before": first.outcome.hits[2],
        "hits_after": second.outcome.hits[2],
        "wrong": sum(o.wrong for o in both),
        "failed": sum(o.failed for o in both),
        "requests": sum(o.requests for o in both),
        "worst_call_s": max(o.worst_call_s for o in both),
        "hits_wanted": len(PROMPTS) * N_CHUNKS,
        "aside": sum("set aside" in line for line in first.reports),
        "off": sum("disk tier is off" in line for line in first.reports),
        "errors": [error for o in both for error in o.errors][:3],
    }


def add_up(row: Row, said: str) -> dict[str, Any]:
    """Add what a child reported to the row."""
    seen: dict[str, Any] = json.loads(said)
    row.injected += seen["injected"]
    row.detected += seen["detected"]
    row.served_wrong += seen["wrong"]
    row.failed_requests += seen["failed"]
    row.requests += seen["requests"]
    row.worst_call_s = max(row.worst_call_s, seen["worst_call_s"])
    for name in ("again", "hits_before", "hits_after", "hits_wanted"):
        row.figures[name] = row.figures.get(name, 0) + seen.get(name, 0)
    if seen["errors"]:
        row.violations += seen["errors"]
    return seen


def check_healed(row: Row) -> None:
    row.expect(row.detected == row.injected, f"{row.injected - row.detected} damaged frames were not noticed")
    row.expect(not row.served_wrong, "wrong bytes were served")
    row.expect(not row.failed_requests, "a request failed")
    row.expect(not row.figures["again"], "damage was still there after it had been found")
    row.expect(row.figures["hits_after"] > 0.95 * row.figures["hits_wanted"], "what was lost was not stored again")


# ---- values under other keys


def swap(rng: random.Random, values: list[bytes]) -> list[bytes]:
    out = list(values)
    order = rng.sample(range(len(values)), len(values) // 2 * 2)
    for one, other in zip(order[::2], order[1::2], strict=True):
        out[one], out[other] = out[other], out[one]
    return out


def shuffle(rng: random.Random, values: list[bytes]) -> list[bytes]:
    return rng.sample(values, len(values))


def rewritten(
    setting: Setting, clean: Path, fault: str, change: Callable[[random.Random, list[bytes]], list[bytes]]
) -> Row:
    """Frames that are whole, written by LMDB, under keys that are not theirs."""
    row, rng = Row("damage", fault), setting.rng(fault)
    work = setting.folder / "work"
    with timed(row):
        for _ in range(setting.n(5, 1)):
            clone(clean, work)

            def one_round(seed: int = rng.randrange(1 << 30)) -> str:
                changed = _rewrite(work, random.Random(seed), change)
                return json.dumps({"injected": changed, **serve_twice(work)})

            add_up(row, in_child(one_round))
    check_healed(row)
    return row


def _rewrite(folder: Path, rng: random.Random, change: Callable[[random.Random, list[bytes]], list[bytes]]) -> int:
    n_changed = 0
    for shard in sorted(folder.glob("shard-*.lmdb")):
        with lmdb.open(os.fspath(shard), subdir=False, max_dbs=2, map_size=shard.stat().st_size) as env:
            frames, index = (env.open_db(name, create=False) for name in (b"frames", b"index"))
            with env.begin() as txn:
                old = {bytes(key): (bytes(frame), bytes(txn.get(key, db=index))) for key, frame in txn.cursor(frames)}
            old = {key: value for key, value in old.items() if key[NAMESPACE_BYTES:] in WANTED}
            new = change(rng, [frame for frame, _ in old.values()])
            entries = dict(old.values())
            for (key, (frame, _)), other in zip(old.items(), new, strict=True):
                if other != frame:  # one at a time: a full shard has no room for all of them twice
                    with env.begin(write=True) as txn:
                        txn.put(key, other, db=frames)
                        txn.put(key, entries[other], db=index)
                    n_changed += 1
    return n_changed


# ---- frames under a key


def under_a_key(setting: Setting) -> Iterator[Row]:
    key_file = setting.folder / "key"
    key_file.write_bytes(setting.rng("key").randbytes(32).hex().encode())
    key_file.chmod(0o600)
    keyed: dict[str, Settings] = {"authenticated": {"integrity": {"hmac_key_file": str(key_file)}}}
    if importlib.util.find_spec("cryptography") is not None:
        keyed["encrypted"] = {"encryption": {"key_file": str(key_file)}}
    for how, more in keyed.items():
        clean = setting.folder / how
        in_child(lambda clean=clean, more=more: fill(clean, more))  # type: ignore[misc]
        if not setting.short or how == "encrypted":
            yield damaged_frames(
                setting, clean, f"bit flipped in an {how} frame", flip, setting.n(2_000, 100), more=more
            )
        if not setting.short or how == "authenticated":
            yield planted(setting, clean, how, more)


def planted(setting: Setting, clean: Path, how: str, more: Settings) -> Row:
    """Frames whole in every other way, of KV of somebody's choice, by a writer who has not the key."""
    row, work = Row("damage", f"frame planted among {how} ones"), setting.folder / "work"
    clone(clean, work)

    def one_round() -> str:
        n_planted = _plant(work)
        return json.dumps({"injected": n_planted, **serve_twice(work, more=more)})

    with timed(row):
        add_up(row, in_child(one_round))
    check_healed(row)
    return row


def _plant(folder: Path) -> int:
    codec, n_planted = codec_for("bfloat16"), 0
    room = memoryview(bytearray(frame_bound(CHUNK_BYTES, codec)))
    for shard in sorted(folder.glob("shard-*.lmdb")):
        with lmdb.open(os.fspath(shard), subdir=False, max_dbs=2, map_size=shard.stat().st_size) as env:
            frames, index = (env.open_db(name, create=False) for name in (b"frames", b"index"))
            with env.begin() as txn:
                keys = [bytes(key) for key in txn.cursor(frames).iternext(values=False)]
            for key in keys:
                if key[NAMESPACE_BYTES:] in WANTED:
                    lie = memoryview(content(ChunkKey(key[::-1])))
                    frame = room[: seal_into(lie, room, key=ChunkKey(key), codec=codec)]
                    with env.begin(write=True) as txn:
                        txn.put(key, frame, db=frames)
                        txn.put(key, struct.pack("<QQ", len(frame), time.time_ns()), db=index)
                    n_planted += 1
    return n_planted


# ---- files and trees


def truncated(setting: Setting, clean: Path) -> Row:
    row, rng = Row("damage", "shard file truncated"), setting.rng("truncated")
    work = setting.folder / "work"
    with timed(row):
        for n in range(setting.n(60, 3)):
            clone(clean, work)
            shard = rng.choice(sorted(work.glob("shard-*.lmdb")))
            os.truncate(shard, rng.choice([0, 1, rng.randrange(PAGE * 3), rng.randrange(shard.stat().st_size)]))
            seen = json.loads(in_child(lambda: json.dumps(serve_twice(work))))
            add_up(row, json.dumps({"injected": 1, **seen, "detected": seen["aside"]}))
            setting.tell(f"truncated: {n}")
    row.expect(row.detected == row.injected, "a truncated file was not set aside")
    row.expect(not row.served_wrong and not row.failed_requests, "a truncated file reached a request")
    return row


def damaged_trees(setting: Setting, clean: Path) -> Row:
    """Bits flipped in LMDB's own pages: meta, branch, leaf, free list. liblmdb trusts them."""
    row, rng = Row("damage", "bit flipped in an LMDB tree page"), setting.rng("trees")
    work = setting.folder / "work"
    died = []
    with timed(row):
        for n in range(setting.n(200, 6)):
            setting.tell(f"trees: {n}")
            clone(clean, work)
            shard = rng.choice(sorted(work.glob("shard-*.lmdb")))
            page = rng.choice(tree_pages(shard))
            at = page * PAGE + (rng.randrange(64) if rng.random() < 0.5 else rng.randrange(PAGE))
            with shard.open("r+b") as file:
                file.seek(at)
                old = file.read(1)[0]
                file.seek(at)
                file.write(bytes([old ^ 1 << rng.randrange(8)]))
            try:
                seen = json.loads(in_child(lambda: json.dumps(serve_twice(work))))
            except ChildDiedError as death:
                died.append(f"{death} by byte {at} of {shard.name}, trial {n}")
                row.injected += 1
                continue
            noticed = bool(seen["aside"] or seen["detected"])
            add_up(row, json.dumps({"injected": 1, **seen, "detected": noticed}))
            row.harmless += not noticed
            row.figures["tier_off"] = row.figures.get("tier_off", 0) + seen["off"]
    row.violations += died
    row.expect(not row.served_wrong and not row.failed_requests, "a damaged tree reached a request")
    row.expect(not row.figures.get("tier_off"), "a damaged tree left the engine without its disk tier")
    return row


def tree_pages(shard: Path) -> list[int]:
    """Pages of a closed shard that are no frame: metas, branches and leaves, those in use and those that were."""
    data = shard.read_bytes()
    used = struct.unpack_from("<Q", data, 16 + 24 + 96)[0], struct.unpack_from("<Q", data, PAGE + 16 + 24 + 96)[0]
    pages, page = [0, 1], 2
    while page <= max(used):
        number, flags, n_pages = struct.unpack_from("<QxxHI", data, page * PAGE)
        if number == page and flags in (1, 2):
            pages.append(page)
        page += max(1, n_pages) if number == page and flags == 4 else 1
    return pages


def live_frames(folder: Path) -> list[Extent]:
    """The frames of `PROMPTS` in a store that is closed, by LMDB's own account."""
    found = []
    for shard in sorted(folder.glob("shard-*.lmdb")):
        with lmdb.open(os.fspath(shard), subdir=False, max_dbs=2, readonly=True, lock=False) as env:
            frames = env.open_db(b"frames", create=False)
            with env.begin(buffers=True) as txn, txn.cursor(frames) as cursor:
                base = _map_address(shard)
                for key, frame in cursor.iternext():
                    if bytes(key[NAMESPACE_BYTES:]) in WANTED:
                        address = np.frombuffer(frame, np.uint8).ctypes.data
                        found.append(Extent(os.fspath(shard), address - base, len(frame)))
    return found


def _map_address(file: Path) -> int:
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(os.fspath(file)):
            return int(line.partition("-")[0], 16)
    raise AssertionError(f"{file} is not mapped")


def _read(file: str, at: int, n_bytes: int) -> bytes:
    with open(file, "rb") as opened:  # noqa: PTH123
        opened.seek(at)
        return opened.read(n_bytes)
