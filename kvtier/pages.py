"""Pages: synchronous calls that move whole pages between an engine's own memory and the tiers below it.

For engines that keep their own host RAM cache and ask for bytes, not for slots. The host tier is then a small staging
buffer: what the engine hands over is copied there before the call returns and written from there; what is loaded is
verified and decoded there before a byte of the engine's memory is touched.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from kvtier.cache import TieredCache
from kvtier.keys import ADAPTER_BYTES, FAMILY_BYTES
from kvtier.residency import State
from kvtier.types import Lookup, Miss, Source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kvtier.residency import Chain, Placement, Promotion, Resident
    from kvtier.transfer.slots import Slots
    from kvtier.types import ChunkKey

Segments = Sequence[tuple[int, int]]
"""A page in the engine's memory: addresses and lengths, in the order in which they make up the page."""

GET_TIMEOUT_S = 3.0
PUT_TIMEOUT_S = 5.0

STALL_S = 15.0
"""After a call has timed out while nothing at all ended, nobody waits for that direction until something does, or for
so long."""

GROUP_PAGES = 32
"""Pages copied between two looks at the clock. Two groups are on their way at a time: one lands, one is copied."""


class PagesCache(TieredCache):
    """A TieredCache that tells waiting callers when something has ended, and knows pages of several sizes."""

    def __init__(self, *args: Any, submit_promotion: Callable[[Promotion], None], slots: Slots, **kwargs: Any) -> None:
        """As TieredCache. Pages of the kinds that `declare` names come to lie in `slots`."""
        self._slots = slots
        self._page_bytes: dict[bytes, int] = {}
        self._changed = threading.Condition()
        self.n_changes = 0
        self.n_promoted = 0
        self.n_spilled = 0

        def submit_fitted(job: Promotion) -> None:
            self.fit(job.resident.slot, job.resident.key)
            submit_promotion(job)

        super().__init__(*args, submit_promotion=submit_fitted, **kwargs)

    def declare(self, kind: bytes, n_bytes: int) -> None:
        """Pages whose keys have `kind` where others name an adapter are `n_bytes` long, at most a slot."""
        self._page_bytes[kind] = n_bytes

    def fit(self, slot: int, key: ChunkKey) -> None:
        """Have `slot`, which nobody uses yet, be as long as the page of `key`."""
        self._slots.fit(slot, self._page_bytes[key[FAMILY_BYTES : FAMILY_BYTES + ADAPTER_BYTES]])

    def holds(self, key: ChunkKey, *, waiting: bool = True) -> bool:
        """Whether `key` is likely to be had, at once unless `waiting`. A hint: it takes no lock, promises nothing."""
        resident = self.host.get(key)
        if resident is not None:
            return resident.state is State.READY or (waiting and resident.state is State.PROMOTING)
        frame = self.disk.get(key) if waiting and self.disk is not None and self.disk_readable else None
        return frame is not None and frame.ready

    def keep(self, keys: Sequence[ChunkKey]) -> None:
        """The engine computed again what is on disk: one use of each key that is."""
        with self._lock:
            for key in reversed(keys):
                if self.disk is not None and key in self.disk:
                    self.disk.touch(key)

    def room(self) -> int:
        """Pages that could be taken now without losing any that is not written yet."""
        return self.host.n_slots - self.n_dirty() - self._promises.n_residents

    def forget_all(self, family: bytes) -> None:
        """Drop every chunk of `family` from all tiers. No copy to or from a slot may be under way."""
        with self._lock:
            self._promises.take_back_all()
            for resident in [r for r in self.host.residents() if r.key.startswith(family)]:
                self._backlog.remove(resident)
                self.host.drop(resident.key)
            if self.disk is not None:
                for frame in [f for f in self.disk.frames() if f.key.startswith(family)]:
                    self._forget_disk(frame.key)

    def count(self, source: Source | Miss, n_tokens: int, *, requests: int = 0) -> None:
        """So many asked tokens were found in, or missed for, `source`."""
        with self._lock:
            self.stats.requests += requests
            self.stats.asked_tokens += n_tokens
            (self.stats.hit_tokens if isinstance(source, Source) else self.stats.miss_tokens)[source] += n_tokens

    def why(self, key: ChunkKey) -> Miss:
        """Why `key` is not held."""
        with self._lock:
            return self._why_absent(key)

    def promoted(self, job: Promotion, failure: Miss | None) -> None:
        """As TieredCache's; wakes those who wait."""
        super().promoted(job, failure)
        self.n_promoted += 1
        self.changed()

    def spilled(self, resident: Resident, placement: Placement | None, *, ok: bool, full: bool = False) -> None:
        """As TieredCache's; wakes those who wait."""
        super().spilled(resident, placement, ok=ok, full=full)
        self.n_spilled += 1
        self.changed()

    def changed(self) -> None:
        """Wake those who wait."""
        with self._changed:
            self.n_changes += 1
            self._changed.notify_all()

    def wait(self, seen: int, timeout_s: float) -> bool:
        """Sleep until `n_changes` is no longer `seen`; False after `timeout_s`."""
        with self._changed:
            return self._changed.wait_for(lambda: self.n_changes != seen, max(0.0, timeout_s))


