"""Churn: a full disk tier that replaces a frame for every frame it takes, turn after turn -> does it keep its speed?

Frames of varying size go through DiskTier and LmdbStore as the spill threads send them, sealed beforehand, so that
store and accounting are measured and not the codec. Victims are drawn at random, taken oldest first, or chosen by the
policy on a made-up trace of conversations. GB/s are of frames as stored, the disk's waiting included.
"""

from __future__ import annotations

import mmap
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from kvtier.bench.base import GB, MIB, Conditions, Result
from kvtier.bench.ceilings import DirectFile, fsync_tree, has_direct_io
from kvtier.bench.peers import FilePerChunk
from kvtier.bench.store import key_of
from kvtier.errors import StoreFullError
from kvtier.policy.linked import LinkedSlru
from kvtier.residency import Placement
from kvtier.store.direct import start_writeback
from kvtier.store.lmdb import LmdbStore, shard_map_bytes_for
from kvtier.tiers.disk import MAX_VICTIM_SCAN, DiskTier
from kvtier.transfer.batch import Workers, in_parallel
from kvtier.transfer.mover import SPILL_BATCH, SPILL_THREADS
from kvtier.types import ChunkKey

VICTIMS = ("random", "policy", "fifo")
_TURNS, _TURNS_LARGE, _LARGE_BYTES = 10, 3, 8 << 30
"""How often the whole tier is replaced; less often when that is a lot of bytes."""

_SMALLEST, _LARGEST = 0.62, 0.76
"""Stored bytes of a frame as shares of its chunk: bf16 KV compresses 1.45 times, give or take a tenth."""

_SYNC_EVERY_S = 5.0
_CAPACITY_PER_FRAME_BYTE = 1.25  # live bytes are at most 0.8 of what the tier may take
_PEER_BYTES = 1 << 30
_FOLLOWS = 0.5  # share of requests that go on with an earlier conversation, a recent one most likely


def run(conditions: Conditions) -> Iterator[Result]:
    """Every kind of victim in turn. The figures asked for are those of the worst kind; all kinds stand beside them."""
    peers = _peers(conditions)
    churns = {victims: churn(conditions, victims) for victims in VICTIMS}
    worst = min(churns.values(), key=lambda one: one.last_vs_first)
    yield Result("churn.last_vs_first", worst.last_vs_first, "x", _by(churns, lambda one: one.last_vs_first))
    yield Result("churn.gb_per_s", min(c.rate for c in churns.values()), "GB/s", peers | _by(churns, lambda c: c.rate))
    yield Result(
        "churn.max_bytes_over_capacity",
        max(one.bytes_over for one in churns.values()),
        "B",
        _by(churns, lambda one: one.bytes_over),
    )
    yield Result(
        "churn.write_amplification",
        max(one.amplification for one in churns.values()),
        "x",
        _by(churns, lambda one: one.amplification),
    )
    yield Result(
        "churn.cpu_s_per_gb",
        max(one.cpu_s_per_gb[-1] for one in churns.values()),
        "s/GB",
        {"first_tenth": max(one.cpu_s_per_gb[0] for one in churns.values())}
        | _by(churns, lambda one: one.cpu_s_per_gb[-1]),
    )


@dataclass
class Churn:
    """What became of one kind of victim."""

    rates: list[float] = field(default_factory=list)  # GB/s of each tenth of what was replaced
    cpu_s_per_gb: list[float] = field(default_factory=list)  # of each tenth: what is ours when the disk is not steady
    rate: float = 0.0  # GB/s of all of it
    bytes_over: float = 0.0  # the most that the files ever took beyond the capacity; 0 if they never did
    amplification: float = 0.0  # bytes written to the device for each byte of frame
    n_full: int = 0  # batches for which a shard had no room
    n_refused: int = 0  # frames for which no room could be made

    @property
    def last_vs_first(self) -> float:
        """The last tenth's rate over the first's."""
        return self.rates[-1] / self.rates[0]


def churn(conditions: Conditions, victims: str) -> Churn:
    """Fill a tier with `data_bytes` of frames, then replace all of it several times."""
    turns = _TURNS_LARGE if conditions.data_bytes >= _LARGE_BYTES else _TURNS
    tier = _Tier(conditions, victims)
    out = Churn()
    try:
        conditions.progress(f"{victims} victims: filling {conditions.data_bytes / GB:.1f} GB")
        while not tier.n_evicted:
            tier.batch()
        tier.settle()
        all_bytes, all_s = 0, 0.0
        written_before = _written_bytes(conditions.folder)
        for tenth in range(10):
            conditions.progress(f"{victims} victims: replacing it {turns} times, {tenth * 10} %")
            started, cpu, n_bytes = time.perf_counter(), time.process_time(), 0
            while n_bytes < conditions.data_bytes * turns // 10:
                n_bytes += tier.batch()
            tier.settle()
            elapsed_s = time.perf_counter() - started
            out.rates.append(n_bytes / elapsed_s / GB)
            out.cpu_s_per_gb.append((time.process_time() - cpu) / n_bytes * GB)
            all_bytes, all_s = all_bytes + n_bytes, all_s + elapsed_s
        out.rate = all_bytes / all_s / GB
        out.amplification = (_written_bytes(conditions.folder) - written_before) / all_bytes
        out.bytes_over = max(0, tier.most_bytes - tier.capacity_bytes)
        out.n_full, out.n_refused = tier.n_full, tier.n_refused
        conditions.note(
            f"churn, {victims}: {all_bytes / GB:.1f} GB over {conditions.data_bytes / GB:.1f} in {tier.store.n_shards} "
            f"shards; GB/s by tenth {' '.join(f'{rate:.2f}' for rate in out.rates)}; CPU s/GB by tenth "
            f"{' '.join(f'{cpu:.2f}' for cpu in out.cpu_s_per_gb)}; files at most "
            f"{tier.most_bytes / tier.capacity_bytes:.3f} of the capacity; {out.n_full} full shards, "
            f"{out.n_refused} refused frames"
        )
        return out
    finally:
        tier.close()


