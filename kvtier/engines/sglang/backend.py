"""Backend: what SGLang's cache controller asks of a storage backend, in terms of kvtier's pages.

Four of SGLang's threads call it, for each rank one of each: the scheduler's (registration, statistics, clear), one that
asks what exists, one that loads, one that stores. No method raises into them; each ends within seconds, because
SGLang ends a server whose storage threads do not stop within ten. Knows SGLang's classes by their attributes only.
"""

from __future__ import annotations

import functools
import logging
import mmap
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from kvtier import build
from kvtier.engines.sglang import compat, settings
from kvtier.engines.sglang.namespace import build_namespace, rank_of
from kvtier.engines.sglang.pools import KV, HostPool
from kvtier.errors import ConfigError
from kvtier.keys import NO_TENANT
from kvtier.pages import GET_TIMEOUT_S, PUT_TIMEOUT_S, Pages
from kvtier.pages_cache import PagesCache
from kvtier.transfer.slots import FrameSlots
from kvtier.types import ChunkKey, Geometry, Source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from kvtier.codec.pieces import Segments

_LOG = logging.getLogger("sglang.kvtier")

FEW_TOKENS = 16
"""Pages of fewer tokens make frames that compress and write badly."""

QUIET_TIMEOUT_S = 2.0
"""The scheduler waits so long at most for copies under way to end."""


def _fenced(on_error: Callable[..., Any]) -> Callable[[Any], Any]:
    """Turn an exception of a method into the answer `on_error(*args)`, a counter and one log line."""

    def wrap(method: Any) -> Any:
        @functools.wraps(method)
        def fenced(self: Backend, *args: Any, **kwargs: Any) -> Any:
            try:
                return method(self, *args, **kwargs)
            except Exception:  # noqa: BLE001 - see the module's first lines
                self.note_engine_error(method.__name__)
                return on_error(*args)

        return fenced

    return wrap


def _none_done(items: Sequence[Any], *_: Any) -> list[bool]:
    return [False] * len(items)


def _no_transfer_done(transfers: Sequence[Any], *_: Any) -> dict[Any, list[bool]]:
    return {transfer.name: [False] * len(transfer.keys or ()) for transfer in transfers}


class _Open(NamedTuple):
    """The running cache."""

    kvtier: build.Kvtier
    cache: PagesCache
    pages: Pages
    page_bytes: int
    pool: mmap.mmap


