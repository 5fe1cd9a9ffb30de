"""LoadGate: load from disk only what is faster than recomputing.

Compares, for the chunks a request may still find, the time until all of them would be on the device with the time the
engine would take to prefill their tokens. Everything in it is measured while serving. The answer is all or nothing but
for what cannot land in time: a later token costs more to compute than an earlier one and no more to load, so if the
tail does not pay, the head in front of it pays even less. docs/adr/0006-load-gate.md has the reasoning.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from typing import TYPE_CHECKING, NamedTuple

from kvtier.observe.load import CopyRate, LoadRate
from kvtier.observe.stats import NEVER_TOKENS

if TYPE_CHECKING:
    from kvtier.observe.rate import PrefillRate
    from kvtier.residency import Chain

MARGIN_SHUT = 0.8
"""Requests of a size that was refused are loaded again when loading takes this share of recomputing: the gate does not
flap around the break-even."""

STEPS_S = 0.005
"""What a load costs beside its bytes: two or three passes of the engine's scheduler. A stated default, and deliberately
not measured: under load these passes take as long as other requests' prefill, for which recomputing would wait too."""

PROBE_EVERY_S = 20.0
"""A shut gate learns nothing, so it lets one chunk through this often, without a request waiting for it."""

PROBE_SOON_S = 1.0
"""The next one after a probe that was faster than the estimate, or after somebody gave up: most stalls are short. From
then on the pause doubles."""

TRIAL_SHARE = 20
"""At most one in so many refused requests is loaded nevertheless, and only where the probes leave it open."""

LONGEST_TRIAL_SHARE = 64 * TRIAL_SHARE
"""One in twice as many after each request that waited in vain, up to so many."""

MAX_WAIT_S = 10.0
"""A request that has waited so long for its promotions goes on without them, and sooner if recomputing is quicker: when
it has waited for as long as that takes. Nobody knows how long a stall lasts, and with this limit a request never takes
more than twice what it would have taken had it known (the ski rental argument); with any other it may."""

MIN_WAIT_S = 0.05
"""Nobody gives up sooner: threads may take so long to be scheduled."""

NO_LIMIT = 1 << 30
"""Chunks a request may promote that may promote what it finds."""


class Rates(NamedTuple):
    """What the gate reckons with, for the log line and the metrics."""

    load_bytes_per_s: float  # disk to host memory; 0 until known
    onload_bytes_per_s: float  # host memory to device
    load_pays_from_tokens: int  # 0 until known; NEVER_TOKENS: no prompt


