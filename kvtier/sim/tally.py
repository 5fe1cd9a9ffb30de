"""Tally: what a simulated cache did, as plain counts, and the rates that reports show. A block is a trace's chunk."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

HOST: Final = 0
DISK: Final = 1
TIERS: Final = ("host", "disk")


@dataclass(slots=True)
class Tally:
    """Counts over one replay; lists are by tier, HOST then DISK. Every block counts as asked, partial or not."""

    tokens_per_chunk: int
    requests: int = 0
    blocks: int = 0
    tokens: int = 0
    hit_blocks: list[int] = field(default_factory=lambda: [0, 0])
    hit_tokens: list[int] = field(default_factory=lambda: [0, 0])
    hit_requests: list[int] = field(default_factory=lambda: [0, 0])  # with at least one block from the tier
    any_hit_requests: int = 0
    request_shares: list[float] = field(default_factory=lambda: [0.0, 0.0])  # sum of each request's share of its blocks
    written_blocks: int = 0  # to disk
    rewritten_blocks: int = 0  # of those, the ones that had been written before
    dropped_blocks: int = 0  # left host RAM without a copy on disk, though there is a disk tier

    def count(self, n_tokens: int, n_blocks: int, n_host: int, n_disk: int, *, last: int = HOST) -> None:
        """Count a request; its first `n_host + n_disk` blocks hit, and the last of those came from tier `last`."""
        self.requests += 1
        self.blocks += n_blocks
        self.tokens += n_tokens
        n_hit = n_host + n_disk
        if not n_hit:
            return
        self.any_hit_requests += 1
        beyond = max(0, n_hit * self.tokens_per_chunk - n_tokens)  # a partial tail is shorter
        for tier, n_hits in ((HOST, n_host), (DISK, n_disk)):
            if n_hits:
                self.hit_blocks[tier] += n_hits
                self.hit_tokens[tier] += max(0, n_hits * self.tokens_per_chunk - beyond * (tier == last))
                self.hit_requests[tier] += 1
                self.request_shares[tier] += n_hits / n_blocks

    @property
    def block_hit_rate(self) -> float:
        """Share of blocks that hit, any tier."""
        return ratio(sum(self.hit_blocks), self.blocks)

    @property
    def token_hit_rate(self) -> float:
        """Share of prompt tokens that hit, any tier."""
        return ratio(sum(self.hit_tokens), self.tokens)

    @property
    def request_hit_rate(self) -> float:
        """Mean over requests of the share of a request's blocks that hit, any tier."""
        return ratio(sum(self.request_shares), self.requests)

    @property
    def writes_per_request(self) -> float:
        """Blocks written to disk per request."""
        return ratio(self.written_blocks, self.requests)

    @property
    def writes_per_read(self) -> float:
        """Blocks written to disk per block that disk had."""
        return ratio(self.written_blocks, self.hit_blocks[DISK])


def ratio(part: float, whole: float) -> float:
    """`part / whole`, 0 of nothing."""
    return part / whole if whole else 0.0
