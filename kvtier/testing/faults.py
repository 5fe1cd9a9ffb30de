"""FaultyStore: any Store, with failures at chosen calls. Deterministic: calls are counted, nothing is random."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from kvtier.store.base import News, SharedStore
from kvtier.store.listing import Listing
from kvtier.types import ChunkKey, UsePages

Method = Literal["scan", "write", "read", "sync"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What goes wrong in which calls of a method. Fields left out do nothing, so that one fault is one trouble."""

    method: Method
    after: int = 0  # calls that still work, counted from when the fault is injected
    times: int | None = None  # then so many are hit; None = all
    error: Exception | None = None  # raised: a StoreError, a StoreFullError, or what no store may raise, like OSError
    done: bool = False  # with `error`: the call takes effect first, as when the answer to a write is lost
    lost: bool = False  # a write reports success and is gone, as after a power loss
    change: Callable[[bytes], bytes] | None = None  # a read hands out this instead of the frame
    slow_s: float = 0.0  # the call takes so much longer


def flipped(bit: int) -> Callable[[bytes], bytes]:
    """For `Fault.change`: the same bytes with one bit, counted from the front, flipped."""

    def flip(frame: bytes) -> bytes:
        damaged = bytearray(frame)
        damaged[bit // 8] ^= 1 << bit % 8
        return bytes(damaged)

    return flip


def cut_to(n_bytes: int) -> Callable[[bytes], bytes]:
    """For `Fault.change`: only the first `n_bytes`."""
    return lambda frame: frame[:n_bytes]


class FaultyStore:
    """Wraps `inner`. Safe on any thread; `calls` counts the calls of each method, failed ones included."""

    def __init__(self, inner: SharedStore, *faults: Fault, sleep: Callable[[float], None] = time.sleep) -> None:
        self.inner = inner
        self.calls: Counter[Method] = Counter()
        self._sleep = sleep
        self._lock = threading.Lock()
        self._faults: list[tuple[Fault, int]] = []
        for fault in faults:
            self.inject(fault)

    def inject(self, fault: Fault) -> None:
        """From now on."""
        with self._lock:
            self._faults.append((fault, self.calls[fault.method] + fault.after))

    def heal(self) -> None:
        """No fault from now on."""
        with self._lock:
            self._faults.clear()

    @property
    def n_shards(self) -> int:
        return self.inner.n_shards

    @property
    def shard_bytes(self) -> int:
        return self.inner.shard_bytes

    def frame_cost(self, n_bytes: int) -> int:
        return self.inner.frame_cost(n_bytes)

    def scan(self) -> Iterator[Listing]:
        fault = self._enter("scan")
        yield from self.inner.scan()
        self._leave(fault)

    def written_before(self, shard: int, before_ns: int) -> list[ChunkKey]:
        fault = self._enter("scan")
        keys = self.inner.written_before(shard, before_ns)
        self._leave(fault)
        return keys

    def write(self, shard: int, puts: Sequence[tuple[ChunkKey, memoryview]], deletes: Sequence[ChunkKey]) -> None:
        fault = self._enter("write")
        if fault is None or not fault.lost:
            self.inner.write(shard, puts, deletes)
        self._leave(fault)

    @contextmanager
    def read(self, shard: int, key: ChunkKey) -> Iterator[memoryview | None]:
        fault = self._enter("read")
        with self.inner.read(shard, key) as frame:
            self._leave(fault)
            if frame is None or fault is None or fault.change is None:
                yield frame
            else:
                with memoryview(fault.change(bytes(frame))) as changed:
                    yield changed

    def lend(self, wanted: Sequence[tuple[int, ChunkKey]], use: UsePages) -> list[bool]:
        with self._lock:
            faulty = any(fault.method == "read" for fault, _ in self._faults)
        if faulty:
            return use([None] * len(wanted))  # so that all of them pass through `read`
        return self.inner.lend(wanted, use)

    @property
    def opened_alone(self) -> bool:
        return self.inner.opened_alone

    def is_behind(self, shard: int) -> bool:
        return self.inner.is_behind(shard)

    def news(self, shard: int) -> News:
        return self.inner.news(shard)

    def release_dead(self) -> None:
        self.inner.release_dead()

    def sync(self) -> None:
        fault = self._enter("sync")
        self.inner.sync()
        self._leave(fault)

    def close(self) -> None:
        self.inner.close()

    def _enter(self, method: Method) -> Fault | None:
        """Count a call, find the fault that hits it, and do what it does before the call."""
        with self._lock:
            number = self.calls[method]
            self.calls[method] += 1
            hit = (fault for fault, start in self._faults if fault.method == method and _hits(fault, start, number))
            fault = next(hit, None)
        if fault is not None:
            if fault.slow_s:
                self._sleep(fault.slow_s)
            if fault.error is not None and not fault.done:
                raise fault.error
        return fault

    def _leave(self, fault: Fault | None) -> None:
        if fault is not None and fault.error is not None:
            raise fault.error


def _hits(fault: Fault, start: int, number: int) -> bool:
    return number >= start and (fault.times is None or number < start + fault.times)
