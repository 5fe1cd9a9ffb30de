"""Composition root: configuration and the engine's host pool -> a running cache. Only this module names concretes."""

from __future__ import annotations

import os
import secrets
import threading
import time
from typing import TYPE_CHECKING

from kvtier.budget import WriteBudget
from kvtier.cache import TieredCache
from kvtier.codec.frame import Sealing, frame_bound
from kvtier.codec.guard import PLAIN
from kvtier.codec.guards import guard_for, guard_of, guarded, secret_for
from kvtier.codec.registry import RAW, codec_for
from kvtier.depot import LocalDepot, Plan, SharedPool
from kvtier.epoch import NAMESPACES, Epoch
from kvtier.errors import ConfigError, KvtierError, StoreError
from kvtier.helper.depot import READS_AHEAD, HelperDepot
from kvtier.keeper import Keeper
from kvtier.machine import DiskSpace
from kvtier.observe.hitlog import HitLog
from kvtier.observe.load import CopyRate
from kvtier.observe.rate import Cost, PrefillRate
from kvtier.observe.recorder import TraceRecorder
from kvtier.observe.stats import Gauges, Stats
from kvtier.policy.gate import LoadGate
from kvtier.policy.linked import LinkedSlru
from kvtier.policy.slru import Slru
from kvtier.prior import Prior
from kvtier.promotions import UNDER_WAY
from kvtier.purges import Listener
from kvtier.sizing import check_disk_fits, disk_bytes
from kvtier.store.directory import OUR_NAMES
from kvtier.store.listing import give_back_memory
from kvtier.store.lmdb import shard_map_bytes_for
from kvtier.store.private import secure_directory
from kvtier.tiers.disk import DiskTier
from kvtier.tiers.follow import SharedIndex
from kvtier.tiers.host import HostTier
from kvtier.transfer.probe import PROBE_BYTES
from kvtier.transfer.slots import Slots
from kvtier.types import Miss, Source
from kvtier.usage import Usage

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from kvtier.codec.base import Codec
    from kvtier.codec.guard import Guard
    from kvtier.codec.guards import Secret
    from kvtier.config import Config, Disk
    from kvtier.depot import Depot
    from kvtier.keys import Namespace
    from kvtier.transfer.work import ReadFrame
    from kvtier.types import ChunkKey, Geometry


RESET_WAIT_S = 1.0
"""How long a reset waits for its small file. After that it goes on without: no start finds what is stored after it."""


class Kvtier:
    """One engine's cache with its threads. Made by `build`; `stop` ends it."""

    def __init__(
        self, cache: TieredCache, epoch: Epoch, namespace: Namespace, prefill_rate: PrefillRate, copy_rate: CopyRate
    ) -> None:
        self.cache = cache
        self.prefill_rate = prefill_rate
        self.copy_rate = copy_rate
        self.last_engine_call_s = time.monotonic()
        self.recorder: TraceRecorder | None = None
        self.sealing = Sealing(RAW, PLAIN)
        self.read: ReadFrame = _no_frame
        self._epoch = epoch
        self._namespace = namespace
        self._family = namespace.family(epoch.name)
        self._on_stop: list[Callable[[], None]] = []

    @property
    def family(self) -> bytes:
        """First bytes of every key of this engine until the next reset."""
        return self._family

    def reset(self) -> None:
        """The weights may have changed: begin a new epoch. Scheduler thread; takes RESET_WAIT_S at most."""
        writing = threading.Thread(target=self._epoch.bump, name="kvtier-epoch", daemon=True)
        writing.start()
        writing.join(RESET_WAIT_S)  # a disk that hangs must not hold the engine
        name = secrets.token_hex(16) if writing.is_alive() else self._epoch.name
        self._family = self._namespace.family(name)
        self.cache.reset(self._family)

    def before_stop(self, end: Callable[[], None]) -> None:
        """Have `end` called first of all when this is stopped."""
        self._on_stop.append(end)

    def stop(self) -> None:
        """End all threads; no slot is touched afterwards."""
        while self._on_stop:
            self._on_stop.pop()()