class Backend:
    """One per rank, in its scheduler process. See SGLang's HiCacheStorage for who calls what."""

    def __init__(self, storage_config: Any, kwargs: Any = None) -> None:
        """Check the configuration; nothing is opened before the first host pool is known. Raises ConfigError."""
        del kwargs
        self.version = compat.installed()
        warning = compat.version_warning(self.version)
        self._storage = storage_config
        self._first_rank = not (storage_config.tp_rank or storage_config.pp_rank or storage_config.attn_cp_rank)
        if warning and self._first_rank:
            _LOG.warning("kvtier: %s", warning)
        self._config = settings.settle(storage_config.extra_config, first_rank=self._first_rank)
        self._pools: dict[str, HostPool] = {}
        self._open: _Open | None = None
        self._opening = threading.Lock()
        self._weights_changed = False
        self._complained = False

    # ---- the scheduler thread ---------------------------------------------------------------------------------------

    def register_mem_pool_host(self, mem_pool_host: Any) -> None:
        """The pool that v0 and v1 calls are about. Opens the tiers; no other thread calls before it returns."""
        self.mem_pool_host = mem_pool_host
        if mem_pool_host.page_size < FEW_TOKENS and self._first_rank:
            _LOG.warning(
                "kvtier: every %d tokens become a frame of their own on disk; --page-size 64 stores and loads faster",
                mem_pool_host.page_size,
            )
        self._register_softly(mem_pool_host, KV)

    def register_mem_host_pool_v2(self, host_pool: Any, host_pool_name: Any) -> None:
        """One of the pools that v2 calls name, the first one included."""
        name = _plain(host_pool_name)
        if name != KV:
            self._register_softly(host_pool, name)

    def clear(self) -> None:
        """Forget every page of this model as it is served; what others keep in the same directory stays."""
        try:
            with self._still() as opened:
                if opened is None:
                    _LOG.warning("kvtier: nothing cleared, pages are still being copied; try again")
                else:
                    opened.cache.forget_all(opened.kvtier.family)
                    _LOG.info("kvtier: all pages of this server forgotten")
        except Exception:  # noqa: BLE001 - the scheduler's thread
            self.note_engine_error("clear")

    @_fenced(lambda: None)
    def weights_changed(self) -> None:
        """The weights were replaced: nothing stored so far may be found again."""
        self._weights_changed = True
        self._begin_epoch()

    def close(self) -> None:
        """End all threads. SGLang often kills the process instead, so nothing depends on it."""
        with self._opening:
            opened, self._open = self._open, None
        if opened is not None:
            opened.kvtier.stop()

    # ---- what exists ------------------------------------------------------------------------------------------------

    @_fenced(lambda *_: False)
    def exists(self, key: str) -> bool:
        """Whether the page of `key` is here."""
        opened = self._ready()
        return opened is not None and opened.pages.holds(self._key(opened, self._pools[KV], key))

    @_fenced(lambda *_: 0)
    def batch_exists(self, keys: Sequence[str], extra_info: Any = None) -> int:
        """How many of `keys` are here, from the first on; one request's prompt beyond what SGLang has itself."""
        del extra_info
        opened = self._ready()
        if opened is None:
            return 0
        n_held = self._n_held(opened, self._pools[KV], keys)
        self._count_asked(opened, keys, n_held)
        return n_held

    def held_of(self, keys: Sequence[str], pool_name: str) -> list[bool]:
        """Which of `keys` are here as pages of one pool."""
        opened, pool = self._ready(), self._pools.get(pool_name)
        if opened is None or pool is None:
            return [False] * len(keys)
        return [opened.pages.holds(self._key(opened, pool, key)) for key in keys]

    # ---- loading ----------------------------------------------------------------------------------------------------

    @_fenced(_none_done)
    def batch_get_v1(self, keys: Sequence[str], host_indices: Any, extra_info: Any = None) -> list[bool]:
        """Fill the pages of `host_indices` with those of `keys`: which came. None behind the first that did not."""
        del extra_info
        return self._get_into(KV, keys, host_indices, time.monotonic() + GET_TIMEOUT_S)

    @_fenced(_no_transfer_done)
    def batch_get_v2(self, transfers: Sequence[Any], extra_info: Any = None) -> dict[Any, list[bool]]:
        """The same for several pools, within the same time altogether."""
        del extra_info
        deadline_s = time.monotonic() + GET_TIMEOUT_S
        done: dict[Any, list[bool]] = {}
        for transfer in transfers:  # a pool may be named twice, with different pages
            came = self._get_into(name_of(transfer), transfer.keys or (), transfer.host_indices, deadline_s)
            done.setdefault(transfer.name, []).extend(came)
        return done

    @_fenced(lambda *_: None)
    def get(self, key: str, target_location: Any = None, target_sizes: Any = None) -> Any:
        """v0: fill one flat tensor; None if it did not come."""
        del target_sizes
        return self.batch_get([key], [target_location])[0]

    @_fenced(lambda keys, *_: [None] * len(keys))
    def batch_get(self, keys: Sequence[str], target_locations: Any = None, target_sizes: Any = None) -> list[Any]:
        """v0: fill flat tensors; None in the place of each that did not come."""
        del target_sizes
        opened, pool = self._ready(), self._pools[KV]
        tensors = list(target_locations or [])
        if opened is None or not self._are_pages(pool, tensors, len(keys)):
            return [None] * len(keys)
        done = self._get(opened, pool, keys, _flat(tensors), time.monotonic() + GET_TIMEOUT_S)
        return [tensor if came else None for tensor, came in zip(tensors, done, strict=True)]

    # ---- storing ----------------------------------------------------------------------------------------------------

    @_fenced(_none_done)
    def batch_set_v1(self, keys: Sequence[str], host_indices: Any, extra_info: Any = None) -> list[bool]:
        """Take over the pages of `host_indices`: which are kept. SGLang may reuse their memory afterwards."""
        del extra_info
        return self._put_from(KV, keys, host_indices, time.monotonic() + PUT_TIMEOUT_S)

    @_fenced(_no_transfer_done)
    def batch_set_v2(self, transfers: Sequence[Any], extra_info: Any = None) -> dict[Any, list[bool]]:
        """The same for several pools, within the same time altogether."""
        del extra_info
        deadline_s = time.monotonic() + PUT_TIMEOUT_S
        done: dict[Any, list[bool]] = {}
        for transfer in transfers:
            kept = self._put_from(name_of(transfer), transfer.keys or (), transfer.host_indices, deadline_s)
            done.setdefault(transfer.name, []).extend(kept)
        return done

    @_fenced(lambda *_: False)
    def set(self, key: str, value: Any = None, target_location: Any = None, target_sizes: Any = None) -> bool:
        """v0: take over one flat tensor."""
        del target_sizes
        return self.batch_set([key], [target_location if value is None else value])

    @_fenced(lambda *_: False)
    def batch_set(
        self, keys: Sequence[str], values: Any = None, target_locations: Any = None, target_sizes: Any = None
    ) -> bool:
        """v0: take over flat tensors; whether all are kept."""
        del target_sizes
        opened, pool = self._ready(), self._pools[KV]
        tensors = [tensor.contiguous() for tensor in (target_locations if values is None else values)]
        if opened is None or not self._are_pages(pool, tensors, len(keys)):
            return False
        return all(self._put(opened, pool, keys, _flat(tensors), time.monotonic() + PUT_TIMEOUT_S))

    # ---- statistics -------------------------------------------------------------------------------------------------

    def note_engine_error(self, where: str) -> None:
        """Count an error at the engine's door, and log the first."""
        opened = self._open
        if opened is not None:
            opened.cache.stats.engine_errors += 1
        if not self._complained:
            self._complained = True
            _LOG.exception("kvtier: %s failed; SGLang goes on without this answer (logged once, counted)", where)

    def moved(self, *, loaded: bool, n_pages: int, n_bytes: int, seconds: float) -> None:
        """A batch was moved. For SGLang's own statistics."""

    def snapshot(self) -> Any:
        """Totals and state of this rank; None while the tiers are not open."""
        opened = self._open
        return None if opened is None else opened.cache.snapshot(0.0)

    def _count_asked(self, opened: _Open, keys: Sequence[str], n_held: int) -> None:
        """A request asks: what is not here is missed now, what is here counts when it has come or not come."""
        pool = self._pools[KV]
        opened.cache.count(Source.HOST, 0, requests=1)
        if n_held < len(keys):
            reason = opened.cache.why(self._key(opened, pool, keys[n_held]))
            opened.cache.count(reason, (len(keys) - n_held) * pool.page_rows)

    # ---- own --------------------------------------------------------------------------------------------------------

    def _register_softly(self, host_pool: Any, name: str) -> None:
        """A bad configuration ends the start, or the attaching. Anything else: the server runs without kvtier."""
        try:
            self._register(host_pool, name)
        except ConfigError:
            raise
        except Exception:  # noqa: BLE001 - whatever it is, the server can do without
            self.note_engine_error("opening the tiers")

    def _register(self, host_pool: Any, name: str) -> None:
        # Where all TP ranks hold the same KV, Mamba states and a draft model's heads are cut among them all the same.
        cut = name.startswith("mamba") or type(host_pool).__name__.startswith("MHA")
        replicated = bool(self._storage.is_mla_model) and not cut
        pool = HostPool(host_pool, name, rank_of(self._storage, replicated=replicated))
        with self._opening:
            self._pools[name] = pool
            opened = self._open
            if opened is None or opened.page_bytes < pool.page_bytes:
                # The write buffer's slots have room for the frame of the longest page.
                self._open = None
                if opened is not None:
                    opened.kvtier.stop()
                opened = self._start()
            self._open = opened

    def _start(self) -> _Open:
        page_bytes = max(pool.page_bytes for pool in self._pools.values())
        anchor = self._pools[KV]
        geometry = Geometry(page_bytes, anchor.page_rows, anchor.dtype)
        slot_bytes = build.frame_room(self._config, geometry)
        n_slots = settings.buffer_pages(self._config, slot_bytes)
        memory = mmap.mmap(-1, n_slots * slot_bytes)  # pages of it are made when they are first used
        slots = FrameSlots(memoryview(memory), slot_bytes)
        kvtier = build.build(
            self._config,
            geometry,
            slots,
            build_namespace(self._storage, compat.Settings(), anchor, self.version),
            report=lambda line: _LOG.warning("kvtier: %s", line),
            emit=_LOG.info,
            make_cache=PagesCache,
        )
        cache = kvtier.cache
        assert isinstance(cache, PagesCache)
        n_threads = self._config.disk.promote_threads if self._config.disk is not None else 1
        pages = Pages(cache, slots, kvtier.sealing, kvtier.read, n_threads=n_threads)
        kvtier.before_stop(pages.stop)
        return _Open(kvtier, cache, pages, page_bytes, memory)

    def _ready(self) -> _Open | None:
        """The running cache; None while there is none, or while it may hold KV of replaced weights."""
        if self._weights_changed:
            self._begin_epoch()
        return None if self._weights_changed else self._open

    def _begin_epoch(self) -> None:
        with self._still() as opened:
            if opened is not None:
                opened.kvtier.reset()
                self._weights_changed = False
                _LOG.info("kvtier: the weights were replaced; pages stored so far will not be found again")

    @contextmanager
    def _still(self) -> Iterator[_Open | None]:
        """The running cache, in which no page is copied during the block; None if that could not be had in time."""
        opened = self._open
        if opened is None:
            yield None
            return
        with opened.pages.quiet(QUIET_TIMEOUT_S) as quiet:
            yield opened if quiet else None

    def _key(self, opened: _Open, pool: HostPool, key: str) -> ChunkKey:
        return ChunkKey(opened.kvtier.family + pool.kind + NO_TENANT + _page_hash(key))

    def _keys(self, opened: _Open, pool: HostPool, keys: Sequence[str]) -> list[ChunkKey]:
        prefix = opened.kvtier.family + pool.kind + NO_TENANT
        return [ChunkKey(prefix + _page_hash(key)) for key in keys]

    def _n_held(self, opened: _Open, pool: HostPool, keys: Sequence[str]) -> int:
        return opened.pages.n_held(self._keys(opened, pool, keys))

    def _are_pages(self, pool: HostPool, tensors: Sequence[Any], n: int) -> bool:
        """Whether `tensors` are one contiguous page each, in memory that can be copied from and to."""
        return len(tensors) == n and all(
            tensor is not None
            and tensor.is_contiguous()
            and tensor.device.type == "cpu"
            and tensor.numel() * tensor.element_size() == pool.page_bytes
            for tensor in tensors
        )

    def _get_into(self, name: str, keys: Sequence[str], host_indices: Any, deadline_s: float) -> list[bool]:
        opened, pool = self._ready(), self._pools.get(name)
        if opened is None or pool is None or pool.n_pages(host_indices) != len(keys):
            return [False] * len(keys)
        done = self._get(opened, pool, keys, pool.targets(host_indices), deadline_s)
        pool.landed(host_indices, done.index(False) if False in done else len(done))
        return done

    def _get(
        self, opened: _Open, pool: HostPool, keys: Sequence[str], targets: Sequence[Segments], deadline_s: float
    ) -> list[bool]:
        began_s = time.monotonic()
        got = opened.pages.get(self._keys(opened, pool, keys), targets, deadline_s - began_s)
        done = [isinstance(source, Source) for source in got]
        if pool is self._pools[KV]:
            for source in set(got):
                opened.cache.count(source, got.count(source) * pool.page_rows)
        n = sum(done)
        self.moved(loaded=True, n_pages=n, n_bytes=n * pool.page_bytes, seconds=time.monotonic() - began_s)
        return done

    def _put_from(self, name: str, keys: Sequence[str], host_indices: Any, deadline_s: float) -> list[bool]:
        opened, pool = self._ready(), self._pools.get(name)
        if opened is None or pool is None or pool.n_pages(host_indices) != len(keys):
            return [False] * len(keys)
        return self._put(opened, pool, keys, pool.sources(host_indices), deadline_s)

    def _put(
        self, opened: _Open, pool: HostPool, keys: Sequence[str], sources: Sequence[Segments], deadline_s: float
    ) -> list[bool]:
        began_s = time.monotonic()
        done = opened.pages.put(self._keys(opened, pool, keys), sources, deadline_s - began_s)
        n = sum(done)
        self.moved(loaded=False, n_pages=n, n_bytes=n * pool.page_bytes, seconds=time.monotonic() - began_s)
        return done


def name_of(transfer: Any) -> str:
    """The name of the pool that one of SGLang's PoolTransfers is about."""
    return _plain(transfer.name)


def _plain(name: Any) -> str:
    return str(getattr(name, "value", name))


def _page_hash(key: str) -> bytes:
    """SGLang's page hash, 64 hexadecimal digits since it has been chained, as 32 bytes; any other name as it is."""
    try:
        digest = bytes.fromhex(key)
    except ValueError:
        digest = b""
    return digest if len(digest) == 32 else b"\0" + key.encode()


def _flat(tensors: Sequence[Any]) -> list[Segments]:
    return [[(tensor.data_ptr(), tensor.numel() * tensor.element_size())] for tensor in tensors]
