"""PagesCache: a TieredCache for an engine with a host RAM cache of its own, whose memory is what pages come up to.

Its slots hold frames of pages that are to be written or just were. A page on disk never takes a slot on its way up.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from kvtier.cache import TieredCache
from kvtier.residency import Chain, Frame, State
from kvtier.types import Miss, Source

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kvtier.residency import Placement, Resident
    from kvtier.types import ChunkKey


class PagesCache(TieredCache):
    """A TieredCache whose chunks go up to memory that is not its own, and that tells callers when something ended."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """As TieredCache."""
        self._changed = threading.Condition()
        self.n_changes = 0
        self.n_fetched = 0
        self.n_spilled = 0
        super().__init__(*args, **kwargs)

    def holds(self, key: ChunkKey, *, waiting: bool = True) -> bool:
        """Whether `key` is likely to be had, at once unless `waiting`. A hint: it takes no lock, promises nothing."""
        resident = self.host.get(key)
        if resident is not None and resident.state is State.READY:
            return True
        return waiting and self.disk is not None and self.disk_readable and self.disk.is_ready(key)

    def begin_fetch(self, keys: Sequence[ChunkKey]) -> tuple[list[Resident | Frame], Miss | None]:
        """Where `keys` are, from the first on, pinned until `fetched`; why there are no more of them, if there are."""
        now = self._clock()
        found: list[Resident | Frame] = []
        chain = Chain(n_chunks=len(keys))
        with self._lock:
            reason = None
            for key in keys:
                one = self._find(chain, key, now)
                if isinstance(one, Miss):
                    reason = one
                    break
                found.append(one)
            for one in reversed(found):  # the head is used last, and so outlives the tail
                tier = self.disk if isinstance(one, Frame) else self.host
                assert tier is not None
                tier.touch(one.key)
        return found, reason

    def give_back(self, found: Sequence[Resident | Frame]) -> None:
        """What `begin_fetch` found is not wanted after all."""
        for one in found:
            self._unpin(one, Miss.GATE)

    def fetched(self, one: Resident | Frame, failure: Miss | None) -> None:
        """What `begin_fetch` found has come to the engine's memory, or not; Miss.GATE: it was not looked at."""
        self._unpin(one, failure)
        self.n_fetched += 1
        self.changed()

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

    def _find(self, chain: Chain, key: ChunkKey, now_s: float) -> Resident | Frame | Miss:
        resident = self.host.get(key)
        if resident is not None and resident.state is State.READY:
            resident.onloads += 1
            return resident
        if self.disk is None or not self.disk.is_ready(key):
            return self._why_absent(key)
        if not self.disk_readable:
            return Miss.LOAD_FAILED
        if chain.may_promote is None:
            self._gate.judge(chain, now_s)
        if not chain.may_promote:
            return Miss.GATE
        self._n_promoting += 1
        self._gate.load_started(now_s, probe=False)
        return self.disk.pin(key)

    def _unpin(self, one: Resident | Frame, failure: Miss | None) -> None:
        now = self._clock()
        with self._lock:
            self.stats.onload_bytes += self.host.chunk_bytes if failure is None else 0
            if isinstance(one, Frame):
                self._read_ended(one, failure, now)
                return
            one.onloads -= 1
            self.host.release(one)
            if failure is Miss.CORRUPT and not one.onloads:
                self._forget_host(one)