def build(
    config: Config,
    geometry: Geometry,
    pool: memoryview | Slots | SharedPool,
    namespace: Namespace,
    *,
    report: Callable[[str], None],
    emit: Callable[[str], None],
    n_ready_slots: int | None = None,
    model_on_processors: bool = False,
    make_cache: Callable[..., TieredCache] = TieredCache,
) -> Kvtier:
    """Open the tiers of one engine over its host pool and start the threads.

    Bytes move in a helper process when it can map the pool too, else on threads of this one. A disk tier that cannot be
    opened is left out with one line to `report`; the engine runs without. Engines with the same disk directory share it
    and its capacity. `emit` gets the hit-rate log lines. With `n_ready_slots` the rest of
    the pool is not touched before `TieredCache.grow_host`. With `model_on_processors` the helper process competes for
    them at a low priority, instead of taking only what is left, which would be nothing. `make_cache` takes
    TieredCache's arguments. Called once, on the engine's main thread; may take as long as reading the store's index.
    """
    view = pool.view if isinstance(pool, SharedPool) else pool
    slots = view if isinstance(view, Slots) else Slots(view, geometry.chunk_bytes)
    n_slots = slots.n if n_ready_slots is None else min(n_ready_slots, slots.n)
    host = HostTier(n_slots, geometry.chunk_bytes, Slru(n_slots))
    depot, guard = _open_depot(config, geometry, pool, slots, report, runs_idle=not model_on_processors)
    folder = depot.folder if depot is not None else None
    namespace = guarded(namespace, guard)
    epoch = Epoch(folder / NAMESPACES if folder is not None else None, namespace)
    if folder is not None and not epoch.persistent:
        report(f"{folder / NAMESPACES} cannot be written: what is stored now will not be found after a restart")

    kvtier = None
    if depot is not None and folder is not None and config.disk is not None:
        try:
            kvtier = _with_disk(
                disk_config=config.disk,
                geometry=geometry,
                host=host,
                depot=depot,
                epoch=epoch,
                namespace=namespace,
                report=report,
                make_cache=make_cache,
            )
        except KvtierError as error:
            report(f"disk tier is off, the engine runs without it: {error}")
            depot.stop()
    if kvtier is None:
        prefill_rate, copy_rate = PrefillRate(), CopyRate()
        cache = make_cache(
            host,
            None,
            clock=time.monotonic,
            submit_promotion=_nothing,
            wake_spiller=_nothing,
            delete_frame=_nothing,
            write_behind_after_s=None,
            gate=LoadGate(
                chunk_bytes=geometry.chunk_bytes,
                tokens_per_chunk=geometry.tokens_per_chunk,
                prefill=prefill_rate,
                device=copy_rate,
            ),
        )
        kvtier = Kvtier(cache, epoch, namespace, prefill_rate, copy_rate)

    kvtier.sealing = Sealing(_codec_of(config, geometry), guard)
    kvtier.recorder = _open_recorder(config, geometry, report)
    if kvtier.recorder is not None:
        kvtier._on_stop.append(kvtier.recorder.close)  # noqa: SLF001 - this module is the class's constructor

    followed = depot if kvtier.cache.disk is not None else None
    kvtier._on_stop.append(_start_keeper(config, kvtier.cache, followed, folder, report))  # noqa: SLF001 - as above

    usage = Usage(folder / NAMESPACES, namespace) if folder is not None else None

    def snapshot() -> tuple[Stats, Gauges]:
        totals, gauges = kvtier.cache.snapshot(kvtier.prefill_rate.tokens_per_s)
        if usage is not None:
            usage.add(_counts(totals))
        return totals, gauges

    log = HitLog(
        snapshot,
        every_s=config.log.every_s,
        json=config.log.json,
        emit=emit,
    )
    log.start()
    kvtier._on_stop.append(log.stop)  # noqa: SLF001 - as above
    return kvtier


