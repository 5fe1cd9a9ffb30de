"""Effect: a model, hardware, tier sizes and a Demand -> hit rates, times to first token, GPU time saved, writes. Pure.

One prompt at a time: what requests wait for each other comes on top, and shrinks with the GPU's load.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from kvtier.planning.demand import Demand, Outcome
from kvtier.planning.hardware import Hardware
from kvtier.planning.layout import KvLayout
from kvtier.planning.prefill import Prefill
from kvtier.store.lmdb import LIVE_SHARE

SOURCES: Final = ("device", "host", "disk", "computed")
DAY_S: Final = 86400.0
YEAR_S: Final = 365.25 * DAY_S


@dataclass(frozen=True, slots=True)
class Ttft:
    """Seconds to the first token of a group of requests, weighted."""

    share: float  # of all requests
    mean_s: float
    p50_s: float
    p95_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """What tiers of given sizes do. Rates are of the requests that the GPUs can serve; shares are of prompt tokens."""

    host_bytes: int
    disk_bytes: int
    hit: dict[str, float]  # "device", "host", "disk" -> token-weighted hit rate
    ttft: dict[str, Ttft]  # by slowest source: SOURCES, "all"
    prefill_busy: float  # share of the time that prefill keeps the GPUs busy; over 1 they cannot keep up
    saved_tokens_per_s: float  # prompt tokens that come from host or disk
    saved_prefill_s: float  # seconds of prefill per second that those would have taken
    written_bytes_per_s: float  # to the drive, compressed


class Engine:
    """One engine: its model, its prefill and its hardware."""

    def __init__(self, layout: KvLayout, prefill: Prefill, hardware: Hardware) -> None:
        """Keep them; everything is computed when asked."""
        self.layout = layout
        self.prefill = prefill
        self.hardware = hardware

    def tokens(self, n_bytes: float) -> float:
        """Tokens of prefixes that fit so many bytes of memory."""
        return n_bytes / self.layout.stored_bytes_per_token

    def disk_tokens(self, n_bytes: float) -> float:
        """Tokens that fit a disk tier of so many bytes, compressed, less the room that the store keeps free."""
        return self.tokens(n_bytes * LIVE_SHARE * self.hardware.compression)

    def effect(self, demand: Demand, host_bytes: int, disk_bytes: int) -> Effect:
        """What these tiers do under this demand."""
        device = self.tokens(self.hardware.device_cache_bytes)
        outcomes = demand.outcomes(device, self.tokens(host_bytes), self.disk_tokens(disk_bytes))
        asked = sum(o.weight * o.n_tokens for o in outcomes)
        busy = demand.requests_per_s * sum(o.weight * self.prefill.seconds(o.n_tokens, o.hit) for o in outcomes)
        rate = demand.requests_per_s / max(1.0, busy)  # what is not served is neither saved nor written
        saved_s = sum(
            o.weight * (self.prefill.seconds(o.n_tokens, o.device) - self.prefill.seconds(o.n_tokens, o.hit))
            for o in outcomes
        )
        new = sum(o.weight * (o.n_tokens - o.hit + o.n_output) for o in outcomes)
        written = rate * new * self.layout.stored_bytes_per_token / self.hardware.compression if disk_bytes else 0.0
        return Effect(
            host_bytes=host_bytes,
            disk_bytes=disk_bytes,
            hit={name: sum(o.weight * getattr(o, name) for o in outcomes) / asked for name in SOURCES[:3]},
            ttft=self._ttft(outcomes),
            prefill_busy=busy,
            saved_tokens_per_s=rate * sum(o.weight * (o.host + o.disk) for o in outcomes),
            saved_prefill_s=rate * saved_s,
            written_bytes_per_s=written,
        )

    def ttft_s(self, outcome: Outcome) -> float:
        """Seconds to the first token of one such request: loads, disk before host, then what is left to compute."""
        load_s = 0.0
        if outcome.host or outcome.disk:
            up = self.layout.load_bytes(outcome.hit) - self.layout.load_bytes(outcome.device)
            from_disk = up * outcome.disk / (outcome.host + outcome.disk)
            load_s = self.hardware.host_load_s(up) + from_disk / (self.hardware.disk_kv_gbps * 1e9)
        return load_s + max(self.hardware.step_s, self.prefill.seconds(outcome.n_tokens, outcome.hit))

    def break_even_gbps(self, n_tokens: int) -> float:
        """GB of KV a second above which loading a prefix of `n_tokens` beats computing it."""
        return self.layout.load_bytes(n_tokens) / self.prefill.seconds(n_tokens) / 1e9

    def _ttft(self, outcomes: Sequence[Outcome]) -> dict[str, Ttft]:
        groups: dict[str, list[tuple[float, float]]] = {name: [] for name in (*SOURCES, "all")}
        for outcome in outcomes:
            timed = (self.ttft_s(outcome), outcome.weight)
            source = "disk" if outcome.disk else "host" if outcome.host else "device" if outcome.device else "computed"
            groups[source].append(timed)
            groups["all"].append(timed)
        return {name: _distribution(timed) for name, timed in groups.items() if timed}


def _distribution(timed: Iterable[tuple[float, float]]) -> Ttft:
    ordered = sorted(timed)
    share = sum(weight for _, weight in ordered)
    mean = sum(seconds * weight for seconds, weight in ordered) / share
    return Ttft(share, mean, _quantile(ordered, 0.5 * share), _quantile(ordered, 0.95 * share))


def _quantile(ordered: Sequence[tuple[float, float]], weight: float) -> float:
    below = 0.0
    for seconds, part in ordered:
        below += part
        if below >= weight * (1 - 1e-12):
            return seconds
    return ordered[-1][0]
