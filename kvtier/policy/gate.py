"""LoadGate: load from disk only what is faster than recomputing.

Compares, for the chunks a request may still find, the time until all of them would be in host memory with the time the
engine would take to prefill their tokens. Both rates are measured while serving: loading as bytes landed per second in
which at least one promotion was under way (so queueing, contention and decoding are in it), prefill by the engine.
Until both are known the answer is yes. The copy from host memory to the device is not counted: it is an order of
magnitude faster than any disk.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

MARGIN_SHUT = 0.8
"""A gate that is shut opens when loading takes this share of recomputing: it does not flap around the break-even."""

PROBE_EVERY_S = 20.0
"""A shut gate learns nothing, so it lets one chunk through this often, without a request waiting for it."""

SAMPLE_BYTES = 32 << 20
"""The rate is taken over at least so many landed bytes: single chunks vary with what the page cache holds."""

OLD_SHARE = 0.5
"""Weight of the estimate so far when a new sample comes."""


class LoadGate:
    """Decides and measures; called under the cache's lock. Times are seconds of the cache's clock."""

    def __init__(
        self, *, chunk_bytes: int, tokens_per_chunk: int, prefill_tokens_per_s: Callable[[], float], mode: str = "auto"
    ) -> None:
        """`prefill_tokens_per_s` gives 0 until measured. `mode` is auto, always or never."""
        self.load_bytes_per_s = 0.0  # 0 until measured
        self._chunk_bytes = chunk_bytes
        self._tokens_per_chunk = tokens_per_chunk
        self._prefill_tokens_per_s = prefill_tokens_per_s
        self._mode = mode
        self._open = True
        self._n_under_way = 0
        self._busy_since_s = 0.0
        self._busy_s = 0.0
        self._landed_bytes = 0
        self._probed_s: float | None = None

    @property
    def break_even_bytes_per_s(self) -> float:
        """The load rate above which loading beats recomputing; 0 until prefill has been measured."""
        return self._chunk_bytes / self._tokens_per_chunk * self._prefill_tokens_per_s()

    def allows(self, n_chunks: int) -> bool:
        """Whether a request that may find `n_chunks` more chunks should load them, behind what is under way already."""
        if self._mode != "auto":
            return self._mode == "always"
        prefill = self._prefill_tokens_per_s()
        if self.load_bytes_per_s == 0 or prefill == 0:
            return True
        n_chunks = max(1, n_chunks)
        load_s = (self._n_under_way + n_chunks) * self._chunk_bytes / self.load_bytes_per_s
        recompute_s = n_chunks * self._tokens_per_chunk / prefill
        self._open = load_s <= recompute_s * (1.0 if self._open else MARGIN_SHUT)
        return self._open

    def wants_probe(self, now_s: float) -> bool:
        """Whether to load one chunk although the gate said no; counts as done when it answers yes."""
        if self._mode != "auto" or self._n_under_way:
            return False
        if self._probed_s is not None and now_s - self._probed_s < PROBE_EVERY_S:
            return False
        self._probed_s = now_s
        return True

    def load_started(self, now_s: float) -> None:
        """A promotion was queued."""
        if self._n_under_way == 0:
            self._busy_since_s = now_s
        self._n_under_way += 1

    def load_ended(self, now_s: float, n_bytes: int) -> None:
        """A promotion ended with `n_bytes` of chunk landed, 0 if it failed."""
        self._n_under_way -= 1
        self._landed_bytes += n_bytes
        self._busy_s += now_s - self._busy_since_s
        self._busy_since_s = now_s
        probing = not self._open and self._landed_bytes > 0
        if self._busy_s > 0 and (probing or self._landed_bytes >= SAMPLE_BYTES):
            rate = self._landed_bytes / self._busy_s
            old = self.load_bytes_per_s or rate
            self.load_bytes_per_s = rate if probing else old * OLD_SHARE + rate * (1 - OLD_SHARE)
            self._landed_bytes, self._busy_s = 0, 0.0
