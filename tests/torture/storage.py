"""Media that fail while an engine serves: no request may fail or wait without bound, and the tier comes back by itself.

Three ways in: a store that fails when told to, a library under the process that makes system calls fail, and real
conditions of real file systems. Each runs in a process of its own, several at a time: most of the time is waiting.
"""

import codecs
import errno
import json
import mmap
import os
import resource
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from kvtier.errors import StoreError, StoreFullError
from kvtier.store import direct
from kvtier.store.base import SharedStore
from kvtier.testing.faults import Fault, FaultyStore
from tests.torture.engine import MIB, Engine
from tests.torture.scenario import Child, ChildDiedError, Row, Setting, timed

BOUND_S = 1.0
"""No call of the scheduler thread may be held for so long, whatever the disk does. It takes microseconds; on a machine
with other work it may want a lock whose holder is off its core for a while."""

WAIT_BOUND_S = 12.0
"""Nor may a request wait longer for its promotions: `cache.MAX_WAIT_S` and a little."""

HEAL_S = 30.0
N_PROMPTS, N_CHUNKS = 20, 8
AT_ONCE = 6


class Ordeal(NamedTuple):
    """One condition: how it begins and ends, and whether the tier can come back without a restart."""

    begin: Callable[[], None]
    end: Callable[[], None]
    heals: bool = True


def failing_storage(setting: Setting) -> Iterator[Row]:
    """Storage that fails while serving"""
    waiting = list(_all(setting))
    while waiting:
        some, waiting = waiting[:AT_ONCE], waiting[AT_ONCE:]
        setting.tell(", ".join(row.fault for row, _ in some))
        children = [(row, Child(work) if work is not None else None) for row, work in some]
        for row, child in children:
            if child is not None:
                with timed(row):
                    _note(row, child)
            yield row


def _all(setting: Setting) -> Iterator[tuple[Row, Callable[[], str] | None]]:
    slow_s = setting.n(10, 2)
    io_error = StoreError("Input/output error")
    for what, fault in (
        ("writes fail", Fault(method="write", error=io_error)),
        ("reads fail", Fault(method="read", error=io_error)),
        ("syncs fail", Fault(method="sync", error=io_error)),
        ("writes raise what no store may raise", Fault(method="write", error=ValueError("bug"))),
        ("reads raise what no store may raise", Fault(method="read", error=ValueError("bug"))),
        ("shards are full", Fault(method="write", error=StoreFullError("full"))),
        ("writes succeed but say they failed", Fault(method="write", error=io_error, done=True)),
        (f"writes take {slow_s} s", Fault(method="write", slow_s=slow_s)),
        (f"reads take {slow_s} s", Fault(method="read", slow_s=slow_s)),
        (f"syncs take {slow_s} s", Fault(method="sync", slow_s=slow_s)),
    ):
        folder = _folder(setting, what)
        seconds = 0.7 if not fault.slow_s else 1.3 * slow_s
        yield Row("storage", f"store: {what}"), lambda f=folder, x=fault, s=seconds: _with_fault(f, x, s)  # type: ignore[misc]
    shim = build_shim(setting.folder)
    for what, field, number in (
        ("ENOSPC", 0, errno.ENOSPC), ("EIO", 0, errno.EIO), ("EROFS", 0, errno.EROFS), ("EDQUOT", 0, errno.EDQUOT),
        ("EIO from reads", 1, errno.EIO), ("EIO from syncs", 2, errno.EIO), ("EMFILE from open", 3, errno.EMFILE),
        ("EACCES from open", 3, errno.EACCES), (f"all I/O takes {slow_s} s", 4, slow_s * 1000),
    ):  # fmt: skip
        row, folder = Row("storage", f"system calls: {what}"), _folder(setting, f"call {what}")
        if isinstance(shim, str):
            row.skipped = shim
            yield row, None
        else:
            seconds = 0.7 if field != 4 else 1.3 * slow_s
            yield row, lambda f=folder, n=field, e=number, s=seconds: _under_shim(shim, f, n, e, s)  # type: ignore[misc]
    for what, ordeal in (
        ("directory moved away", _moved_away), ("directory removed", _removed), ("shard files replaced", _replaced),
        ("permissions lost", _forbidden), ("no file descriptor left", _no_descriptors),
    ):  # fmt: skip
        folder = _folder(setting, what)
        threads = ordeal in (_forbidden, _no_descriptors)  # what they do to this process a helper would not feel
        yield Row("storage", f"real: {what}"), lambda f=folder, o=ordeal, t=threads: _really(f, o(f), threads=t)  # type: ignore[misc]
    for what, file_system in (("full tmpfs", _tmpfs), ("full ext4", _ext4), ("ext4 shut down under load", _ext4)):
        row, folder = Row("storage", f"real: {what}"), _folder(setting, what)
        problem = file_system(folder, mount=False)
        row.skipped = problem
        work = _shut_down if "shut" in what else _full
        yield row, None if problem else lambda f=folder, m=file_system, w=work: w(f, m)  # type: ignore[misc]


