"""Demand: what requests ask for, and how much of it each tier would have -> a weighted list of Outcomes.

One shape for all workloads: a trace gives one Outcome per request, a described workload one per kind of request.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final, NamedTuple, Protocol

from kvtier.errors import ConfigError

_LENGTHS: Final = 24  # equally likely prompt lengths that stand for a distribution
_EXACT_RANKS: Final = 64  # prefixes counted one by one; rarer ones in groups of 2 % of their rank
_GROUP: Final = 1.02


class Outcome(NamedTuple):
    """A kind of request. Token counts are disjoint and lie in this order from the head of the prompt."""

    weight: float  # share of all requests; all weights add up to 1
    n_tokens: float  # of the prompt
    n_output: float
    device: float  # tokens of the prefix that the device still has
    host: float
    disk: float

    @property
    def hit(self) -> float:
        """Tokens of the prompt that need not be computed."""
        return self.device + self.host + self.disk


class Demand(Protocol):
    """A stream of requests."""

    @property
    def requests_per_s(self) -> float:
        """Mean rate of requests, more than 0."""
        ...

    @property
    def description(self) -> str:
        """One line for people."""
        ...

    def outcomes(self, device: float, host: float, disk: float) -> Sequence[Outcome]:
        """What happens with LRU tiers that keep so many tokens, each from the head of what was asked for last.

        A tier that is no larger than the one above adds nothing, because the same tokens went to both; the disk tier
        holds what left the host tier besides what it holds itself.
        """
        ...


@dataclass(frozen=True, slots=True)
class Lengths:
    """Prompt lengths: all `mean`, or log-normal with this mean and 95th percentile."""

    mean: float
    p95: float | None = None

    def values(self) -> tuple[float, ...]:
        """Equally likely lengths with this mean. Raises ConfigError when no such distribution exists."""
        if self.p95 is None:
            return (self.mean,)
        ratio, z = self.p95 / self.mean, NormalDist().inv_cdf(0.95)
        if not 1 < ratio < math.exp(z * z / 2):
            raise ConfigError(
                f"--prompt-tokens: a 95th percentile of {self.p95:,.0f} with a mean of {self.mean:,.0f}: expected more "
                f"than the mean and less than {math.exp(z * z / 2):.1f} times as much"
            )
        sigma = z - math.sqrt(z * z - 2 * math.log(ratio))
        points = [math.exp(sigma * NormalDist().inv_cdf((i + 0.5) / _LENGTHS)) for i in range(_LENGTHS)]
        scale = self.mean * _LENGTHS / sum(points)
        return tuple(point * scale for point in points)


@dataclass(frozen=True, slots=True)
class SharedPrefixes:
    """Prompts of which a share begins with one of many known prefixes; the rest of each prompt is new.

    Popularity of prefixes is Zipf. Hit rates are Che's approximation of LRU (Che, Tung, Wang: Hierarchical Web Caching
    Systems, 2002; why it holds: Fricker, Robert, Roberts, arXiv 1202.3974): an item asked for at rate r is there with
    probability 1 - exp(-r*T), where T is the time in which requests fill the cache. What is never asked for again
    stays for T too, and so takes its part of the capacity.
    """

    requests_per_s: float
    lengths: Lengths
    output_tokens: float
    n_prefixes: int
    prefix_tokens: float
    reuse: float  # share of requests that begin with a known prefix, 0 to 1
    zipf: float  # exponent, 0 = all equally popular

    @property
    def description(self) -> str:
        """One line for people."""
        p95 = f" (95 % under {self.lengths.p95:,.0f})" if self.lengths.p95 else ""
        return (
            f"{self.requests_per_s:g} requests/s of {self.lengths.mean:,.0f} tokens{p95} and {self.output_tokens:,.0f} "
            f"of output; {self.reuse:.0%} begin with one of {self.n_prefixes:,} prefixes of {self.prefix_tokens:,.0f} "
            f"tokens (Zipf {self.zipf:g})"
        )

    def outcomes(self, device: float, host: float, disk: float) -> Sequence[Outcome]:
        """See Demand."""
        stays = [self._stay_s(capacity) for capacity in nested(device, host, disk)]
        reach = [self._hit(stay) for stay in stays]
        shares = [reach[0], reach[1] - reach[0], reach[2] - reach[1]]
        lengths = self.lengths.values()
        found = []
        for length in lengths:
            prefix = min(self.prefix_tokens, max(0.0, length - 1))
            for tier, share in enumerate(shares):
                hit = [prefix if i == tier else 0.0 for i in range(3)]
                found.append(Outcome(share / len(lengths), length, self.output_tokens, *hit))
            found.append(Outcome((1 - sum(shares)) / len(lengths), length, self.output_tokens, 0.0, 0.0, 0.0))
        return [outcome for outcome in found if outcome.weight > 0]

    def _hit(self, stay_s: float) -> float:
        """Share of all requests that find their prefix in a cache where things stay that long."""
        rates = self._rates()
        known = sum(n * rate * -math.expm1(-rate * stay_s) for n, rate in rates)
        total = sum(n * rate for n, rate in rates)
        return self.reuse * known / total if total else 0.0  # a share of reuse next to nothing comes to no rate at all

    def _stay_s(self, capacity: float) -> float:
        """Che's characteristic time of a cache of that many tokens."""
        rates = self._rates() if self.reuse else []
        new = self.lengths.mean - self.reuse * self.prefix_tokens + self.output_tokens

        def filled(stay_s: float) -> float:
            prefixes = sum(n * -math.expm1(-rate * stay_s) for n, rate in rates) * self.prefix_tokens
            return prefixes + self.requests_per_s * new * stay_s

        low, high = 0.0, 1.0
        while filled(high) < capacity:
            if high > 1e12:  # everything there is fits
                return high
            low, high = high, high * 2
        for _ in range(36):
            middle = (low + high) / 2
            low, high = (middle, high) if filled(middle) < capacity else (low, middle)
        return low

    def _rates(self) -> list[tuple[float, float]]:
        """(how many prefixes, requests per second for each), most popular first."""
        groups: list[tuple[int, int]] = []  # first rank, last rank
        first = 1
        while first <= self.n_prefixes:
            last = first if first < _EXACT_RANKS else min(self.n_prefixes, int(first * _GROUP))
            groups.append((first, last))
            first = last + 1
        raw = [(last - first + 1.0, ((first + last) / 2) ** -self.zipf) for first, last in groups]
        scale = self.requests_per_s * self.reuse / sum(n * weight for n, weight in raw)
        return [(n, weight * scale) for n, weight in raw]


def nested(device: float, host: float, disk: float) -> tuple[float, float, float]:
    """Tokens found in the device, in it or host, and in any tier. See Demand.outcomes."""
    both = max(device, host)
    return device, both, max(both, host + disk) if disk else both