class _Tier:
    """A disk tier, its store, and what comes to it."""

    def __init__(self, conditions: Conditions, victims: str) -> None:
        self.n_evicted = self.n_full = self.n_refused = 0
        self.most_bytes = 0
        self.capacity_bytes = max(64 * MIB, int(conditions.data_bytes * _CAPACITY_PER_FRAME_BYTE))
        self._folder = conditions.folder / f"churn-{victims}"
        map_bytes = shard_map_bytes_for(conditions.chunk_bytes)
        self.store = LmdbStore.open(self._folder, self.capacity_bytes, shard_map_bytes=map_bytes)
        self._rng = _rng(0)
        policy: LinkedSlru = _RandomVictims(self._rng) if victims == "random" else LinkedSlru(1)
        self._tier = DiskTier(self.store.n_shards, self.store.shard_bytes, self.store.frame_cost, policy)
        self._tier.load(self.store.scan())  # nothing; from here on the store knows its own writes from others'
        self._keys = _conversations(self._tier, self._rng) if victims == "policy" else map(key_of, count())
        self._chunk_bytes = conditions.chunk_bytes
        self._noise = memoryview(_rng(1).randbytes(2 * conditions.chunk_bytes))
        self._helpers = Workers(SPILL_THREADS - 1, "churn")
        self._tier_lock = threading.Lock()
        self._synced_s = time.perf_counter()

    def batch(self) -> int:
        """One round of the spill threads; bytes of frames that came to disk."""
        frames: dict[ChunkKey, memoryview] = {}
        while len(frames) < SPILL_BATCH:
            start = self._rng.randrange(self._chunk_bytes)
            n_bytes = int(self._chunk_bytes * self._rng.uniform(_SMALLEST, _LARGEST))
            frames.setdefault(next(self._keys), self._noise[start : start + n_bytes])
        by_shard: dict[int, list[tuple[Placement, memoryview]]] = {}
        placements = self._tier.place_all([(key, len(frame)) for key, frame in frames.items()])
        for frame, placement in zip(frames.values(), placements, strict=True):
            if placement is None:
                self.n_refused += 1
            else:
                self.n_evicted += len(placement.evicted)
                by_shard.setdefault(placement.frame.shard, []).append((placement, frame))
        n_bytes = sum(in_parallel(self._helpers, self._write, list(by_shard.items())))
        if time.perf_counter() - self._synced_s > _SYNC_EVERY_S:
            self.settle()
        return n_bytes

    def settle(self) -> None:
        """Wait until the disk has everything, and look how much it is."""
        self.store.sync()
        self._synced_s = time.perf_counter()
        self.most_bytes = max(self.most_bytes, _bytes_in(self._folder))

    def close(self) -> None:
        """Let go of the files and remove them."""
        self._helpers.stop()
        self.store.close()
        for path in self._folder.iterdir():
            path.unlink()

    def _write(self, shard: int, items: list[tuple[Placement, memoryview]]) -> int:
        deletes = [key for placement, _ in items for _, key in placement.evicted]
        try:
            self.store.write(shard, [(placement.frame.key, frame) for placement, frame in items], deletes)
        except StoreFullError:
            with self._tier_lock:
                self.n_full += 1
                for placement, _ in items:
                    self._tier.drop(placement.frame.key)
                self._tier.shard_full(shard)
            return 0
        with self._tier_lock:
            for placement, _ in items:
                self._tier.committed(placement.frame)
        return sum(len(frame) for _, frame in items)


