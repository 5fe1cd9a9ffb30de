"""PrefillRate: engine steps in, seconds per token of prefill out, as a function of how much context a token attends to.

A token costs its share of the matrix products, whatever came before it, and attention over all that did: t = fixed +
per_context * context. Steps are sorted into classes of similar context, each class has a median, and a line is laid
through the medians. So one stray step moves nothing, many small steps do not outweigh a few large ones, and prompts
longer than any seen so far have an estimate.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

MIN_TOKENS = 256
"""Steps with fewer prefill tokens say more about decoding and about what every step costs than about prefill."""

WINDOW = 9
"""Steps remembered of each class of context; the classes are powers of two."""

SETTLED = 3
"""Steps a class needs before it counts beside others, or against what an earlier engine measured: the first steps of a
process warm up, and the first of a length may be the odd one."""

MAX_STEPS_OUT = 64
"""Engines have a few steps out at a time. Steps that never come back are forgotten, not collected."""


class Cost(NamedTuple):
    """Seconds per prefilled token: `fixed_s` + `per_context_s` times the tokens before it. Measured about `context`."""

    fixed_s: float
    per_context_s: float
    context: float


class PrefillRate:
    """Times engine steps. Scheduler thread; `cost` and what is read from it, any thread."""

    def __init__(self, prior: Cost | None = None) -> None:
        """`prior` stands until enough has been measured."""
        self.cost = prior
        self._prior = prior
        self._scheduled: deque[tuple[float, int, float]] = deque(maxlen=MAX_STEPS_OUT)
        self._classes: dict[int, deque[_Step]] = {}
        self._medians: dict[int, _Step] = {}  # `n_tokens` is that of the whole class
        self._last_output_s = 0.0

    @property
    def tokens_per_s(self) -> float:
        """Speed at the context of the steps that were measured; 0 until known."""
        cost = self.cost
        return 1 / (cost.fixed_s + cost.per_context_s * cost.context) if cost is not None else 0.0

    def seconds(self, first: int, n_tokens: int) -> float:
        """What tokens `first` to `first + n_tokens` of a prompt take; 0 until known."""
        cost = self.cost
        if cost is None:
            return 0.0
        return n_tokens * (cost.fixed_s + cost.per_context_s * (first + n_tokens / 2))

    def step_scheduled(self, now_s: float, n_prefill_tokens: int, context: float = 0.0) -> None:
        """A step was handed to the workers. `context` is the mean number of tokens before each of its tokens."""
        self._scheduled.append((now_s, n_prefill_tokens, context))

    def step_done(self, now_s: float) -> None:
        """The oldest step still out has come back; where steps overlap, one counts from the end of the one before."""
        if not self._scheduled:
            return
        scheduled_s, n_tokens, context = self._scheduled.popleft()
        took_s = now_s - max(scheduled_s, self._last_output_s)
        self._last_output_s = now_s
        if n_tokens >= MIN_TOKENS and took_s > 0:
            self._add(_Step(took_s / n_tokens, n_tokens, context))

    def _add(self, step: _Step) -> None:
        like = int(step.context).bit_length()
        steps = self._classes.setdefault(like, deque(maxlen=WINDOW))
        steps.append(step)
        self._medians[like] = _median(steps)
        settled = [self._medians[i] for i, known in self._classes.items() if len(known) >= SETTLED]
        if settled or self._prior is None:
            self.cost = _line(settled or list(self._medians.values()), self.cost)


class _Step(NamedTuple):
    token_s: float  # seconds per token; first, so that steps sort by it
    n_tokens: int
    context: float


def _median(steps: deque[_Step]) -> _Step:
    """The step in the middle when each weighs as many tokens as it has, with the tokens of them all."""
    n_tokens = sum(step.n_tokens for step in steps)
    half = n_tokens / 2
    for step in sorted(steps):
        half -= step.n_tokens
        if half <= 0:
            return step._replace(n_tokens=n_tokens)
    raise AssertionError("no steps")


def _line(points: list[_Step], before: Cost | None) -> Cost:
    """Least squares, each point weighing its tokens; neither part of the cost is negative.

    Points of one class say nothing about the slope: it stays what it was.
    """
    n_tokens = sum(p.n_tokens for p in points)
    context = sum(p.context * p.n_tokens for p in points) / n_tokens
    token_s = sum(p.token_s * p.n_tokens for p in points) / n_tokens
    if len(points) > 1:
        spread = sum((p.context - context) ** 2 * p.n_tokens for p in points)
        together = sum((p.context - context) * (p.token_s - token_s) * p.n_tokens for p in points)
        slope = max(0.0, together / spread) if spread > 0 else 0.0
    else:
        slope = before.per_context_s if before is not None else 0.0
    if context > 0:
        slope = min(slope, token_s / context)
    return Cost(token_s - slope * context, slope, context)