class Pages:
    """Get, put and look for pages. Any thread; one get and one put run at a time, others wait for their turn.

    Every call ends within its timeout, plus the time of one copy in memory, whatever the disk does; what it could not
    do by then it reports as not done. Nothing is written to the engine's memory after a call has returned.
    """

    def __init__(
        self,
        cache: PagesCache,
        slots: Slots,
        *,
        get_timeout_s: float = GET_TIMEOUT_S,
        put_timeout_s: float = PUT_TIMEOUT_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Move through `slots`, which are those of `cache`. `clock` gives seconds, any origin."""
        self._cache = cache
        self._slots = slots
        self._get_timeout_s = get_timeout_s
        self._put_timeout_s = put_timeout_s
        self._clock = clock
        self._getting, self._putting = threading.Lock(), threading.Lock()
        self._group = max(1, min(GROUP_PAGES, slots.n // 4))
        self._reads, self._writes = _Stall(clock), _Stall(clock)

    def n_held(self, keys: Sequence[ChunkKey]) -> int:
        """How many of `keys`, from the first on, are likely to be had. Dictionary work, about 0.3 us a key."""
        waiting = not self._reads.lasts(self._cache.n_promoted)
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
        """Copy the page of `keys[i]` to the segments `targets[i]`: where each came from, or why it did not come.

        A page behind the first that is missing is not tried, and missing for the same reason. The memory of a page that
        did not come is as it was.
        """
        deadline_s = self._clock() + (self._get_timeout_s if timeout_s is None else timeout_s)
        got: list[Source | Miss] = []
        groups = [range(i, min(i + self._group, len(keys))) for i in range(0, len(keys), self._group)]
        walks: list[Chain] = []
        with _turn(self._getting, deadline_s - self._clock()) as mine:
            try:
                for nth, group in enumerate(groups if mine else ()):
                    while len(walks) < min(nth + 2, len(groups)):
                        walks.append(self._walk([keys[i] for i in groups[len(walks)]]))
                    n_landed = self._land(walks[nth], [keys[i] for i in group], deadline_s)
                    landed = group[:n_landed]
                    got += self._copy_out(walks[nth], [keys[i] for i in landed], [targets[i] for i in landed])
                    if n_landed < len(group):
                        got.append(self._reason(walks[nth], keys[group[n_landed]]))
                        break
            finally:
                self._close(walks)
        self._cache.changed()  # a put may wait for the slots
        end = got[-1] if got and isinstance(got[-1], Miss) else Miss.LOAD_FAILED
        return got + [end] * (len(keys) - len(got))

    def put(self, keys: Sequence[ChunkKey], sources: Sequence[Segments], timeout_s: float | None = None) -> list[bool]:
        """Take the pages that are not here yet over from the segments `sources[i]`: which of them are, or were.

        They are in the staging buffer when this returns, and on disk soon after; the engine may reuse its memory.
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
                    taken = self._take(chains[-1], todo[: self._group], keys, sources)
                    for i in taken:
                        here[i] = True
                    todo = [i for i in todo if not here[i]]
                    if not taken and not self._await_room(seen, deadline_s):
                        if self._cache.n_spilled == n_spilled:
                            self._writes.began(n_spilled)
                        break
            finally:
                self._close(chains)
        return here

    @contextmanager
    def quiet(self, timeout_s: float) -> Iterator[bool]:
        """While the block runs no page is copied; False if that could not be had within `timeout_s`."""
        with _turn(self._getting, timeout_s / 2) as no_get, _turn(self._putting, timeout_s / 2) as no_put:
            yield no_get and no_put

    def _close(self, chains: Sequence[Chain]) -> None:
        for chain in reversed(chains):  # the head is used last, and so outlives the tail
            self._cache.close_chain(chain)

    # ---- up ---------------------------------------------------------------------------------------------------------

    def _walk(self, keys: Sequence[ChunkKey]) -> Chain:
        """Start the promotions of `keys`."""
        chain = self._cache.open_chain()
        for key in keys:
            if self._cache.lookup(chain, key) is Lookup.MISS:
                break
        return chain

    def _land(self, chain: Chain, keys: Sequence[ChunkKey], deadline_s: float) -> int:
        """Wait until `keys` are in slots, or one cannot be had, or time is up: how many are, from the first on."""
        n_promoted = self._cache.n_promoted
        n = 0
        while True:
            seen = self._cache.n_changes
            answer, i = Lookup.HIT, n
            while i < len(keys) and answer is not Lookup.MISS:  # all of them: what found no slot before may now
                chain.miss = None
                answer = self._cache.lookup(chain, keys[i])
                n += answer is Lookup.HIT and i == n
                i += 1
            if n == len(keys) or (i == n + 1 and answer is Lookup.MISS and chain.miss is not Miss.GATE):
                return n
            stalled = self._reads.lasts(self._cache.n_promoted)
            if stalled or not self._cache.wait(seen, deadline_s - self._clock()):
                if self._cache.n_promoted == n_promoted and not stalled:
                    self._reads.began(n_promoted)
                chain.miss = Miss.LOAD_FAILED
                return n

    def _copy_out(self, chain: Chain, keys: Sequence[ChunkKey], targets: Sequence[Segments]) -> list[Source | Miss]:
        slots = self._cache.begin_onload(chain, keys) if keys else None
        assert slots is not None or not keys, "a promised page is gone"
        for slot, segments in zip(slots or (), targets, strict=True):
            address = self._slots.address(slot)
            for target, n_bytes in segments:
                ctypes.memmove(target, address, n_bytes)
                address += n_bytes
        self._cache.end_onload(keys)
        return [chain.sources.get(key, Source.HOST) for key in keys]

    def _reason(self, chain: Chain, key: ChunkKey) -> Miss:
        return chain.failures.get(key) or chain.miss or self._cache.why(key)

    # ---- down -------------------------------------------------------------------------------------------------------

    def _take(
        self, chain: Chain, wanted: Sequence[int], keys: Sequence[ChunkKey], sources: Sequence[Segments]
    ) -> list[int]:
        """Copy as many of the pages `wanted` as there is room for into slots; which of them are here afterwards."""
        room = self._cache.room()
        if room <= 0:
            return []
        wanted = wanted[:room]
        of = {keys[i]: i for i in wanted}
        offload = self._cache.begin_offload(chain, list(of))
        for key, slot in zip(offload.keys, offload.slots, strict=True):
            self._cache.fit(slot, key)
            address = self._slots.address(slot)
            for source, n_bytes in sources[of[key]]:
                ctypes.memmove(address, source, n_bytes)
                address += n_bytes
        self._cache.end_offload(offload.keys)
        return [i for i in wanted if self._cache.host.get(keys[i]) is not None]

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
