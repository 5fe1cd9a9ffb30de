"""Promotions: which chunks come up from disk next -> the transfer threads; a few at a time, the rest in line.

A lookup may find a thousand chunks on disk. It begins as many promotions as keep the threads busy, and puts the others
in line: each that ends begins the next one, on its transfer thread. So a walk stays short, chunks come up in the order
in which they were asked for, whoever asked, and slots are taken when there is something to fill them with.

TieredCache builds on it. Everything here is under the cache's lock.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvtier.holdings import Holdings
from kvtier.residency import PROMOTING, Chain, Promotion
from kvtier.tiers.host import MAX_PROMOTE_SCAN
from kvtier.types import SOURCE_DISK, Miss

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvtier.observe.stats import Stats
    from kvtier.policy.gate import LoadGate
    from kvtier.residency import Frame
    from kvtier.tiers.disk import DiskTier
    from kvtier.types import ChunkKey

PINNED_SHARE = 0.875
"""Promotions may not pin more of the host pool than this: the rest keeps taking stores."""

UNDER_WAY = 24
"""Promotions that are under way before more of them stand in line: what four threads are at, and half as many to come.
Beginning one takes about 10 us of the scheduler's time, standing in line less than 1."""


class Promotions(Holdings):
    """State that TieredCache makes; see there."""

    stats: Stats
    disk_readable: bool
    _submit_promotion: Callable[[Promotion], None]
    _gate: LoadGate
    _n_promoting: int
    _max_under_way: int
    _max_pinned: int

    def _promote(self, chain: Chain, key: ChunkKey) -> bool:
        """Promise `key`, on disk and not in host, to `chain`, and have it brought up in its turn.

        False if that does not pay, or there is no slot for it.
        """
        promises = self._promises
        if key in chain.waiting:
            return True
        fits = promises.n_residents + promises.n_waiting < self._max_pinned
        if chain.may_promote is None:
            self._gate.n_in_line = promises.n_waiting
            probe = self._gate.judge(chain, self._clock())
            self.stats.gated_requests += chain.may_promote == 0
            if probe and fits:
                self.stats.probed_chunks += self._begin_promotion(chain, key, probe=True)
        if not fits or not chain.may_promote:
            return False
        if self._n_promoting >= self._max_under_way:
            promises.wait(chain, (key,))
        elif not self._begin_promotion(chain, key):
            return False
        chain.sources[key] = SOURCE_DISK
        chain.may_promote -= 1
        return True

    def _stand_in_line(self, chain: Chain, keys: list[ChunkKey]) -> bool:
        """`_promote` each of `keys`, if that comes to all of them standing in line; else False, and nothing is done."""
        promises, disk = self._promises, self.disk
        if disk is None or not self.disk_readable or self._n_promoting < self._max_under_way:
            return False
        fits = promises.n_residents + promises.n_waiting + len(keys) <= self._max_pinned
        if not fits or chain.may_promote is None or chain.may_promote < len(keys):
            return False
        new = chain.waiting.keys().isdisjoint(keys) and self.host.has_none_of(keys)
        if not new or not disk.all_ready(keys):
            return False
        promises.wait(chain, keys)
        chain.sources.update(dict.fromkeys(keys, SOURCE_DISK))
        chain.may_promote -= len(keys)
        return True

    def _begin_promotion(self, chain: Chain, key: ChunkKey, *, probe: bool = False) -> bool:
        """Begin to bring up `key`, which is on disk and not in host; nobody waits for a probe. False: no slot."""
        assert self.disk is not None
        if not self._make_room(chain, 1, MAX_PROMOTE_SCAN):
            return False
        resident = self.host.place(key, PROMOTING, 0.0)
        frame = self.disk.pin(key)
        self.disk.touch(key)
        self._n_promoting += 1
        chain.used[key] = None  # entering the tier is this request's use of it
        self._gate.load_started(self._clock(), probe=probe)
        if not probe:
            self._promises.give(chain, resident)
        self._submit_promotion(Promotion(resident, frame))
        return True

    def _begin_waiting(self) -> None:
        """Begin the promotions that have waited longest, as many as may be under way."""
        promises = self._promises
        while promises.n_waiting and self._n_promoting < self._max_under_way:
            chain, key = promises.next_waiting()
            resident = self.host.get(key)
            if resident is None:
                there = self.disk is not None and self.disk_readable and self.disk.is_ready(key)
                if not there or not self._begin_promotion(chain, key):
                    promises.leave(chain)  # nothing behind it is of use
            elif resident.spoilt:
                promises.leave(chain)
            elif key not in chain.promises:  # another request was faster
                promises.give(chain, resident)
        self._gate.n_in_line = promises.n_waiting

    def _read_ended(self, frame: Frame, failure: Miss | None, now_s: float) -> None:
        """A frame was read from disk, or not; Miss.GATE: it was not looked at."""
        self._n_promoting -= 1
        self._gate.load_ended(now_s, self.host.chunk_bytes if failure is None else 0)
        assert self.disk is not None
        if failure is None:
            self.stats.promoted_chunks += 1
            self.stats.promote_raw_bytes += self.host.chunk_bytes
            self.stats.promote_stored_bytes += frame.n_bytes
        else:
            self._give_up(self.disk, frame, failure)
        self.disk.unpin(frame)
        self._begin_waiting()

    def _give_up(self, disk: DiskTier, frame: Frame, failure: Miss) -> None:
        """Count a frame that could not be read; drop it, unless nobody looked."""
        self.stats.corrupt_frames += failure is Miss.CORRUPT
        self.stats.foreign_frames += failure is Miss.FOREIGN
        self.stats.load_errors += failure is Miss.LOAD_FAILED
        # A frame that is not there any more, or not where it was, was another process's to delete.
        if failure is not Miss.GATE and disk.get(frame.key) is frame:
            disk.drop(frame.key)
            if failure is not Miss.EVICTED:
                self._delete_frame(frame.shard, frame.key)

    def _make_room(self, chain: Chain, n_slots: int, max_scan: int) -> bool:
        """Have `n_slots` free, or as many as can be had, evicting if need be, but never a chunk of the asking chain."""
        for victim in self.host.choose_victims(n_slots - self.host.n_free, chain.used, max_scan):
            self.stats.host_evicted_chunks += 1
            self.stats.host_dropped_chunks += victim.dirty
            self._backlog.remove(victim)
            self.host.evict(victim)
        return self.host.n_free >= n_slots