class _RandomVictims(LinkedSlru):
    """Whoever it hits: the worst there is for finding room for the next frame."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__(1)
        self._rng = rng
        self._listed: list[ChunkKey] = []
        self._places: dict[ChunkKey, int] = {}

    def enter(self, key: ChunkKey) -> int:
        """As LinkedSlru's."""
        self._places[key] = len(self._listed)
        self._listed.append(key)
        return super().enter(key)

    def remove(self, key: ChunkKey, *, evicted: bool) -> None:
        """As LinkedSlru's."""
        super().remove(key, evicted=evicted)
        place, last = self._places.pop(key), self._listed.pop()
        if last != key:
            self._listed[place] = last
            self._places[last] = place

    def victims(self) -> Iterator[ChunkKey]:
        """Keys drawn one by one, as many as are looked at; one that comes up twice counts once."""
        drawn: set[ChunkKey] = set()
        for _ in range(min(MAX_VICTIM_SCAN, len(self._listed))):
            key = self._listed[int(self._rng.random() * len(self._listed))]
            if key not in drawn:
                drawn.add(key)
                yield key


def _conversations(tier: DiskTier, rng: random.Random) -> Iterator[ChunkKey]:
    """Chunks that are not on disk, of requests that often go on with a recent conversation and use it once more."""
    numbers = count()
    conversations: list[list[ChunkKey]] = []
    while True:
        if conversations and rng.random() < _FOLLOWS:
            back = min(len(conversations), 1 + int(rng.expovariate(4 / (1 + len(conversations)))))
            chain = conversations.pop(-back)
        else:
            chain = []
        chain += [key_of(next(numbers)) for _ in range(rng.randint(2, 24))]
        conversations.append(chain)
        for key in reversed(chain):
            if key in tier:
                tier.touch(key)
        for key in chain:
            if key not in tier:
                yield key
        del conversations[:-4096]


def _peers(conditions: Conditions) -> dict[str, float]:
    """GB/s of other ways to write frames, with the disk's waiting: a sequential file, and a file for each frame."""
    n_bytes = min(_PEER_BYTES, conditions.data_bytes)
    rates: dict[str, float] = {}
    if has_direct_io(conditions.folder):
        direct = DirectFile(conditions.folder / "direct.bin", n_bytes)
        rates["odirect"] = direct.n_bytes / _seconds(direct.write) / GB
        direct.path.unlink()
    rates["page_cache"] = _rewritten_in_place(conditions)
    folder = conditions.folder / "files"
    files = FilePerChunk(folder)
    rng = _rng(0)
    sizes = [int(conditions.chunk_bytes * rng.uniform(_SMALLEST, _LARGEST)) for _ in range(conditions.n_chunks)]
    sizes = sizes[: n_bytes // conditions.chunk_bytes]
    noise = memoryview(rng.randbytes(conditions.chunk_bytes))

    def replace_each() -> None:
        for number, size in enumerate(sizes):
            files.write(number, noise[:size])
        fsync_tree(folder)

    replace_each()
    conditions.progress("a file for each frame, replaced")
    rates["file_per_chunk"] = sum(sizes) / _seconds(replace_each) / GB
    return rates


def _rewritten_in_place(conditions: Conditions) -> float:
    """GB/s of frames written to random places of one full file as large as the store: no tree, no room to be found.

    What is left is the copy into the page cache, its memory, and the disk.
    """
    path, rng = conditions.folder / "file.bin", _rng(0)
    noise = memoryview(rng.randbytes(2 * conditions.chunk_bytes))
    n_file_bytes = int(conditions.data_bytes * _CAPACITY_PER_FRAME_BYTE)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)

    def write(offset: int) -> int:
        start = rng.randrange(conditions.chunk_bytes)
        n_bytes = int(conditions.chunk_bytes * rng.uniform(_SMALLEST, _LARGEST))
        n_bytes = os.pwrite(descriptor, noise[start : start + n_bytes], offset)
        start_writeback(descriptor)
        return n_bytes

    def rewrite() -> None:
        n_bytes = 0
        while n_bytes < conditions.data_bytes:
            n_bytes += write(
                rng.randrange(max(1, n_file_bytes - conditions.chunk_bytes)) // mmap.PAGESIZE * mmap.PAGESIZE
            )
        os.fsync(descriptor)

    conditions.progress("a file rewritten in place through the page cache")
    try:
        for offset in range(0, n_file_bytes, conditions.chunk_bytes // 2):
            write(offset)
        os.fsync(descriptor)
        return conditions.data_bytes / _seconds(rewrite) / GB
    finally:
        os.close(descriptor)
        path.unlink()


def _rng(seed: int) -> random.Random:
    return random.Random(seed)  # noqa: S311 - the same numbers in every run are the point


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _by(churns: dict[str, Churn], figure: Callable[[Churn], float]) -> dict[str, float]:
    return {victims: figure(one) for victims, one in churns.items()}


def _bytes_in(folder: Path) -> int:
    """What all files of the directory take on disk."""
    return sum(path.stat().st_blocks * 512 for path in folder.iterdir())


def _written_bytes(folder: Path) -> int:
    """Bytes written to the device that `folder` is on, whoever wrote them; what the file system hides, by this process.

    What the kernel counts for a process is more than it writes: a page of a large folio counts as all of it.
    """
    device = folder.stat().st_dev
    try:
        fields = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat").read_text().split()
        return int(fields[6]) * 512
    except OSError:
        counts = dict(line.split(b": ") for line in Path("/proc/self/io").read_bytes().splitlines())
        return int(counts[b"write_bytes"])