def _start_keeper(
    config: Config, cache: TieredCache, store: Depot | None, folder: Path | None, report: Callable[[str], None]
) -> Callable[[], None]:
    """Have purges and TTLs carried out, where there can be any; what ends it."""
    listener = None
    if folder is not None:
        try:
            listener = Listener(folder)
        except OSError as error:
            report(f"{folder}: a purge will not reach this engine's host RAM: {error.strerror}")
    if listener is None and not config.host.ttl.seconds:
        return _nothing
    keeper = Keeper(
        cache,
        listener,
        store=store,
        host_ttl_s=config.host.ttl.seconds,
        disk_ttl_s=config.disk.ttl.seconds if config.disk is not None else 0.0,
        report=report,
    )
    keeper.start()
    return keeper.stop


def _open_recorder(config: Config, geometry: Geometry, report: Callable[[str], None]) -> TraceRecorder | None:
    """The trace that the configuration asks for. Its salt lives as long as the engine: nobody can undo the hashes."""
    if config.trace.record is None:
        return None
    try:
        return TraceRecorder(
            config.trace.record,
            geometry.tokens_per_chunk,
            salt=secrets.token_bytes(32),
            max_bytes=config.trace.capacity_bytes,
        )
    except KvtierError as error:
        report(f"no trace is recorded: {error}")
        return None


