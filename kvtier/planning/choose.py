"""Choose: an Engine, a Demand and prices -> which tiers to have, how large, and why, "do not buy" included. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from kvtier.planning.demand import Demand
from kvtier.planning.effect import DAY_S, YEAR_S, Effect, Engine
from kvtier.planning.hardware import Hardware
from kvtier.units import format_bytes

LEAST_GAIN: Final = 0.01  # token hit rate that a tier must add to be worth its trouble
ENOUGH: Final = 0.95  # without prices: the smallest size with this share of what the largest would add
LEAST_YEARS: Final = 1.0  # an SSD that is worn out sooner is not a plan
SHORT_YEARS: Final = 5.0  # what vendors usually guarantee the TBW for
_STEPS: Final = 24  # sizes tried per tier, each 2/3 of the one before
_STEP: Final = 2 / 3
_GIB: Final = 1 << 30
_MIB: Final = 1 << 20
LEAST_POOL_BYTES: Final = 16 * _MIB  # host RAM that chunks pass through
LEAST_DISK_BYTES: Final = 256 * _MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """What the user pays, in any currency. None = not given, and then nothing is said of it."""

    gpu_hour: float | None = None  # all GPUs of the engine together
    ram_gib: float | None = None  # to buy one GiB
    disk_tb: float | None = None  # to buy 10^12 bytes
    years: float = 3.0  # over which memory and drives are written off
    hours_per_day: float = 24.0  # of this load

    def tier_per_hour(self, host_bytes: int, disk_bytes: int, disk_years: float | None = None) -> float:
        """Cost of the tiers per hour of load. A drive worn out after `disk_years` has cost its price by then."""
        hours_per_year = YEAR_S / DAY_S * self.hours_per_day
        host = host_bytes / _GIB * (self.ram_gib or 0.0) / self.years
        disk = disk_bytes / 1e12 * (self.disk_tb or 0.0) / min(self.years, disk_years or self.years)
        return (host + disk) / hours_per_year


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """On one tier."""

    tier: str  # "host" or "disk"
    n_bytes: int  # 0 = do not buy
    reason: str
    gain: float  # token hit rate that it adds, at this size or, if it is not to be bought, at the largest
    years: float | None = None  # life of the drive; None when its TBW was not given, or for host
    warnings: tuple[str, ...] = ()

    @property
    def pays(self) -> bool:
        """Whether to have it."""
        return self.n_bytes > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The plan: both tiers, with the effect of none and of those that pay."""

    host: Verdict
    disk: Verdict
    without: Effect
    chosen: Effect


def choose(engine: Engine, demand: Demand, prices: Prices, tbw_bytes: float | None = None) -> Choice:
    """Host first, then disk behind the host tier that was chosen.

    With all the prices a tier needs, its size is the one with the largest gain in money; otherwise the smallest that
    reaches 95 % of what the most would add. `tbw_bytes` is what the drive may be written in its life.
    """
    without = engine.effect(demand, 0, 0)
    host = _choose_host(engine, demand, prices, without)
    base = engine.effect(demand, host.n_bytes, 0)
    disk = _choose_disk(engine, demand, prices, base, tbw_bytes)
    return Choice(host=host, disk=disk, without=without, chosen=engine.effect(demand, host.n_bytes, disk.n_bytes))


def _choose_host(engine: Engine, demand: Demand, prices: Prices, without: Effect) -> Verdict:
    hardware = engine.hardware

    def with_host(n_bytes: int) -> Effect:
        return engine.effect(demand, n_bytes, 0)

    if hardware.ram_bytes < LEAST_POOL_BYTES:
        return Verdict(tier="host", n_bytes=0, reason="no RAM was offered (--ram)", gain=0.0)
    most = with_host(_round(hardware.ram_bytes))
    verdict = _judge("host", without, most)
    if verdict is None:
        verdict = _size("host", hardware.ram_bytes, without, with_host, prices, None)
    if not verdict.pays and most.host_bytes <= hardware.device_cache_bytes:
        cache, size = format_bytes(hardware.device_cache_bytes), format_bytes(most.host_bytes)
        reason = f"{size} is no larger than the device cache ({cache}), which holds the same tokens"
        return Verdict(tier="host", n_bytes=0, reason=reason, gain=verdict.gain)
    return verdict


def _choose_disk(engine: Engine, demand: Demand, prices: Prices, base: Effect, tbw_bytes: float | None) -> Verdict:
    hardware = engine.hardware

    def with_disk(n_bytes: int) -> Effect:
        return engine.effect(demand, base.host_bytes, n_bytes)

    refused = _cannot_have_disk(hardware) or _judge_disk(hardware, base, with_disk(_round(hardware.disk_bytes)))
    if refused is not None:
        return refused
    verdict = _size("disk", hardware.disk_bytes, base, with_disk, prices, tbw_bytes)
    if not verdict.pays or tbw_bytes is None:
        return verdict
    chosen = with_disk(verdict.n_bytes)
    years = life_years(chosen.written_bytes_per_s, tbw_bytes, prices.hours_per_day)
    if years < LEAST_YEARS:
        reason = (
            f"the drive would be worn out in {years * 12:.1f} months: {chosen.written_bytes_per_s / 1e9:.2f} GB/s come "
            f"to {chosen.written_bytes_per_s * prices.hours_per_day * 3600 / 1e12:,.1f} TB a day, and its TBW is "
            f"{tbw_bytes / 1e12:,.0f} TB; one year takes {tbw_bytes / 1e12 / years:,.0f} TB"
        )
        return Verdict(tier="disk", n_bytes=0, reason=reason, gain=verdict.gain, years=years)
    warnings = (
        (f"the drive lasts {years:.1f} years, less than the usual guarantee of 5",) if years < SHORT_YEARS else ()
    )
    return Verdict(
        tier="disk", n_bytes=verdict.n_bytes, reason=verdict.reason, gain=verdict.gain, years=years, warnings=warnings
    )


