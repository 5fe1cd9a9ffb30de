"""Plain integer counters of one engine. Hot code adds; the log line and the exporter read. No locks, no labels.

Each counter has one writer thread or is written under the cache's lock, so += never loses a count; readers may see a
snapshot a few increments old.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from kvtier.types import Miss, Source

NEVER_TOKENS = 1 << 30
"""Stands for no prompt at all where the break-even is shown: longer than any."""


@dataclass(slots=True)
class Stats:
    """Totals since the engine started. `Stats.copy` and `a - b` give intervals."""

    requests: int = 0  # admitted to run, once each; a preempted request that resumes counts again
    asked_tokens: int = 0  # tokens of those requests that had to be in KV: hit_tokens + miss_tokens
    hit_tokens: list[int] = field(default_factory=lambda: [0] * len(Source))  # by Source
    miss_tokens: list[int] = field(default_factory=lambda: [0] * len(Miss))  # by Miss

    offload_bytes: int = 0  # device -> host, uncompressed
    onload_bytes: int = 0  # host -> device, uncompressed
    spill_raw_bytes: int = 0  # host -> disk, before compression
    spill_stored_bytes: int = 0  # the same, as frames
    promote_raw_bytes: int = 0  # disk -> host, after decompression
    promote_stored_bytes: int = 0  # the same, as frames

    offloaded_chunks: int = 0
    store_refused_chunks: int = 0  # the engine offered them, no host slot could be had
    spilled_chunks: int = 0
    promoted_chunks: int = 0
    host_evicted_chunks: int = 0
    host_dropped_chunks: int = 0  # evicted from host before the spiller had reached them: in no tier afterwards
    disk_evicted_chunks: int = 0
    held_back_chunks: int = 0  # not admitted to disk when they were stored; a second use may still bring them there
    over_budget_chunks: int = 0  # not written because the write budget was spent
    spill_failed_chunks: int = 0  # full disk or I/O error: not on disk afterwards
    corrupt_frames: int = 0  # did not verify; deleted
    foreign_frames: int = 0  # sound, but another key or namespace than asked for; deleted
    load_errors: int = 0  # promotions or device loads that failed for other reasons
    tier_off: int = 0  # times a tier was switched off after errors
    helper_restarts: int = 0  # of the disk tier's helper process, after one had died
    gated_requests: int = 0  # found chunks on disk and were told to compute them, which was judged to be faster
    probed_chunks: int = 0  # promoted for nobody, to see how fast the disk is
    gave_up_requests: int = 0  # computed what they had been promised, because it did not come in time
    engine_errors: int = 0  # exceptions caught at the engine's door; each is a bug or a broken machine

    def copy(self) -> Stats:
        """A snapshot that later counting does not change."""
        return self - Stats()

    def __sub__(self, earlier: Stats) -> Stats:
        out = Stats()
        for name in self.__slots__:
            mine, theirs = getattr(self, name), getattr(earlier, name)
            both_lists = isinstance(mine, list)
            setattr(out, name, [a - b for a, b in zip(mine, theirs, strict=True)] if both_lists else mine - theirs)
        return out


@dataclass(frozen=True, slots=True)
class Gauges:
    """State at one instant, taken under the cache's lock by whoever prints it."""

    host_used_bytes: int
    host_capacity_bytes: int
    disk_used_bytes: int  # live bytes in the store, rounding included
    disk_capacity_bytes: int
    disk_raw_bytes: int  # what the frames of this namespace on disk are uncompressed; 0 when the tier is off
    disk_stored_bytes: int  # what the same frames take as stored
    spill_backlog: int  # dirty chunks in host: not on disk yet
    promote_backlog: int  # chunks on their way up
    prefill_tokens_per_s: float  # moving estimate; 0 until measured
    load_bytes_per_s: float  # disk to host, decoded; moving estimate, queueing included; 0 until measured
    onload_bytes_per_s: float  # host to device; moving estimate, a prior until measured
    load_pays_from_tokens: int  # shortest prompt that is loaded from an idle disk; 0 until known, NEVER_TOKENS for none
    disk_on: bool
    write_budget_bytes: int = 0  # what may be written to disk now; 0 without a budget
