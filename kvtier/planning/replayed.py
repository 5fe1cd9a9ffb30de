"""Replayed: the requests of a trace -> how much of each an LRU tier of any size would have, in one pass over the trace.

A prefix of i chunks is found by an LRU cache exactly when the cache is at least as large as the largest stack distance
among them (Mattson et al., Evaluation Techniques for Storage Hierarchies, 1970). Chains are touched tail first.
kvtier's own policy keeps more than LRU; what it really keeps of a trace is for `kvtier replay` to say.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from kvtier.errors import ConfigError
from kvtier.planning.demand import Outcome, nested
from kvtier.sim.trace import Request

_PROGRESS_EVERY = 1000


@dataclass(frozen=True, slots=True)
class Asked:
    """One request: `needs[i]` is the capacity in chunks that finds its first i+1 chunks, up to the first new one."""

    n_tokens: int
    n_output: int
    needs: array[int]


@dataclass(frozen=True, slots=True)
class Replayed:
    """A Demand that is a trace."""

    name: str
    requests_per_s: float
    tokens_per_chunk: int
    requests: Sequence[Asked]

    @property
    def description(self) -> str:
        """One line for people."""
        n = len(self.requests)
        mean = sum(request.n_tokens for request in self.requests) / n
        return f"{self.name}: {n:,} requests of {mean:,.0f} tokens in the mean, {self.requests_per_s:.2f} a second"

    def outcomes(self, device: float, host: float, disk: float) -> Sequence[Outcome]:
        """See Demand."""
        capacities = [capacity / self.tokens_per_chunk for capacity in nested(device, host, disk)]
        weight = 1 / len(self.requests)
        found = []
        for request in self.requests:
            most = max(0, request.n_tokens - 1)  # the last token is computed in any case
            reach = [min(bisect_right(request.needs, c) * self.tokens_per_chunk, most) for c in capacities]
            tiers = (reach[0], reach[1] - reach[0], reach[2] - reach[1])
            found.append(Outcome(weight, request.n_tokens, request.n_output, *tiers))
        return found


def replayed(
    name: str,
    requests: Iterable[Request],
    tokens_per_chunk: Callable[[], int],
    *,
    requests_per_s: float | None,
    progress: Callable[[int], None] = lambda _: None,
) -> Replayed:
    """Read `requests` once. `requests_per_s` replaces the trace's own rate. Raises ConfigError when it is empty.

    `tokens_per_chunk` is asked at the end, because a trace may say it in its first line. `progress` is told now and
    then how many requests were read.
    """
    stack, asked = _Stack(), []
    first_s = last_s = 0.0
    for number, request in enumerate(requests):
        if not number:
            first_s = request.time_s
        first_s, last_s = min(first_s, request.time_s), max(last_s, request.time_s)
        keys = request.keys[: request.n_whole]
        asked.append(Asked(request.n_tokens, request.n_output_tokens, stack.needs(keys)))
        stack.touch(keys)
        if number % _PROGRESS_EVERY == 0:
            progress(number)
    if not asked:
        raise ConfigError(f"{name}: no requests in it: expected one JSON object a line")
    if requests_per_s is None:
        if last_s <= first_s:
            raise ConfigError(f"{name}: its requests carry no times: say how many come in a second with --rate")
        requests_per_s = len(asked) / (last_s - first_s)
    return Replayed(name, requests_per_s, tokens_per_chunk(), asked)


class _Stack:
    """LRU order of all chunks seen: counts how many were used more recently than a given one (a Fenwick tree)."""

    def __init__(self) -> None:
        self._when: dict[bytes, int] = {}  # chunk -> its place, later is more recent
        self._tree = array("l", [0]) * 2  # 1-based; sums of marks at places
        self._now = 0

    def needs(self, keys: Sequence[bytes]) -> array[int]:
        """Running maximum of the stack distances, up to the first chunk never seen."""
        needs, most = array("l"), 0
        for key in keys:
            when = self._when.get(key)
            if when is None:
                break
            most = max(most, len(self._when) - self._older(when) + 1)
            needs.append(most)
        return needs

    def touch(self, keys: Sequence[bytes]) -> None:
        """Make them the most recent, the first one last."""
        if self._now + len(keys) >= len(self._tree):
            self._compact(len(keys))
        for key in reversed(keys):
            old = self._when.pop(key, None)
            if old is not None:
                self._add(old, -1)
            self._now += 1
            self._when[key] = self._now
            self._add(self._now, 1)

    def _compact(self, room: int) -> None:
        """Close the gaps that moved chunks left, and make room: `_when` is in order of use already."""
        self._when = {key: place for place, key in enumerate(self._when, 1)}
        self._now = len(self._when)
        size = 2 * self._now + room + 1024
        self._tree = array("l", [0]) * (size + 1)
        for place in range(1, size + 1):
            self._tree[place] += place <= self._now
            above = place + (place & -place)
            if above <= size:
                self._tree[above] += self._tree[place]

    def _add(self, place: int, change: int) -> None:
        tree = self._tree
        while place < len(tree):
            tree[place] += change
            place += place & -place

    def _older(self, place: int) -> int:
        """Chunks at places up to this one, itself included."""
        tree, total = self._tree, 0
        while place:
            total += tree[place]
            place &= place - 1
        return total