class LoadGate:
    """Decides and measures; called under the cache's lock unless it says otherwise. Seconds of the cache's clock."""

    def __init__(
        self,
        *,
        chunk_bytes: int,
        tokens_per_chunk: int,
        prefill: PrefillRate,
        device: CopyRate | None = None,
        mode: str = "auto",
        min_tokens: int = 0,
        n_lanes: int = 1,
    ) -> None:
        """`mode` is auto, always, never, or min_tokens: then a load needs so many tokens.

        `n_lanes` reads may be under way at once. Processors may be fewer, so it bounds what loading in parallel
        could bring; whether it does so, a trial tells.
        """
        self.disk = LoadRate()
        self.device = device or CopyRate()
        self._chunk_bytes = chunk_bytes
        self._tokens_per_chunk = tokens_per_chunk
        self._prefill = prefill
        self._mode = mode
        self._min_tokens = min_tokens
        self._n_lanes = n_lanes
        self.n_in_line = 0  # promotions promised and not begun; set by the cache
        self._refused: set[int] = set()  # sizes, as bits of a number of chunks
        self._n_refused = 0  # since the last trial
        self._trial_share = TRIAL_SHARE
        self._tried_s = -math.inf
        self._probed_s = -math.inf
        self._probe_pause_s = 0.0
        self._probing = False
        self._was_faster = False  # than the estimate: the last probe
        self._landed_s = -math.inf
        self._n_landed = 0
        self._gave_up_s = -math.inf  # when somebody last did
        self._hangs = False  # from when a request saw nothing end in all the time it waited, until something does

    @property
    def n_queued(self) -> int:
        """Promotions that end before one that is asked for now."""
        return self.disk.n_under_way + self.n_in_line

    # ---- decisions --------------------------------------------------------------------------------------------------

    def judge(self, chain: Chain, now_s: float) -> bool:
        """Set how many chunks `chain` may promote from here on, and how long it waits for them. Once per request.

        Whether to promote one chunk although it may promote none, as a probe that nobody waits for.
        """
        if self._hangs:
            return False  # undecided: it is none now, and asks again
        n_chunks = max(1, chain.n_chunks - len(chain.promises))
        if self._mode != "auto":
            enough = n_chunks * self._tokens_per_chunk >= self._min_tokens
            loads = self._mode == "always" or (self._mode == "min_tokens" and enough)
            chain.may_promote = NO_LIMIT if loads else 0
        elif self._prefill.cost is None:
            chain.may_promote = NO_LIMIT
        elif not self.disk.byte_s:
            self._allow(chain, NO_LIMIT, self._recompute_s(chain, n_chunks))
        else:
            return self._compare(chain, n_chunks, now_s)
        return False

    def _compare(self, chain: Chain, n_chunks: int, now_s: float) -> bool:
        queued = 0 if chain.pending else self.n_queued  # what it waits for anyway is no cost of loading more
        lands_in_time = max(1, self._lands_in_time - queued)
        limit = NO_LIMIT if n_chunks <= lands_in_time else lands_in_time
        n_chunks = min(n_chunks, lands_in_time)
        recompute_s = self._recompute_s(chain, n_chunks)
        steps_s = 0.0 if chain.promises else STEPS_S
        idle_s = steps_s + self._disk_s(n_chunks) + self._copy_s(n_chunks)
        queue_s = self._disk_s(queued)
        size = n_chunks.bit_length()
        margin = self._margin(size)
        if idle_s + queue_s <= recompute_s * margin:
            self._refused.discard(size)
            self._trial_share = TRIAL_SHARE
            self._allow(chain, limit, recompute_s)
            return False
        if idle_s > recompute_s * margin:  # else the queue alone is in the way
            self._refused.add(size)
        self._n_refused += 1
        chain.may_promote = 0
        if now_s - self._probed_s < self._probe_pause_s or self.disk.n_under_way:
            return False
        in_parallel_s = idle_s - self._disk_s(n_chunks) * (1 - 1 / self._n_lanes)
        may_try = self._n_refused > self._trial_share and now_s - max(self._tried_s, self._gave_up_s) >= PROBE_EVERY_S
        if may_try and in_parallel_s <= recompute_s * MARGIN_SHUT:
            # Single chunks, as probes are, may be slower than many at a time: only a whole request can tell.
            self._n_refused, self._probed_s, self._tried_s = 0, now_s, now_s
            self._allow(chain, limit, recompute_s)
            return False
        return True

    def joins(self, chain: Chain) -> bool:
        """Whether `chain` should wait for promotions that others have begun. Once per request."""
        if self._hangs:
            return False
        if chain.joins is None:
            if chain.may_promote is not None or self._mode != "auto" or not self._known:
                chain.joins = chain.may_promote != 0
                return chain.joins
            # All it can join is what is under way: a probe may be a single chunk.
            n_chunks = max(1, min(chain.n_chunks - len(chain.promises), self.n_queued))
            recompute_s = self._recompute_s(chain, n_chunks)
            load_s = STEPS_S + self._disk_s(self.n_queued) + self._copy_s(n_chunks)
            chain.joins = load_s <= recompute_s
            if chain.joins:
                chain.recompute_s = recompute_s
        return chain.joins

    def waits(self, chain: Chain, now_s: float) -> bool:
        """Whether `chain`, whose promotions are under way, still waits for them. Scheduler thread, no lock."""
        if chain.waits_since_s is None:
            chain.waits_since_s, chain.n_awaited = now_s, chain.pending
            chain.n_queued, chain.n_landed_before = self.n_queued, self._n_landed
        waited_s = now_s - chain.waits_since_s
        if self._hangs and waited_s >= MIN_WAIT_S:
            return False
        if self._gave_up_s > chain.waits_since_s and 0 < chain.recompute_s < self._disk_s(chain.n_awaited):
            return waited_s < MIN_WAIT_S  # somebody else has found out
        return waited_s < (min(MAX_WAIT_S, max(MIN_WAIT_S, chain.recompute_s)) if chain.recompute_s else MAX_WAIT_S)

    def gave_up(self, chain: Chain, now_s: float) -> None:
        """`chain`, promotions of which are under way, waits no longer, so nobody else needs to find out.

        The disk is as slow from now on as that shows, until loads say otherwise. If nothing at all came meanwhile,
        nobody waits until something does.
        """
        since_s = chain.waits_since_s if chain.waits_since_s is not None else now_s
        if self.disk.n_under_way:
            chunk_s = (now_s - since_s) / (self._n_landed - chain.n_landed_before + 1)
            chunk_s = max(chunk_s, chain.recompute_s / max(1, chain.n_queued))
            self.disk.no_faster_than(chunk_s / self._chunk_bytes)
        chain.may_promote, chain.joins = 0, False
        self._gave_up_s = now_s
        self._probe_pause_s, self._was_faster = PROBE_SOON_S / 2, False
        self._n_refused, self._trial_share = 0, min(2 * self._trial_share, LONGEST_TRIAL_SHARE)
        self._hangs = self.disk.n_under_way > 0 and self._landed_s < since_s

    # ---- measurements -----------------------------------------------------------------------------------------------

    def load_started(self, now_s: float, *, probe: bool) -> None:
        """A promotion was queued."""
        self.disk.started(now_s, alone=probe)
        if probe:
            self._probing, self._probed_s = True, now_s

    def load_ended(self, now_s: float, n_bytes: int) -> None:
        """A promotion ended with `n_bytes` of chunk landed, 0 if it failed."""
        self._landed_s, self._hangs = now_s, False
        self._n_landed += n_bytes > 0
        self.disk.ended(now_s, n_bytes, alone=self._probing)
        if self._probing:
            self._probing = False
            if self.disk.got_faster != self._was_faster:
                self._was_faster = self.disk.got_faster
                self._probe_pause_s = PROBE_SOON_S if self._was_faster else PROBE_EVERY_S
            else:
                self._probe_pause_s = min(PROBE_EVERY_S, 2 * self._probe_pause_s or PROBE_EVERY_S)

    def rates(self) -> Rates:
        """What there is to show. Any thread."""
        return Rates(self.disk.bytes_per_s, self.device.bytes_per_s, self._pays_from_tokens())

    # ---- arithmetic -------------------------------------------------------------------------------------------------

    @staticmethod
    def _allow(chain: Chain, n_chunks: int, recompute_s: float) -> None:
        chain.may_promote = n_chunks
        # If something is pending, it waits for others' promotions as well.
        chain.recompute_s = max(chain.recompute_s, recompute_s) if chain.pending else recompute_s

    def _margin(self, size: int) -> float:
        return MARGIN_SHUT if size in self._refused else 1.0

    @property
    def _lands_in_time(self) -> int:
        """How many chunks an idle disk brings before anybody gives up; at least one."""
        return max(1, int(MAX_WAIT_S / self._disk_s(1)))

    @property
    def _known(self) -> bool:
        return self.disk.byte_s > 0 and self._prefill.cost is not None

    def _recompute_s(self, chain: Chain, n_chunks: int) -> float:
        first = chain.n_before + len(chain.promises) * self._tokens_per_chunk
        return self._prefill.seconds(first, n_chunks * self._tokens_per_chunk)

    def _disk_s(self, n_chunks: int) -> float:
        return n_chunks * self._chunk_bytes * self.disk.byte_s

    def _copy_s(self, n_chunks: int) -> float:
        return n_chunks * self._chunk_bytes * self.device.byte_s

    def _pays_from_tokens(self) -> int:
        """Fewest tokens, in whole chunks, such that prompts of as many and more would be loaded from an idle disk."""
        if self._mode == "never" or self._hangs:
            return NEVER_TOKENS
        if self._mode != "auto":
            return max(1, -(-self._min_tokens // self._tokens_per_chunk)) * self._tokens_per_chunk
        if not self._known:
            return 0
        fewest = NEVER_TOKENS
        for size in range(min(self._lands_in_time, NEVER_TOKENS // self._tokens_per_chunk).bit_length(), 0, -1):
            low, high = 1 << size - 1, min((1 << size) - 1, self._lands_in_time)
            if not self._pays(high):
                break
            # What a request gains is convex in its length: once it pays it goes on doing so, up to the next size.
            at = 0 if self._pays(low) else bisect_left(range(low, high), True, key=self._pays)
            fewest = (low + at) * self._tokens_per_chunk
            if at:
                break
        return fewest

    def _pays(self, n_chunks: int) -> bool:
        recompute_s = self._prefill.seconds(0, n_chunks * self._tokens_per_chunk) * self._margin(n_chunks.bit_length())
        return STEPS_S + self._disk_s(n_chunks) + self._copy_s(n_chunks) <= recompute_s
