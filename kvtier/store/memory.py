"""MemoryStore: frames in dictionaries. Reference of both store protocols, and the store of tests and simulations."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, Self

from kvtier.errors import StoreFullError
from kvtier.store.base import Change, News
from kvtier.store.listing import Listing, listings_of
from kvtier.types import ChunkKey, Record, UsePages


class _Kept(NamedTuple):
    frame: bytes
    written_ns: int


class _Logged(NamedTuple):
    writer: MemoryStore
    change: Change


class MemoryStore:
    """Holds up to `shard_bytes` of frames in each of `n_shards` dictionaries. Forgets everything with the process."""

    def __init__(self, n_shards: int, shard_bytes: int, *, clock_ns: Callable[[], int] = time.time_ns) -> None:
        assert n_shards >= 1
        self._shards: list[dict[ChunkKey, _Kept]] = [{} for _ in range(n_shards)]
        self._shard_bytes = shard_bytes
        self._clock_ns = clock_ns
        self._lock = threading.Lock()
        self._log: list[list[_Logged]] = [[] for _ in range(n_shards)]
        self._n_known = [0] * n_shards

    def peer(self) -> Self:
        """The same frames as another process would have them open."""
        other = copy.copy(self)
        other._n_known = [0] * self.n_shards  # noqa: SLF001 - of this class
        return other

    @property
    def n_shards(self) -> int:
        """Number of dictionaries."""
        return len(self._shards)

    @property
    def shard_bytes(self) -> int:
        """Bytes of frames that one dictionary takes."""
        return self._shard_bytes

    @property
    def opened_alone(self) -> bool:
        """False: peers come when they like."""
        return False

    def frame_cost(self, n_bytes: int) -> int:
        """The frame itself: nothing is rounded here."""
        return n_bytes

    def scan(self) -> Iterator[Listing]:
        """Every frame, in the order of writing."""
        return listings_of(self._records())

    def _records(self) -> Iterator[Record]:
        for shard, kept in enumerate(self._shards):
            self._n_known[shard] = len(self._log[shard])
            for key, (frame, written_ns) in list(kept.items()):
                yield Record(key, shard, len(frame), written_ns)

    def written_before(self, shard: int, before_ns: int) -> list[ChunkKey]:
        """As the protocol says."""
        with self._lock:
            return [key for key, kept in self._shards[shard].items() if kept.written_ns < before_ns]

    def write(self, shard: int, puts: Sequence[tuple[ChunkKey, memoryview]], deletes: Sequence[ChunkKey]) -> None:
        """Apply deletes, then puts; StoreFullError applies the deletes alone."""
        kept = self._shards[shard]
        frames = {key: bytes(frame) for key, frame in puts}
        written_ns = self._clock_ns()
        with self._lock:
            log = self._log[shard]
            for key in deletes:
                if kept.pop(key, None) is not None:
                    log.append(_Logged(self, Change(key, None)))
            stays = sum(len(old.frame) for key, old in kept.items() if key not in frames)
            if stays + sum(map(len, frames.values())) > self._shard_bytes:
                raise StoreFullError(
                    f"shard {shard} holds {stays} of {self._shard_bytes} bytes: no room for {len(frames)} frames"
                )
            for key, frame in frames.items():
                kept.pop(key, None)  # a replaced frame is the newest again
                kept[key] = _Kept(frame, written_ns)
                log.append(_Logged(self, Change(key, len(frame))))

    def is_behind(self, shard: int) -> bool:
        """Whether a peer wrote since the last `news`, or since `scan`."""
        return any(entry.writer is not self for entry in self._log[shard][self._n_known[shard] :])

    def news(self, shard: int) -> News:
        """What peers did since."""
        with self._lock:
            log, first = self._log[shard], self._n_known[shard]
            self._n_known[shard] = len(log)
            last = {entry.change.key: entry for entry in log[first:]}
        return News([entry.change for entry in last.values() if entry.writer is not self], whole=False)

    def release_dead(self) -> None:
        """Nobody else can die here."""

    @contextmanager
    def read(self, shard: int, key: ChunkKey) -> Iterator[memoryview | None]:
        """Borrow a frame's bytes."""
        kept = self._shards[shard].get(key)
        if kept is None:
            yield None
            return
        with memoryview(kept.frame) as frame:
            yield frame

    def lend(self, wanted: Sequence[tuple[int, ChunkKey]], use: UsePages) -> list[bool]:
        """There are no files."""
        return use([None] * len(wanted))

    def sync(self) -> None:
        """Nothing survives a power loss here."""

    def close(self) -> None:
        """Nothing to release."""
