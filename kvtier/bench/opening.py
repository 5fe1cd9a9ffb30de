"""The child process of the index benchmark: a filled store -> seconds, resident bytes and lookups, as JSON on stdout.

`python -m kvtier.bench.opening open|keys STORE CAPACITY_BYTES N_CHUNKS`. `open` builds the disk tier's index as an
engine does; `keys` puts the same keys into a dict and nothing else, which is the least that Python can do.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
import time
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path

from kvtier.bench.store import key_of
from kvtier.cache import TieredCache
from kvtier.policy.linked import LinkedSlru
from kvtier.policy.slru import Slru
from kvtier.residency import Chain, Promotion
from kvtier.store.listing import give_back_memory
from kvtier.store.lmdb import LmdbStore
from kvtier.tiers.disk import DiskTier
from kvtier.tiers.host import HostTier
from kvtier.types import ChunkKey, Found

_PREFIX_CHUNKS = 1_000
_N_WALKS = 9
_STRIDE = 7919
_N_POLICY = 100_000


def main() -> int:
    """Do what the command line says."""
    what, path, capacity_bytes, n_chunks = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    print(json.dumps(_open(path, capacity_bytes, n_chunks) if what == "open" else _keys(n_chunks)))  # noqa: T201 - its result
    return 0


def _open(path: Path, capacity_bytes: int, n_chunks: int) -> dict[str, float]:
    before = _memory()
    started = time.perf_counter()
    store = LmdbStore.open(path, capacity_bytes)
    disk = DiskTier(store.n_shards, store.shard_bytes, store.frame_cost, LinkedSlru(1))
    disk.set_family(key_of(0)[:8])
    stale = disk.load(store.scan())
    give_back_memory()
    open_s = time.perf_counter() - started
    after = _memory()
    assert not stale
    assert len(disk) == n_chunks
    disk_ms, host_ms, landing_us = _lookups(disk, n_chunks, _STRIDE)
    together_ms, _, _ = _lookups(disk, n_chunks, 1)
    store.close()
    policy = LinkedSlru(_N_POLICY)
    return {
        "open_s": open_s,
        "rss_bytes": after["VmRSS"] - before["VmRSS"],
        "private_bytes": after["RssAnon"] - before["RssAnon"],
        "lookup_disk_ms": disk_ms,
        "lookup_host_ms": host_ms,
        "lookup_together_ms": together_ms,
        "landing_us": landing_us,
        "insert_ns": _each_ns(policy.insert),
        "touch_ns": _each_ns(policy.touch),
    }


def _keys(n_chunks: int) -> dict[str, float]:
    numbers = iter(range(n_chunks))
    before = _memory()
    started = time.perf_counter()
    keys = dict.fromkeys(map(key_of, numbers))
    open_s = time.perf_counter() - started
    rss_bytes = _memory()["VmRSS"] - before["VmRSS"]
    prefixes = [_prefix(walk, n_chunks, _STRIDE) for walk in range(_N_WALKS)]
    ordered: OrderedDict[ChunkKey, None] = OrderedDict()
    return {
        "open_s": open_s,
        "rss_bytes": rss_bytes,
        "lookup_ms": statistics.median(_ms(partial(list, map(keys.__contains__, prefix))) for prefix in prefixes),
        "insert_ns": _each_ns(ordered.setdefault),
        "touch_ns": _each_ns(ordered.move_to_end),
    }


def _lookups(disk: DiskTier, n_chunks: int, stride: int) -> tuple[float, float, float]:
    """Milliseconds to look a prefix up that is on disk, which has it promoted, and again when it is in host RAM.

    And microseconds that a transfer thread holds the cache when a promotion ends and the next one in line begins.

    Requests with prefixes of their own follow each other over a host pool that holds two of them, so that most lookups
    have to find a slot, as they have in an engine that has run for a while. No threads: what they do is not counted.
    """
    jobs: list[Promotion] = []
    n_slots = 2 * _PREFIX_CHUNKS
    cache = TieredCache(
        HostTier(n_slots, 1 << 20, Slru(n_slots)),
        disk,
        clock=time.monotonic,
        submit_promotion=jobs.append,
        wake_spiller=lambda: None,
        delete_frame=lambda _shard, _key: None,
        write_behind_after_s=None,
    )
    disk_ms, host_ms, landing_us = [], [], []
    for walk in range(_N_WALKS):
        prefix = _prefix(walk, n_chunks, stride)
        chain = cache.open_chain()
        cache.begin_walk(chain, len(prefix))
        disk_ms.append(_ms(lambda: _walk(cache, chain, prefix, Found(len(prefix), pending=True))))  # noqa: B023 - called at once
        landing_us.append(_ms(lambda: _land(cache, jobs)) * 1e3 / len(prefix))
        jobs.clear()
        cache.begin_walk(chain, len(prefix))
        host_ms.append(_ms(lambda: _walk(cache, chain, prefix, Found(len(prefix), pending=False))))  # noqa: B023 - called at once
        cache.close_chain(chain)
    return statistics.median(disk_ms), statistics.median(host_ms), statistics.median(landing_us)


def _land(cache: TieredCache, jobs: list[Promotion]) -> None:
    for job in jobs:  # more come while they end
        cache.promoted(job, None)


def _walk(cache: TieredCache, chain: Chain, prefix: list[ChunkKey], expected: Found) -> None:
    found = cache.lookup_prefix(chain, prefix)
    if found != expected:
        raise AssertionError(f"{found}, not {expected}")


def _prefix(walk: int, n_chunks: int, stride: int) -> list[ChunkKey]:
    """Keys of one request's chunks: written one after the other (1), or at any time (a large stride)."""
    first = walk if stride > 1 else n_chunks // 2 + walk * _PREFIX_CHUNKS
    return [key_of((first + number * stride) % n_chunks) for number in range(_PREFIX_CHUNKS)]


def _each_ns(step: Callable[[ChunkKey], object]) -> float:
    keys = [key_of(number) for number in range(_N_POLICY)]
    started = time.perf_counter()
    for key in keys:
        step(key)
    return (time.perf_counter() - started) / _N_POLICY * 1e9


def _ms(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return (time.perf_counter() - started) * 1e3


def _memory() -> dict[str, int]:
    """Resident bytes of this process: VmRSS all of them, RssAnon those that no file backs."""
    text = Path("/proc/self/status").read_text(encoding="utf-8")
    return {name: int(kib) << 10 for name, kib in re.findall(r"(?m)^(VmRSS|RssAnon):\s+(\d+) kB$", text)}


if __name__ == "__main__":
    sys.exit(main())