def _folder(setting: Setting, what: str) -> Path:
    folder = setting.folder / "".join(c if c.isalnum() else "-" for c in what)
    folder.mkdir(mode=0o700)
    return folder


def _note(row: Row, child: Child) -> None:
    row.injected = 1
    try:
        seen = json.loads(child.result())
    except ChildDiedError as death:
        row.violations.append(f"the process died: {death}")
        return
    row.detected = int(seen["noticed"])
    row.harmless = 1 - row.detected
    row.requests, row.failed_requests, row.served_wrong = seen["requests"], seen["failed"], seen["wrong"]
    row.worst_call_s = seen["worst_call_s"]
    row.figures |= {name: seen[name] for name in ("tier_off", "back_after_s", "longest_wait_s")}
    row.violations += seen["errors"]
    row.expect(not row.served_wrong and not row.failed_requests, "a request failed or was served wrong bytes")
    row.expect(row.worst_call_s < BOUND_S, f"the engine's thread was held for {row.worst_call_s:.1f} s")
    row.expect(seen["longest_wait_s"] < WAIT_BOUND_S, f"a request waited {seen['longest_wait_s']:.1f} s")
    row.expect(seen["healed"], f"the tier was not back {HEAL_S:.0f} s after the medium was")


# ---- one ordeal, in its own process


def endure(engine: Engine, ordeal: Ordeal, faulty_s: float, folder: Path) -> str:
    """Serve before, during and after the fault. What the parent is to know, as JSON."""
    for prompt in range(N_PROMPTS):
        engine.request(prompt, N_CHUNKS)
        engine.settle(5.0)
    engine.push_out(0)
    ordeal.begin()
    _serve(engine, faulty_s, first=100)
    noticed = engine.count("spill_failed_chunks") + engine.count("load_errors") + engine.count("tier_off")
    noticed += sum(line.startswith("disk tier") for line in engine.reports)
    ordeal.end()
    back_after_s = _until_back(engine) if ordeal.heals else 0.0
    done, tier_off = engine.outcome, engine.count("tier_off")
    engine.stop()
    healed = back_after_s is not None
    if not ordeal.heals:  # it takes a restart; the next start must find its way
        engine = Engine(folder / "store")
        engine.request(9000, N_CHUNKS)
        engine.settle(5.0)
        healed = engine.has_disk and engine.count("spilled_chunks") > 0
        done.wrong, done.failed = done.wrong + engine.outcome.wrong, done.failed + engine.outcome.failed
        engine.stop()
    return json.dumps(
        {
            "noticed": bool(noticed),
            "healed": healed,
            "back_after_s": round(back_after_s or 0.0, 1),
            "tier_off": tier_off,
            "requests": done.requests,
            "failed": done.failed,
            "wrong": done.wrong,
            "worst_call_s": done.worst_call_s,
            "longest_wait_s": round(done.worst_wait_s, 2),
            "errors": done.errors[:3],
        }
    )


