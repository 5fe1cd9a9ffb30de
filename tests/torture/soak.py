"""`make soak`: mixed traffic for half an hour, with every fault of this package at random.

    python -m tests.torture.soak [--minutes 30] [--seed N] [--episodes N] [--json] [--folder DIR]

One store lives through episodes. Each is one start of an engine, of another shape, under other faults; it ends by a
clean stop or by SIGKILL. Between episodes the files may be damaged, or power lost. What an episode does follows from
the seed and its number: run the same seed with as many episodes to see a failure again. The instants at which signals
arrive are not in anybody's hand.
"""

import argparse
import json
import mmap
import os
import random
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvtier.errors import StoreError, StoreFullError
from kvtier.store.base import SharedStore
from kvtier.testing.faults import Fault, FaultyStore
from tests.torture.bits import PAGE, tree_pages
from tests.torture.engine import MIB, Engine, traffic
from tests.torture.kills import CAPACITIES
from tests.torture.report import as_json, as_table, verdict
from tests.torture.scenario import Row, Setting
from tests.torture.storage import BOUND_S, WAIT_BOUND_S, build_shim

FAULTS: dict[str, Fault | tuple[int, int]] = {
    "store: writes fail": Fault(method="write", error=StoreError("Input/output error")),
    "store: reads fail": Fault(method="read", error=StoreError("Input/output error")),
    "store: syncs fail": Fault(method="sync", error=StoreError("Input/output error")),
    "store: shards are full": Fault(method="write", error=StoreFullError("full")),
    "store: writes are forgotten": Fault(method="write", lost=True),
    "store: an answer is lost": Fault(method="write", error=StoreError("timed out"), done=True),
    "store: reads take 0.5 s": Fault(method="read", slow_s=0.5),
    "store: writes take 0.5 s": Fault(method="write", slow_s=0.5),
    "calls: ENOSPC": (0, 28),
    "calls: EIO from writes": (0, 5),
    "calls: EROFS": (0, 30),
    "calls: EIO from reads": (1, 5),
    "calls: EIO from syncs": (2, 5),
    "calls: EMFILE": (3, 24),
    "calls: all I/O takes 0.3 s": (4, 300),
}
"""What may happen while an engine serves. Pairs are a field of the shim's control block and its value."""

DAMAGE = ("bits flipped in frames", "bit flipped in a tree page", "file truncated", "power lost")


@dataclass(frozen=True)
class Episode:
    """One start of an engine, as the seed has it."""

    number: int
    capacity_bytes: int
    n_slots: int
    sync_ms: int
    promote_threads: int
    codec: str
    write: str
    durability: str
    lasts_s: float
    killed: bool
    at_once: int
    faults: tuple[tuple[float, str, float], ...]  # when, which, for how long
    damage: str  # before it


def plan(seed: int, number: int, pace: float) -> Episode:
    """What episode `number` of a seed does, in `pace` of the usual time."""
    rng = random.Random(f"{seed}/{number}")
    lasts_s = pace * rng.choice([rng.uniform(0, 0.1), rng.uniform(0.1, 3), rng.uniform(3, 20)])
    return Episode(
        number,
        rng.choice(CAPACITIES),
        n_slots=rng.choice([16, 32, 64]),
        sync_ms=rng.choice([20, 200, 5000]),
        promote_threads=rng.choice([1, 2, 4]),
        codec=rng.choice(["auto", "raw"]),
        write=rng.choice(["ahead", "evict_only"]),
        durability=rng.choice(["interval", "interval", "commit"]),
        lasts_s=lasts_s,
        killed=rng.random() < 0.7,
        at_once=rng.choice([1, 2, 4]),
        faults=tuple(
            (rng.uniform(0, lasts_s), rng.choice(sorted(FAULTS)), pace * rng.uniform(0.1, 3))
            for _ in range(rng.choice([0, 0, 1, 2, 4]))
        ),
        damage=rng.choice([*DAMAGE, *[""] * 8]),
    )