def _cannot_have_disk(hardware: Hardware) -> Verdict | None:
    reason = None
    if hardware.disk_bytes < LEAST_DISK_BYTES:
        reason = "no disk was offered (--disk)"
    elif hardware.ram_bytes < LEAST_POOL_BYTES:
        reason = f"what comes from disk passes through host RAM: offer {format_bytes(LEAST_POOL_BYTES)} or more (--ram)"
    return Verdict(tier="disk", n_bytes=0, reason=reason, gain=0.0) if reason else None


def _judge_disk(hardware: Hardware, base: Effect, most: Effect) -> Verdict | None:
    if (verdict := _judge("disk", base, most)) is not None:
        return verdict
    needed, there = most.written_bytes_per_s / 1e9, hardware.disk_write_gbps
    if needed <= there:
        return None
    reason = f"new KV comes at {needed:.2f} GB/s compressed and the drive writes {there:g}: most would be dropped"
    return Verdict(tier="disk", n_bytes=0, reason=reason, gain=_gain(base, most))


def life_years(written_bytes_per_s: float, tbw_bytes: float, hours_per_day: float) -> float:
    """Years until a drive has been written `tbw_bytes`."""
    per_year = written_bytes_per_s * YEAR_S * hours_per_day / 24
    return tbw_bytes / per_year if per_year else float("inf")


def _judge(tier: str, base: Effect, most: Effect) -> Verdict | None:
    """Why not even the largest tier would pay, whatever it costs; None when it might."""
    gain = _gain(base, most)
    if gain < LEAST_GAIN:
        reason = f"it would add {100 * gain:.1f} points of hit rate at most: what comes again is there already, or new"
        return Verdict(tier=tier, n_bytes=0, reason=reason, gain=gain)
    if most.ttft["all"].mean_s >= base.ttft["all"].mean_s:
        slower = 1000 * (most.ttft["all"].mean_s - base.ttft["all"].mean_s)
        reason = f"loading is slower than computing: the mean time to first token would grow by {slower:.0f} ms"
        return Verdict(tier=tier, n_bytes=0, reason=reason, gain=gain)
    return None


def _size(  # noqa: PLR0917 - private, called twice
    tier: str,
    most_bytes: int,
    base: Effect,
    effect: Callable[[int], Effect],
    prices: Prices,
    tbw_bytes: float | None,
) -> Verdict:
    gpu_hour = prices.gpu_hour if (prices.ram_gib if tier == "host" else prices.disk_tb) is not None else None
    sizes = sorted(
        {size for size in (_round(most_bytes * _STEP**i) for i in range(_STEPS)) if size >= LEAST_POOL_BYTES}
    )
    effects = [effect(size) for size in sizes]
    largest = _gain(base, effects[-1])
    if gpu_hour is None:
        found = next(found for found in effects if _gain(base, found) >= ENOUGH * largest)
        size = getattr(found, f"{tier}_bytes")
        gain = _gain(base, found)
        share = "" if size == _round(most_bytes) else f", {gain / largest:.0%} of what {format_bytes(most_bytes)} add"
        return Verdict(tier=tier, n_bytes=size, reason=f"adds {100 * gain:.1f} points of hit rate{share}", gain=gain)

    def profit(found: Effect) -> float:
        years = life_years(found.written_bytes_per_s, tbw_bytes, prices.hours_per_day) if tbw_bytes else None
        cost = prices.tier_per_hour(found.host_bytes, found.disk_bytes, years)
        return found.saved_prefill_s * gpu_hour - cost

    best = max(effects, key=profit)
    more = profit(best) - profit(base)
    size, gain = getattr(best, f"{tier}_bytes"), _gain(base, best)
    if more <= 0:
        most = effects[-1]
        saved = (most.saved_prefill_s - base.saved_prefill_s) * gpu_hour
        reason = (
            f"at no size does it save what it costs: {format_bytes(_round(most_bytes))} cost "
            f"{saved - profit(most) + profit(base):.3f} an hour and save {saved:.3f} of GPU time"
        )
        return Verdict(tier=tier, n_bytes=0, reason=reason, gain=largest)
    saved = (best.saved_prefill_s - base.saved_prefill_s) * gpu_hour
    reason = (
        f"adds {100 * gain:.1f} points of hit rate; costs {saved - more:.3f} an hour, saves {saved:.3f} of GPU time"
    )
    return Verdict(tier=tier, n_bytes=size, reason=reason, gain=gain)


def _gain(base: Effect, found: Effect) -> float:
    return sum(found.hit.values()) - sum(base.hit.values())


def _round(n_bytes: float) -> int:
    """Down to what can be written as a whole number of GiB, or of MiB below 4 GiB."""
    unit = _GIB if n_bytes >= 4 * _GIB else _MIB
    return int(n_bytes) // unit * unit
