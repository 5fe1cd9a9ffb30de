"""Report of `kvtier plan`: everything the plan rests on and says -> text or a tree for JSON. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Final

from kvtier.planning.choose import Choice, Prices, Verdict
from kvtier.planning.demand import Demand
from kvtier.planning.effect import DAY_S, SOURCES, Engine
from kvtier.planning.proof import Proof
from kvtier.tables import GAP, columns
from kvtier.units import format_bytes

CONTEXTS: Final = (2_048, 8_192, 32_768, 131_072)
_BUSY: Final = 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A finished plan."""

    model: str
    engine: Engine
    demand: Demand
    prices: Prices
    tbw_bytes: float | None
    choice: Choice
    mean_prompt: float
    proof: Proof | None  # of the choice, when the demand is a trace
    sources: tuple[tuple[str, str], ...]  # (what, where its number comes from), in the order to be shown

    @property
    def pays(self) -> bool:
        """Whether any tier does."""
        return self.choice.host.pays or self.choice.disk.pays

    def to_text(self) -> str:
        """For people."""
        parts = (
            self._kv(),
            self._given(),
            self._break_even(),
            self._tiers(),
            self._ttft(),
            self._load(),
            self._money(),
        )
        return "\n\n".join("\n".join(part) for part in map(list, parts) if part)

    def to_tree(self) -> dict[str, object]:
        """For machines: plain values, bytes, seconds, GB/s (10^9); null where something was not given."""
        layout, engine, choice = self.engine.layout, self.engine, self.choice
        return {
            "model": self.model,
            "kv": {
                "bytes_per_token": layout.bytes_per_token,
                "stored_bytes_per_token": layout.stored_bytes_per_token,
                "state_bytes": layout.state_bytes,
                "window_tokens": layout.window_tokens or None,
                "formula": list(layout.formula()),
            },
            "sources": dict(self.sources),
            "hardware": asdict(engine.hardware),
            "demand": self.demand.description,
            "break_even": [
                {
                    "tokens": n,
                    "prefill_s": engine.prefill.seconds(n),
                    "tokens_per_s": engine.prefill.rate(n),
                    "break_even_gbps": engine.break_even_gbps(n),
                    "host_gbps": engine.hardware.pcie_gbps,
                    "disk_gbps": engine.hardware.disk_gbps,
                }
                for n in CONTEXTS
            ],
            "tiers": {verdict.tier: asdict(verdict) | {"pays": verdict.pays} for verdict in (choice.host, choice.disk)},
            "without": asdict(choice.without),
            "chosen": asdict(choice.chosen),
            "replay": asdict(self.proof) if self.proof else None,
            "cost_per_million_tokens_saved": self._cost_per_million(),
            "computing_costs_per_million_tokens": self._computing_per_million(),
            "buy": self.pays,
        }

    def _kv(self) -> Iterator[str]:
        layout = self.engine.layout
        yield f"{self.model}: {layout.stored_bytes_per_token:,.0f} bytes of KV per token in a tier"
        yield from (f"  {line}" for line in layout.formula())
        if layout.state:
            yield "  kvtier has been run with full and sliding attention; with states as here it has not: try it first"
        n_bytes = format_bytes(int(layout.load_bytes(self.mean_prompt)))
        yield f"  a prompt of {self.mean_prompt:,.0f} tokens (the mean): {n_bytes}"

    def _given(self) -> Iterator[str]:
        yield from (f"{what:<9}{source}" for what, source in self.sources)
        yield f"{'load':<9}{self.demand.description}"

    def _break_even(self) -> Iterator[str]:
        hardware = self.engine.hardware
        yield "Loading a prefix against computing it (GB/s of KV before compression):"
        disk = f"disk {hardware.disk_gbps:.1f} GB/s" if hardware.disk_bytes else "disk"
        rows = [("prefix", "computing", "tokens/s", "break-even", f"host {hardware.pcie_gbps:.1f} GB/s", disk)]
        for n in CONTEXTS:
            needed, prefill = self.engine.break_even_gbps(n), self.engine.prefill
            host = _times(hardware.pcie_gbps / needed)
            from_disk = _times(hardware.disk_gbps / needed) if hardware.disk_bytes else "-"
            seconds = f"{prefill.seconds(n):.3f} s"
            rows.append((f"{n:,}", seconds, f"{prefill.rate(n):,.0f}", f"{needed:.2f} GB/s", host, from_disk))
        yield from columns(rows, indent=GAP)

    def _tiers(self) -> Iterator[str]:
        choice, engine = self.choice, self.engine
        device_bytes = engine.hardware.device_cache_bytes
        device = (
            format_bytes(device_bytes),
            f"{engine.tokens(device_bytes):,.0f}",
            f"{choice.chosen.hit['device']:.1%}",
        )
        rows = [("tier", "decision", "size", "tokens", "hit rate"), ("device", "is there", *device)]
        for verdict, tokens in (
            (choice.host, engine.tokens(choice.host.n_bytes)),
            (choice.disk, engine.disk_tokens(choice.disk.n_bytes)),
        ):
            cells = (format_bytes(verdict.n_bytes), f"{tokens:,.0f}", f"{choice.chosen.hit[verdict.tier]:.1%}")
            rows.append((verdict.tier, "buy", *cells) if verdict.pays else (verdict.tier, "DO NOT BUY", "-", "-", "-"))
        yield from columns(rows, left=(0, 1), indent=GAP)
        yield ""
        for verdict in (choice.host, choice.disk):
            yield from _said(verdict)
        if self.proof is not None:
            proof, found = self.proof, f"{self.proof.host_hit:.1%} of prompt tokens in host RAM (device included)"
            yield f"replayed through kvtier's own cache with {proof.policy}, where the table above assumes LRU:"
            yield f"  {found}, {proof.disk_hit:.1%} on disk{self._proven_writes(proof)}"
        if not self.pays:
            yield "Do not buy either tier for this load: kvtier would add nothing worth its trouble."

    def _proven_writes(self, proof: Proof) -> str:
        if not self.choice.disk.pays:
            return ""
        per_token = self.engine.layout.stored_bytes_per_token / self.engine.hardware.compression
        rate = self.demand.requests_per_s * proof.written_tokens_per_request * per_token
        return f", {rate / 1e6:,.0f} MB/s written without answers"

    def _ttft(self) -> Iterator[str]:
        yield "Time to first token, one prompt at a time (waiting for each other comes on top):"
        rows = [("prefix from", "requests", "mean", "p50", "p95")]
        timed = [(name, self.choice.chosen.ttft.get(name)) for name in (*SOURCES, "all")]
        timed.append(("without kvtier", self.choice.without.ttft["all"]))
        for name, ttft in timed:
            if ttft is not None:
                mean, p50, p95 = (f"{value:.3f} s" for value in (ttft.mean_s, ttft.p50_s, ttft.p95_s))
                rows.append((name, f"{ttft.share:.1%}", mean, p50, p95))
        yield from columns(rows, indent=GAP)

    def _load(self) -> Iterator[str]:
        before, after = self.choice.without, self.choice.chosen
        busy, alone = f"{after.prefill_busy:.0%}", f"{before.prefill_busy:.0%}"
        yield f"prefill keeps the GPUs busy {busy} of the time, {alone} without kvtier"
        if after.prefill_busy > 1:
            served = f"{1 / after.prefill_busy:.0%}"
            yield f"  more than there is: {served} of this load can be served, and the times above are not reached"
            yield "  what follows is for the part that is served"
        elif after.prefill_busy > _BUSY:
            yield "  so much that requests wait for each other, and times above are not reached"
        if after.written_bytes_per_s:
            per_day = after.written_bytes_per_s * self.prices.hours_per_day * DAY_S / 24
            life = "give the drive's TBW (--tbw) for its life"
            if self.choice.disk.years is not None and self.tbw_bytes is not None:
                life = f"a TBW of {self.tbw_bytes / 1e12:,.0f} TB lasts {self.choice.disk.years:.1f} years"
            rate = f"{after.written_bytes_per_s / 1e6:,.0f} MB/s, {per_day / 1e12:,.1f} TB a day"
            yield f"the drive is written {rate}: {life}"

    def _money(self) -> Iterator[str]:
        saved, computed = self._cost_per_million(), self._computing_per_million()
        per_day = self.choice.chosen.saved_tokens_per_s * self.prices.hours_per_day * DAY_S / 24
        if per_day:
            yield f"saved: {per_day / 1e6:,.1f} million prompt tokens a day"
        if saved is not None:
            yield f"  the tiers cost {saved:.4f} per million tokens saved"
        if computed is not None:
            yield f"  computing them costs {computed:.4f} per million"

    def _cost_per_million(self) -> float | None:
        choice, prices = self.choice, self.prices
        unpriced = (choice.host.pays and prices.ram_gib is None) or (choice.disk.pays and prices.disk_tb is None)
        if not self.pays or unpriced:
            return None
        per_hour = prices.tier_per_hour(choice.host.n_bytes, choice.disk.n_bytes, choice.disk.years)
        return per_hour / (choice.chosen.saved_tokens_per_s * 3600) * 1e6

    def _computing_per_million(self) -> float | None:
        effect = self.choice.chosen if self.pays else None
        if self.prices.gpu_hour is None or effect is None:
            return None
        return self.prices.gpu_hour * effect.saved_prefill_s / (effect.saved_tokens_per_s * 3600) * 1e6


def _said(verdict: Verdict) -> Iterator[str]:
    yield f"{verdict.tier}: {'' if verdict.pays else 'do not buy: '}{verdict.reason}"
    yield from (f"{verdict.tier}: warning: {warning}" for warning in verdict.warnings)


def _times(factor: float) -> str:
    return f"{factor:.1f}x faster" if factor >= 1 else f"{1 / factor:.1f}x slower"