def run(setting: Setting, until_s: float, max_episodes: int) -> list[Row]:
    """Episodes until the time is up."""
    folder, control = setting.folder / "store", setting.folder / "control"
    if not control.exists():  # truncating what the shim has mapped would end this process
        control.write_bytes(bytes(20))
    with control.open("r+b") as file:
        switches = mmap.mmap(file.fileno(), 20)
    row = Row("soak", "mixed traffic under random faults")
    seen: Counter[str] = Counter()
    number = 0
    while time.monotonic() < until_s and number < max_episodes:
        episode = plan(setting.seed, number, 0.1 if setting.short else 1.0)
        setting.tell(f"episode {number}: {episode.lasts_s:.1f} s, {row.requests} requests, {dict(seen)}")
        before = len(row.violations)
        if episode.damage and folder.exists():
            damage(folder, episode)
            seen[episode.damage] += 1
        _live(folder, episode, switches, row, seen)
        n_bytes = sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file()) if folder.exists() else 0
        row.expect(n_bytes <= max(CAPACITIES) + MIB, f"{n_bytes} bytes on disk")
        row.violations[before:] = [
            f"episode {number} (--seed {setting.seed} --episodes {number + 1}): {promise}"
            for promise in row.violations[before:]
        ]
        number += 1
    row.injected = sum(seen.values()) - seen["clean stop"]
    row.figures |= {"episodes": number, **{name.replace("_", " "): n for name, n in sorted(seen.items())}}
    return [row]