def _with_disk(
    *,
    disk_config: Disk,
    geometry: Geometry,
    host: HostTier,
    depot: Depot,
    epoch: Epoch,
    namespace: Namespace,
    report: Callable[[str], None],
    make_cache: Callable[..., TieredCache],
) -> Kvtier:
    prior = Prior(depot.folder / NAMESPACES, namespace, "prefill", len(Cost._fields))
    known = prior.load()
    prefill_rate, copy_rate = PrefillRate(Cost(*known) if known is not None else None), CopyRate()
    disk = DiskTier(depot.n_shards, depot.shard_bytes, depot.frame_cost, LinkedSlru(1), first_shard=os.getpid())
    disk.set_family(namespace.family(epoch.name))
    for shard, key in disk.load(depot.scan(), alone=depot.opened_alone):
        depot.delete(shard, key)
    give_back_memory()
    budget = None
    if disk_config.write_budget.n_bytes is not None:
        budget = WriteBudget(
            disk_config.path,
            per_day_bytes=disk_config.write_budget.n_bytes,
            burst_bytes=disk_config.write_burst_bytes,
            report=report,
        )
    max_under_way = max(UNDER_WAY, 2 * depot.plan.n_readers)
    cache = make_cache(
        host,
        disk,
        clock=time.monotonic,
        submit_promotion=depot.submit_promotion,
        wake_spiller=depot.wake_spiller,
        delete_frame=depot.delete,
        max_under_way=max_under_way,
        write_behind_after_s=disk_config.write_behind_after_s if disk_config.write == "ahead" else None,
        gate=LoadGate(
            chunk_bytes=geometry.chunk_bytes,
            tokens_per_chunk=geometry.tokens_per_chunk,
            prefill=prefill_rate,
            device=copy_rate,
            mode=disk_config.load,
            min_tokens=disk_config.min_tokens or 0,
            n_lanes=min(depot.plan.n_at_work, max_under_way),
        ),
        admit_share=disk_config.admit.share,
        budget=budget,
    )
    kvtier = Kvtier(cache, epoch, namespace, prefill_rate, copy_rate)
    if isinstance(depot, LocalDepot):
        kvtier.read = depot.read
    n_probed = max(depot.plan.n_readers, PROBE_BYTES // geometry.chunk_bytes)
    # Where nothing is decided by what it finds, it would only be in the way of the first loads.
    probed = disk.sample(n_probed) if disk_config.load == "auto" else []

    def keep_rate() -> None:
        if prefill_rate.cost is not None:
            prior.save(prefill_rate.cost)

    index = SharedIndex(disk, cache._lock, depot.delete, cache.written_elsewhere)  # noqa: SLF001 - composed here
    depot.start(cache, index, lambda: kvtier.last_engine_call_s, keep_rate)
    depot.probe(probed, cache.assume_load_rate)

    def stop() -> None:
        stopped = depot.stop()
        if budget is not None:
            budget.close()
        if not stopped:
            report("a transfer thread is stuck in the disk tier; its store stays open until the process ends")

    kvtier._on_stop.append(stop)  # noqa: SLF001 - this module is the class's constructor
    return kvtier


def _open_depot(
    config: Config,
    geometry: Geometry,
    pool: memoryview | Slots | SharedPool,
    slots: Slots,
    report: Callable[[str], None],
    *,
    runs_idle: bool,
) -> tuple[Depot | None, Guard]:
    """The disk tier's, if it is to have one and that can be opened, and what guards its frames."""
    guard = PLAIN
    if config.disk is None:
        return None, guard
    try:
        secret = secret_for(config)
        guard = guard_of(secret)
        n_reads_ahead = READS_AHEAD if isinstance(pool, SharedPool) else 0
        plan = _plan(config, config.disk, geometry, secret, report, n_reads_ahead=n_reads_ahead, runs_idle=runs_idle)
        if isinstance(pool, SharedPool):
            return HelperDepot(plan, pool, report=report), guard
        return LocalDepot(plan, slots, report=report), guard
    except (KvtierError, OSError) as error:
        report(f"disk tier is off, the engine runs without it: {error}")
        return None, guard


def _plan(
    config: Config,
    disk: Disk,
    geometry: Geometry,
    secret: Secret,
    report: Callable[[str], None],
    *,
    n_reads_ahead: int,
    runs_idle: bool,
) -> Plan:
    """What the disk tier is to be, in a directory that is fit for it."""
    secure_directory(disk.path, OUR_NAMES)
    if (disk.path / NAMESPACES).is_symlink():  # left from a time when others could write here
        raise StoreError(f"{disk.path / NAMESPACES} is a symlink; remove it")
    space = DiskSpace.at(disk.path)
    try:
        check_disk_fits(config, space)
    except ConfigError as error:
        report(f"{error}; going on, and what does not fit is not kept")
    return Plan(
        folder=disk.path,
        capacity_bytes=disk_bytes(config, space),
        shard_map_bytes=shard_map_bytes_for(geometry.chunk_bytes),
        sync_commits=disk.durability == "commit",
        chunk_bytes=geometry.chunk_bytes,
        dtype=geometry.dtype,
        raw=disk.codec == "raw",
        n_promote_threads=disk.promote_threads,
        n_reads_ahead=n_reads_ahead,
        poll_s=max(0.05, disk.write_behind_after_s / 4),
        sync_every_s=disk.sync_every_s,
        runs_idle=runs_idle,
        secret=secret,
    )


def frame_room(config: Config, geometry: Geometry) -> int:
    """Bytes that the frame of a chunk takes at most, for slots that hold frames."""
    try:
        guard = guard_for(config)
    except (KvtierError, OSError):  # then `build` leaves the disk tier out, and says so
        guard = PLAIN
    return frame_bound(geometry.chunk_bytes, _codec_of(config, geometry), guard)


def _codec_of(config: Config, geometry: Geometry) -> Codec:
    return RAW if config.disk is not None and config.disk.codec == "raw" else codec_for(geometry.dtype)


def _counts(totals: Stats) -> dict[str, int]:
    """What `kvtier inspect` shows of a namespace's use."""
    hits = {f"{source.name.lower()}_hit_tokens": totals.hit_tokens[source] for source in Source}
    return {"requests": totals.requests, "asked_tokens": totals.asked_tokens, **hits}


def _no_frame(_shard: int, _key: ChunkKey, _use: Callable[[memoryview], None], /) -> Miss | None:
    return Miss.NEW


def _nothing(*_: object) -> None:
    return None