def _serve(engine: Engine, seconds: float, *, first: int) -> None:
    """Old prompts, which are on disk, and new ones, which are to go there."""
    until_s = time.monotonic() + seconds
    n = 0
    while time.monotonic() < until_s:
        engine.request(n % N_PROMPTS if n % 2 else first + n, N_CHUNKS)
        engine.idle()
        time.sleep(0.01)
        n += 1


def _until_back(engine: Engine) -> float | None:
    """Seconds until frames are written and read again, or None."""
    started_s = time.monotonic()
    spilled, promoted, n = engine.count("spilled_chunks"), engine.count("promoted_chunks"), 0
    while engine.count("spilled_chunks") <= spilled or engine.count("promoted_chunks") <= promoted:
        if time.monotonic() - started_s > HEAL_S:
            return None
        # What was given up as unreadable is stored again first; then it can be read.
        engine.request(5000 + n, N_CHUNKS)
        engine.request(5000 + max(0, n - 12), N_CHUNKS)
        engine.idle()
        time.sleep(0.02)
        n += 1
    return time.monotonic() - started_s


def _with_fault(folder: Path, fault: Fault, faulty_s: float) -> str:
    stores: list[FaultyStore] = []

    def wrap(store: SharedStore) -> SharedStore:
        stores.append(FaultyStore(store))
        return stores[0]

    engine = Engine(folder / "store", wrap=wrap, disk={"sync_every": "50ms"})
    return endure(engine, Ordeal(lambda: stores[0].inject(fault), stores[0].heal), faulty_s, folder)


# ---- system calls that fail


