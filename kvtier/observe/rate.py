"""PrefillRate: tokens per second the engine prefills at, as a moving median. Feeds the estimate of seconds saved.

The median is weighted by tokens: what a hit saves is a large prefill, and a small one says little about it.
"""

from __future__ import annotations

from collections import deque

MIN_TOKENS = 256
"""Steps with fewer prefill tokens say more about decoding and fixed costs than about prefill."""

WINDOW = 33

MAX_STEPS_OUT = 64
"""Engines have a few steps out at a time. Steps that never come back are forgotten, not collected."""


class PrefillRate:
    """Times engine steps. Scheduler thread; `tokens_per_s` may be read from any thread."""

    def __init__(self, prior_tokens_per_s: float = 0.0) -> None:
        """`prior_tokens_per_s` stands until the first measurement."""
        self.tokens_per_s = prior_tokens_per_s  # 0 until known
        self._scheduled: deque[tuple[float, int]] = deque(maxlen=MAX_STEPS_OUT)
        self._steps: deque[tuple[float, int]] = deque(maxlen=WINDOW)  # rate, tokens
        self._last_output_s = 0.0

    def step_scheduled(self, now_s: float, n_prefill_tokens: int) -> None:
        """A step was handed to the workers."""
        self._scheduled.append((now_s, n_prefill_tokens))

    def step_done(self, now_s: float) -> None:
        """The oldest step still out has come back; where steps overlap, one counts from the end of the one before."""
        if not self._scheduled:
            return
        scheduled_s, n_tokens = self._scheduled.popleft()
        took_s = now_s - max(scheduled_s, self._last_output_s)
        self._last_output_s = now_s
        if n_tokens >= MIN_TOKENS and took_s > 0:
            self._steps.append((n_tokens / took_s, n_tokens))
            self.tokens_per_s = self._median()

    def _median(self) -> float:
        half = sum(tokens for _, tokens in self._steps) / 2
        for rate, tokens in sorted(self._steps):
            half -= tokens
            if half <= 0:
                return rate
        raise AssertionError("no steps")
