"""The tally -> findings: the causes worth a change, what each costs, and the hit rates with and without them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from kvtier.lint.causes import TITLES, Cause, Site
from kvtier.lint.tally import Node, Tally

# Below these shares a cause is rare: a date that changes once a day, a second tenant, a one-off template.
_MIN_SHARE: Final = 0.1  # of the requests that have the site
_MIN_SHARE_SPACES: Final = 0.01  # of all requests: every request has spaces somewhere


@dataclass(frozen=True, slots=True)
class Limits:
    """What a finding needs."""

    requests: int = 2  # that lost tokens
    tokens: int = 16  # lost per such request: one block of vLLM's; twice that in what users send, who repeat themselves
    share: float = 0.0005  # lost, of all tokens: in a large file everything happens twice


@dataclass(frozen=True, slots=True)
class Finding:
    """One cause at one place, and what it costs."""

    site: Site
    requests: int  # that lost tokens behind it
    of: int  # requests that have the site
    lost_tokens: int  # behind it; what lies behind several causes counts for each of them
    hit_rate_after: float  # with this one put right and nothing else
    hit_rate_with_above: float  # with this one and those listed before it put right
    lines: tuple[int, ...]  # of some of the requests

    @property
    def cause(self) -> Cause:
        """Shorthand."""
        return self.site.cause

    def to_tree(self) -> dict[str, Any]:
        """For --json."""
        return {
            "cause": self.cause.value,
            "title": TITLES[self.cause],
            "where": self.site.shown if self.site.label else None,
            "role": self.site.role,
            "requests": self.requests,
            "requests_with_it": self.of,
            "lost_tokens": self.lost_tokens,
            "hit_rate_after": self.hit_rate_after,
            "hit_rate_after_with_those_above": self.hit_rate_with_above,
            "rewrite": self.site.rewrite,
            "lines": list(self.lines),
        }


@dataclass(frozen=True, slots=True)
class Report:
    """What lint says about a file. Hit rates are shares of tokens, with a cache that never forgets."""

    file: str
    counted_with: str
    tally: Tally
    n_skipped: int
    findings: tuple[Finding, ...]
    hit_rate: float
    hit_rate_after: float  # with all findings put right
    root: Node

    def to_tree(self) -> dict[str, Any]:
        """For --json."""
        tally = self.tally
        return {
            "file": self.file,
            "tokens_counted_with": self.counted_with,
            "requests": tally.requests,
            "skipped_lines": self.n_skipped,
            "tenants": len(tally.tenants),
            "seconds": None if tally.first_s is None or tally.last_s is None else tally.last_s - tally.first_s,
            "tokens": tally.tokens,
            "hit_tokens": tally.hit_tokens,
            "hit_rate": self.hit_rate,
            "hit_rate_after_all": self.hit_rate_after,
            "distinct_pieces": tally.n_pieces,
            "findings": [finding.to_tree() for finding in self.findings],
        }


def report(tally: Tally, *, file: str, counted_with: str, n_skipped: int = 0, limits: Limits = Limits()) -> Report:
    """The findings of `tally`, those that cost most first."""
    chosen = sorted(
        (site for site in tally.sites if _counts(tally, site, limits)),
        key=lambda site: (-tally.sites[site].lost_tokens, site),
    )
    findings: list[Finding] = []
    for i, site in enumerate(chosen):
        known = tally.sites[site]
        findings.append(
            Finding(
                site=site,
                requests=known.affected,
                of=max(known.passes, known.affected),
                lost_tokens=known.lost_tokens,
                hit_rate_after=_rate(tally, {site}),
                hit_rate_with_above=_rate(tally, set(chosen[: i + 1])),
                lines=tuple(known.lines),
            )
        )
    return Report(
        file=file,
        counted_with=counted_with,
        tally=tally,
        n_skipped=n_skipped,
        findings=tuple(findings),
        hit_rate=_rate(tally, set()),
        hit_rate_after=_rate(tally, set(chosen)),
        root=tally.root,
    )


def _counts(tally: Tally, site: Site, limits: Limits) -> bool:
    known = tally.sites[site]
    if site.cause is Cause.WHITESPACE:
        common = known.affected >= _MIN_SHARE_SPACES * tally.requests
    else:
        common = known.affected >= _MIN_SHARE * known.passes
    least = limits.tokens * (2 if site.role == "user" else 1) * known.affected
    return common and known.affected >= limits.requests and known.lost_tokens >= max(least, limits.share * tally.tokens)


def _rate(tally: Tally, sites: set[Site]) -> float:
    gained = sum(tokens for needed, tokens in tally.gains.items() if needed <= sites)
    return (tally.hit_tokens + gained) / tally.tokens if tally.tokens else 0.0