def build_shim(folder: Path) -> Path | str:
    """The library of shim.c, built in `folder`; or why there is none."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None or not sys.platform.startswith("linux"):
        return "needs Linux and a C compiler"
    built = folder / "shim.so"
    command = [compiler, "-O1", "-shared", "-fPIC", "-o", str(built), str(Path(__file__).with_name("shim.c")), "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return built if done.returncode == 0 else f"shim.c does not compile here: {done.stderr.strip()[-200:]}"


def _under_shim(shim: Path, folder: Path, field: int, value: int, faulty_s: float) -> str:
    control = folder / "control"
    control.write_bytes(bytes(20))
    arguments = [str(folder), str(control), str(field), str(value), str(faulty_s)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.torture.storage", *arguments],
        env={
            **os.environ,
            "LD_PRELOAD": str(shim),
            "KVTIER_SHIM_PREFIX": str(folder),
            "KVTIER_SHIM_CONTROL": str(control),
        },
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"exit status {done.returncode}: {done.stderr[-300:]}")
    return done.stdout


def main(folder: str, control: str, field: str, value: str, faulty_s: str) -> None:
    """What runs with the library below it."""
    with open(control, "r+b") as file:  # noqa: PTH123
        switches = mmap.mmap(file.fileno(), 20)
    at = 4 * int(field)
    ordeal = Ordeal(
        lambda: struct.pack_into("=i", switches, at, int(value)), lambda: struct.pack_into("=i", switches, at, 0)
    )
    opens = int(field) == 3
    if opens:
        _open_all_the_time()
    engine = Engine(Path(folder, "store"), disk={"sync_every": "50ms"}, threads=opens)
    print(endure(engine, ordeal, float(faulty_s), Path(folder)))


# ---- real conditions


def _really(folder: Path, ordeal: Ordeal, *, threads: bool) -> str:
    return endure(Engine(folder / "store", disk={"sync_every": "50ms"}, threads=threads), ordeal, 0.7, folder)


def _moved_away(folder: Path) -> Ordeal:
    store, away = folder / "store", folder / "away"
    return Ordeal(lambda: store.rename(away), lambda: _back(away, store))


def _back(away: Path, store: Path) -> None:
    shutil.rmtree(store, ignore_errors=True)
    away.rename(store)


def _removed(folder: Path) -> Ordeal:
    return Ordeal(lambda: shutil.rmtree(folder / "store"), lambda: None, heals=False)


def _replaced(folder: Path) -> Ordeal:
    def replace() -> None:
        for shard in (folder / "store").glob("shard-*.lmdb"):
            copy = shard.with_suffix(".copy")
            shutil.copyfile(shard, copy)
            copy.rename(shard)

    return Ordeal(replace, lambda: None, heals=False)


def _forbidden(folder: Path) -> Ordeal:
    """As another user than root, whom permissions do not stop."""
    codecs.lookup("ascii")  # loads the codec while the interpreter's files can still be read
    if os.geteuid() == 0:
        for place in (folder, *folder.parents):
            if place.stat().st_mode & 0o001 or place == Path("/"):
                continue
            place.chmod(place.stat().st_mode | 0o011)
        os.chown(folder, 65534, 65534)
        os.setgid(65534)
        os.setuid(65534)
    return Ordeal(lambda: folder.chmod(0), lambda: folder.chmod(0o700))


def _open_all_the_time() -> None:
    """Have this process open and close the files of its shards as it does with a store of more than it keeps open."""
    direct.MAX_OPEN_FILES = 1  # type: ignore[misc]


def _no_descriptors(_: Path) -> Ordeal:
    _open_all_the_time()
    taken: list[int] = []

    def take_all() -> None:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(list(Path("/proc/self/fd").iterdir())) + 3, hard))
        while True:
            try:
                taken.append(os.open("/dev/null", os.O_RDONLY))
            except OSError:
                return

    def give_back() -> None:
        while taken:
            os.close(taken.pop())

    return Ordeal(take_all, give_back)


def _tmpfs(folder: Path, *, mount: bool = True) -> str:
    return _mounts(folder, ["-t", "tmpfs", "-o", "size=12M,mode=0700", "kvtier-torture"], mount=mount)


def _ext4(folder: Path, *, mount: bool = True) -> str:
    if mount:
        image = folder.with_suffix(f".{time.monotonic_ns()}")  # of its own: one that was shut down stays so
        with image.open("wb") as file:
            file.truncate(24 * MIB)
        subprocess.run(["mkfs.ext4", "-q", str(image)], check=True, capture_output=True)
    elif shutil.which("mkfs.ext4") is None:
        return "needs mkfs.ext4"
    else:
        image = folder
    return _mounts(folder, ["-o", "loop", str(image)], mount=mount)


def _mounts(folder: Path, arguments: list[str], *, mount: bool) -> str:
    """Mount, or say why that cannot be done."""
    if os.geteuid() != 0:
        return "mounting a file system needs root"
    if mount:
        subprocess.run(["mount", *arguments, str(folder)], check=True, capture_output=True)
        folder.chmod(0o700)
    return ""


def _full(folder: Path, file_system: Callable[[Path], str]) -> str:
    file_system(folder)
    filler = folder / "filler"

    def fill() -> None:
        with filler.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(64 << 10))
            except OSError:
                return

    try:
        engine = Engine(folder / "store", disk={"sync_every": "50ms"})
        return endure(engine, Ordeal(fill, filler.unlink), 0.7, folder)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


def _shut_down(folder: Path, file_system: Callable[[Path], str]) -> str:
    """Every access to the medium is EIO from one moment on, as when the device is gone."""
    import fcntl  # noqa: PLC0415

    file_system(folder)

    def shut_down() -> None:
        fd = os.open(folder, os.O_RDONLY)
        fcntl.ioctl(fd, 0x8004587D, struct.pack("=I", 2))  # EXT4_IOC_SHUTDOWN, without flushing the log
        os.close(fd)

    def replace() -> None:
        subprocess.run(["umount", "-l", str(folder)], check=True)
        file_system(folder)

    try:
        return endure(Engine(folder / "store"), Ordeal(shut_down, replace, heals=False), 0.7, folder)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
