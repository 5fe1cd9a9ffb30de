"""Pages: synchronous calls that move whole pages between an engine's own memory and the tiers below it.

For engines that keep their own host RAM cache and ask for bytes, not for slots. Down: pages are sealed from the
engine's memory into slots, which here hold frames, and written from there. Up: frames are read, verified and decoded
into the engine's memory. Nothing is copied in between.
"""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from kvtier.codec.frame import open_into, seal_into
from kvtier.codec.pieces import Pieces, Segments
from kvtier.errors import KvtierError
from kvtier.residency import Frame
from kvtier.transfer.batch import Batch, Workers
from kvtier.types import Miss, Source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from kvtier.codec.frame import Sealing
    from kvtier.pages_cache import PagesCache
    from kvtier.residency import Chain, Resident
    from kvtier.transfer.slots import FrameSlots
    from kvtier.transfer.work import ReadFrame
    from kvtier.types import ChunkKey

GET_TIMEOUT_S = 3.0
PUT_TIMEOUT_S = 5.0

STALL_S = 15.0
"""After a call has timed out while nothing at all ended, nobody waits for that direction until something does, or for
so long."""

GROUP_PAGES = 32
"""Pages that are sealed before the first of them can be written."""


class Pages:
    """Get, put and look for pages. Any thread; one get and one put run at a time, others wait for their turn.

    Every call ends within its timeout, plus the time of sealing or decoding one page, whatever the disk does; what it
    could not do by then it reports as not done. Nothing is written to the engine's memory, and nothing read from
    it, after a call has returned.
    """

    def __init__(
        self,
        cache: PagesCache,
        slots: FrameSlots,
        sealing: Sealing,
        read: ReadFrame,
        *,
        n_threads: int,
        get_timeout_s: float = GET_TIMEOUT_S,
        put_timeout_s: float = PUT_TIMEOUT_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Move through `slots`, which are those of `cache`, and what `read` (see Mover) gives. `stop` before those end.

        Up to `n_threads` seal or open pages at a time. `clock` gives seconds, any origin.
        """
        self._cache = cache
        self._slots = slots
        self._sealing = sealing
        self._read = read
        self._get_timeout_s = get_timeout_s
        self._put_timeout_s = put_timeout_s
        self._clock = clock
        self._n_threads = n_threads
        self._getting, self._putting = threading.Lock(), threading.Lock()
        self._group = max(1, min(GROUP_PAGES, slots.n // 4))
        self._reads, self._writes = _Stall(clock), _Stall(clock)
        self._workers = Workers(n_threads, "kvtier-pages")

    def stop(self) -> None:
        """End the threads; does not wait for a read that is under way."""
        self._workers.stop()

    def n_held(self, keys: Sequence[ChunkKey]) -> int:
        """How many of `keys`, from the first on, are likely to be had. Dictionary work, about 0.3 us a key."""
        waiting = not self._reads.lasts(self._cache.n_fetched)
        for n, key in enumerate(keys):
            if not self._cache.holds(key, waiting=waiting):
                return n
        return len(keys)

    def holds(self, key: ChunkKey) -> bool:
        """Whether `key` is likely to be had."""
        return self.n_held((key,)) == 1

    def get(
        self, keys: Sequence[ChunkKey], targets: Sequence[Segments], timeout_s: float | None = None
    ) -> list[Source | Miss]:
        """Have the page of `keys[i]` at the segments `targets[i]`: where each came from, or why it did not come.

        A page behind the first that is missing is missing for the same reason; its memory may have been filled
        nevertheless. The memory of a page that does not verify is as it was.
        """
        deadline_s = self._clock() + (self._get_timeout_s if timeout_s is None else timeout_s)
        with _turn(self._getting, deadline_s - self._clock()) as mine:
            got = self._get(keys, targets, deadline_s) if mine else []
        end = got[-1] if got and isinstance(got[-1], Miss) else Miss.LOAD_FAILED
        return got + [end] * (len(keys) - len(got))

    def put(self, keys: Sequence[ChunkKey], sources: Sequence[Segments], timeout_s: float | None = None) -> list[bool]:
        """Take the pages that are not here yet over from the segments `sources[i]`: which of them are, or were.

        They are sealed when this returns, and on disk soon after; the engine may reuse its memory.
        """
        deadline_s = self._clock() + (self._put_timeout_s if timeout_s is None else timeout_s)
        here = [self._cache.holds(key) for key in keys]
        self._cache.keep([key for key, held in zip(keys, here, strict=True) if held])
        todo = [i for i, held in enumerate(here) if not held]
        chains: list[Chain] = []  # one for each step: what a chain has used is not evicted to make room for it
        with _turn(self._putting, deadline_s - self._clock()) as mine:
            n_spilled = self._cache.n_spilled
            try:
                while mine and todo:
                    seen = self._cache.n_changes
                    chains.append(self._cache.open_chain())
                    taken = self._take(chains[-1], todo[: self._group], keys, sources, deadline_s)
                    for i in taken:
                        here[i] = True
                    todo = [i for i in todo if not here[i]]
                    if not taken and not self._await_room(seen, deadline_s):
                        if self._cache.n_spilled == n_spilled:
                            self._writes.began(n_spilled)
                        break
            finally:
                for chain in reversed(chains):  # the head is used last, and so outlives the tail
                    self._cache.close_chain(chain)
        return here

    @contextmanager
    def quiet(self, timeout_s: float) -> Iterator[bool]:
        """While the block runs no page is moved; False if that could not be had within `timeout_s`."""
        with _turn(self._getting, timeout_s / 2) as no_get, _turn(self._putting, timeout_s / 2) as no_put:
            yield no_get and no_put

    # ---- up ---------------------------------------------------------------------------------------------------------

    def _get(self, keys: Sequence[ChunkKey], targets: Sequence[Segments], deadline_s: float) -> list[Source | Miss]:
        n_fetched = self._cache.n_fetched
        found, reason = self._cache.begin_fetch(keys)
        frames = [i for i, one in enumerate(found) if isinstance(one, Frame)]
        if frames and self._reads.lasts(n_fetched):
            self._cache.give_back(found[frames[0] :])
            found, frames, reason = found[: frames[0]], [], Miss.LOAD_FAILED
        failures: list[Miss | None] = [None] * len(found)

        def fetch(batch: Batch, i: int) -> bool:
            failures[i] = self._fetch(batch, found[i], targets[i])
            self._cache.fetched(found[i], failures[i])
            return failures[i] is None

        batch = Batch(len(found), fetch)
        if frames:
            self._workers.give(batch, len(found))
        else:
            batch.work()  # nothing in it can wait
        n_landed = batch.join(deadline_s - self._clock())
        self._cache.give_back(found[batch.n_begun :])
        got: list[Source | Miss] = [Source.DISK if isinstance(one, Frame) else Source.HOST for one in found[:n_landed]]
        if n_landed < len(found):
            failure = failures[n_landed]
            if failure is None and self._cache.n_fetched == n_fetched:
                self._reads.began(n_fetched)
            got.append(Miss.LOAD_FAILED if failure in (None, Miss.GATE) else failure)
        elif reason is not None:
            got.append(reason)
        return got

    def _fetch(self, batch: Batch, one: Resident | Frame, target: Segments) -> Miss | None:
        opened = False

        def open_to(frame: memoryview) -> None:
            nonlocal opened
            with batch.claim() as mine:
                if mine:
                    open_into(frame, Pieces(target), key=one.key, guard=self._sealing.guard)
                    opened = True

        if isinstance(one, Frame):
            failure = self._read(one.shard, one.key, open_to)
        else:
            failure = None
            try:
                open_to(self._slots[one.slot])
            except Exception:  # noqa: BLE001 - whatever it was, the page is a miss
                failure = Miss.CORRUPT
        return Miss.GATE if failure is None and not opened else failure

    # ---- down -------------------------------------------------------------------------------------------------------

    def _take(
        self,
        chain: Chain,
        wanted: Sequence[int],
        keys: Sequence[ChunkKey],
        sources: Sequence[Segments],
        deadline_s: float,
    ) -> list[int]:
        """Seal as many of the pages `wanted` as there is room for into slots; which of them are here afterwards."""
        room = self._cache.room()
        if room <= 0:
            return []
        wanted = wanted[:room]
        of = {keys[i]: i for i in wanted}
        offload = self._cache.begin_offload(chain, list(of))

        def seal(batch: Batch, i: int) -> bool:
            key, slot = offload.keys[i], offload.slots[i]
            with batch.claim() as mine:
                return mine and self._clock() < deadline_s and self._seal(key, slot, sources[of[key]])

        batch = Batch(len(offload.keys), seal)
        self._workers.give(batch, min(len(offload.keys), self._n_threads) - 1)
        batch.work()
        n_sealed = batch.join(deadline_s - self._clock())
        self._cache.end_offload(offload.keys[:n_sealed])
        self._cache.end_offload(offload.keys[n_sealed:], failed=True)
        return [i for i in wanted if self._cache.holds(keys[i])]

    def _seal(self, key: ChunkKey, slot: int, source: Segments) -> bool:
        codec, guard = self._sealing
        try:
            n_bytes = seal_into(Pieces(source), self._slots.row(slot), key=key, codec=codec, guard=guard)
        except (ValueError, KvtierError):
            return False
        self._slots.holds(slot, n_bytes)
        return True

    def _await_room(self, seen: int, deadline_s: float) -> bool:
        """Wait for the disk to take something; False if there is no hope of that or time is up."""
        if not self._cache.disk_writable or self._writes.lasts(self._cache.n_spilled):
            return False
        return self._cache.wait(seen, deadline_s - self._clock())


@contextmanager
def _turn(lock: threading.Lock, timeout_s: float) -> Iterator[bool]:
    mine = lock.acquire(timeout=timeout_s)
    try:
        yield mine
    finally:
        if mine:
            lock.release()


class _Stall:
    """A direction in which nothing moves any more."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._at_count = -1
        self._until_s = 0.0

    def began(self, count: int) -> None:
        """A caller has waited in vain: `count` transfers had ended before and after."""
        self._at_count, self._until_s = count, self._clock() + STALL_S

    def lasts(self, count: int) -> bool:
        """Whether to expect nothing, now that `count` transfers have ended."""
        return count == self._at_count and self._clock() < self._until_s