def _live(folder: Path, episode: Episode, switches: mmap.mmap, row: Row, seen: Counter[str]) -> None:
    """Run one episode in a child and take down what it said."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 3
        try:
            os.close(reader)
            serve(folder, episode, switches, writer)
            status = 0
        except BaseException as error:  # noqa: BLE001 - it must not go on as a second parent
            os.write(writer, json.dumps({"errors": [f"{type(error).__name__}: {error}"]}).encode() + b"\n")
        finally:
            os._exit(status)
    os.close(writer)
    if episode.killed:
        time.sleep(episode.lasts_s)
        os.kill(pid, signal.SIGKILL)
    with os.fdopen(reader) as said_by:
        for line in said_by.read().splitlines():
            said = json.loads(line)
            row.requests += said.get("requests", 0)
            row.served_wrong += said.get("wrong", 0)
            row.failed_requests += said.get("failed", 0)
            row.worst_call_s = max(row.worst_call_s, said.get("worst_call_s", 0.0))
            row.detected += said.get("detected", 0)
            row.violations += said.get("errors", [])
            seen.update(said.get("faults", []))
            row.expect(said.get("worst_call_s", 0.0) < BOUND_S, f"the engine's thread was held: {line}")
            row.expect(said.get("worst_wait_s", 0.0) < WAIT_BOUND_S, f"a request waited: {line}")
            row.expect(not said.get("wrong"), f"wrong bytes were served: {line}")
    _, status = os.waitpid(pid, 0)
    switches[:] = bytes(20)
    how = os.WTERMSIG(status) if os.WIFSIGNALED(status) else -os.waitstatus_to_exitcode(status)
    seen["SIGKILL" if episode.killed else "clean stop"] += 1
    allowed = (signal.SIGKILL, 0) if episode.killed else (0,)
    row.expect(how in allowed, f"the process ended by itself: {how}")


def serve(folder: Path, episode: Episode, switches: mmap.mmap, writer: int) -> None:
    """The child: an engine that serves until it is told to stop, or killed."""
    rng = random.Random(episode.number)
    stores: list[FaultyStore] = []

    def wrap(store: SharedStore) -> SharedStore:
        stores.append(FaultyStore(store))
        return stores[0]

    signal.alarm(int(episode.lasts_s) + 100)  # a hang ends it by a signal that nobody sent
    engine = Engine(
        folder,
        n_slots=episode.n_slots,
        capacity_bytes=episode.capacity_bytes,
        wrap=wrap,
        disk={
            "sync_every": f"{episode.sync_ms}ms",
            "promote_threads": episode.promote_threads,
            "codec": episode.codec,
            "write": episode.write,
            "durability": episode.durability,
            "write_behind_after": "0s",
        },
    )
    if not engine.has_disk:
        _say(writer, {"errors": [f"no disk tier: {engine.reports}"]})
    started_s = time.monotonic()
    threading.Thread(
        target=_inject, args=(episode, stores, switches, writer, started_s), name="faults", daemon=True
    ).start()
    last_s = 0.0
    while time.monotonic() - started_s < episode.lasts_s or (episode.killed and engine.has_disk):
        if rng.random() < 0.002:
            engine.kvtier.reset()
        if rng.random() < 0.02:
            engine.idle()
            time.sleep(rng.uniform(0, 0.1))
        traffic(engine, rng, n_prompts=400, at_once=episode.at_once)
        if time.monotonic() - last_s > 0.05:
            _report(engine, writer)
            last_s = time.monotonic()
    _report(engine, writer)
    switches[:] = bytes(20)
    if stores:
        stores[0].heal()
    engine.settle(20.0)
    engine.cache.check()
    engine.stop()


def _report(engine: Engine, writer: int) -> None:
    done = engine.outcome
    said = {
        name: getattr(done, name) for name in ("requests", "failed", "wrong", "worst_call_s", "worst_wait_s", "errors")
    }
    noticed = sum(map(engine.count, ("corrupt_frames", "foreign_frames", "load_errors", "spill_failed_chunks")))
    _say(writer, said | {"detected": noticed - engine.noticed})
    engine.noticed = noticed
    done.requests = done.failed = done.wrong = 0
    done.errors = []


def _say(writer: int, what: dict[str, Any]) -> None:
    os.write(writer, json.dumps(what).encode() + b"\n")


def _inject(episode: Episode, stores: list[FaultyStore], switches: mmap.mmap, writer: int, started_s: float) -> None:
    for at_s, name, for_s in sorted(episode.faults):
        time.sleep(max(0.0, started_s + at_s - time.monotonic()))
        fault = FAULTS[name]
        _say(writer, {"faults": [name]})
        if isinstance(fault, Fault):
            stores[0].inject(fault)
        else:
            struct.pack_into("=i", switches, 4 * fault[0], fault[1])
        time.sleep(for_s)
        stores[0].heal()
        switches[:] = bytes(20)


def damage(folder: Path, episode: Episode) -> None:
    """Change the files of a store that is closed."""
    rng = random.Random(f"damage {episode.number}")
    shards = sorted(folder.glob("shard-*.lmdb"))
    if not shards:
        return
    shard = rng.choice(shards)
    if episode.damage == "power lost":
        manifest = folder / "kvtier-store.json"
        if manifest.exists():
            manifest.write_text(manifest.read_text().replace('"boot_id": "', '"boot_id": "earlier-'))
    if episode.damage == "file truncated":
        os.truncate(shard, rng.randrange(shard.stat().st_size))
        return
    try:
        trees = tree_pages(shard)
    except struct.error:
        return  # cut short before it was whole
    last = max(trees)
    for _ in range(1 if "tree" in episode.damage else rng.randrange(1, 20)):
        page = rng.choice(trees) if "tree" in episode.damage else rng.randrange(2, last + 1)
        with shard.open("r+b") as file:
            at = page * PAGE + rng.randrange(PAGE)
            file.seek(at)
            byte = file.read(1)[0] ^ 1 << rng.randrange(8)
            file.seek(at)
            file.write(bytes(PAGE) if episode.damage == "power lost" else bytes([byte]))


def main() -> int:
    """Run until the time is up; exit status 1 when a promise was broken."""
    parser = argparse.ArgumentParser(prog="soak", description="Mixed traffic under random faults.")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    parser.add_argument("--episodes", type=int, default=1 << 30, help="stop after so many")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    parser.add_argument("--folder", type=Path, help="where the store lies (default: a temporary directory)")
    asked = parser.parse_args()
    if "KVTIER_SHIM_CONTROL" not in os.environ:
        return _again_under_the_shim(asked.folder, ["--seed", str(asked.seed)])
    folder = Path(os.environ["KVTIER_SHIM_PREFIX"]).parent
    rows = run(
        Setting(asked.seed, folder, short=False, tell=_progress), time.monotonic() + 60 * asked.minutes, asked.episodes
    )
    print(as_json(rows, asked.seed) if asked.json else f"{as_table(rows)}\n{verdict(rows, asked.seed)}")
    return int(any(row.violations for row in rows))


def _again_under_the_shim(parent: Path | None, arguments: list[str]) -> int:
    """This command line once more, with the library that makes system calls fail below it where it can be built."""
    with tempfile.TemporaryDirectory(prefix="kvtier-soak-", dir=parent) as folder:
        Path(folder).chmod(0o700)
        Path(folder, "control").write_bytes(bytes(20))
        shim = build_shim(Path(folder))
        where = {"KVTIER_SHIM_PREFIX": f"{folder}/store", "KVTIER_SHIM_CONTROL": f"{folder}/control"}
        if isinstance(shim, str):
            print(f"without failing system calls: {shim}", file=sys.stderr)
        else:
            where["LD_PRELOAD"] = str(shim)
        command = [sys.executable, "-m", "tests.torture.soak", *sys.argv[1:], *arguments]
        return subprocess.run(command, env=os.environ | where, check=False).returncode


def _progress(what: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{what[:150]}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
