"""Replay: one trace through many caches at once -> what each of them did, beside what no cache can beat."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from kvtier.sim.optimal import Future, Unbounded, optimal
from kvtier.sim.policies import Pair
from kvtier.sim.single import SingleTier
from kvtier.sim.tally import Tally
from kvtier.sim.tiered import TieredReplay
from kvtier.sim.trace import Request

OPTIMAL: Final = "optimal"
UNBOUNDED: Final = "unbounded"
_PROGRESS_EVERY: Final = 1000


class Simulator(Protocol):
    """A simulated cache."""

    @property
    def tally(self) -> Tally:
        """What it did so far."""
        ...

    def request(self, request: Request) -> None:
        """Replay one request."""
        ...


@dataclass(frozen=True, slots=True)
class Rules:
    """What holds for every cache of a sweep."""

    keep_partial: bool  # the last chunk of a prompt is kept though its tokens do not fill it
    deployed: bool = False  # as in TieredReplay
    write_behind_after_s: float | None = None
    admit_share: float = 1.0  # as in Backlog
    production_cache: bool = False  # one tier goes through TieredCache, too


@dataclass(frozen=True, slots=True)
class Setup:
    """One cache: blocks of host RAM and of disk (0: none), and the policies of both."""

    n_host: int
    n_disk: int
    policy: Pair

    def make(self, tally: Tally, rules: Rules) -> Simulator:
        """The simulator: production's TieredCache, or its equal for one tier, which is faster."""
        if not self.n_disk and not rules.production_cache:
            policy = self.policy.host.make(self.n_host)
            return SingleTier(self.n_host, policy, tally, keep_partial=rules.keep_partial)
        return TieredReplay(
            self.n_host,
            self.n_disk,
            self.policy.host.make(self.n_host),
            self.policy.disk.make_linked(self.n_disk),
            tally,
            keep_partial=rules.keep_partial,
            deployed=rules.deployed,
            write_behind_after_s=rules.write_behind_after_s,
            admit_share=rules.admit_share,
        )


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a report."""

    name: str  # the policy, OPTIMAL or UNBOUNDED
    n_host: int
    n_disk: int
    tally: Tally


@dataclass(frozen=True, slots=True)
class Result:
    """All rows: setups in the order given, then the optimum per capacity, then the unbounded cache."""

    tokens_per_chunk: int
    n_distinct: int  # blocks the unbounded cache holds in the end
    rules: Rules
    rows: tuple[Row, ...]

    @property
    def unbounded(self) -> Tally:
        """Of the cache that forgets nothing."""
        return self.rows[-1].tally


def replay(
    requests: Iterable[Request],
    tokens_per_chunk: int,
    setups: Sequence[Setup],
    rules: Rules,
    *,
    progress: Callable[[int], None] = lambda _: None,
) -> Result:
    """Run every request through every setup, in order, in one pass. `progress` hears how many were read, now and then.

    The optimum for a setup has the capacity of both its tiers together.
    """
    simulators = [setup.make(Tally(tokens_per_chunk), rules) for setup in setups]
    unbounded = Unbounded(Tally(tokens_per_chunk), keep_partial=rules.keep_partial)
    feeds = [simulator.request for simulator in (*simulators, unbounded)]
    with Future(keep_partial=rules.keep_partial) as future:
        feeds.append(future.note)
        for number, request in enumerate(requests):
            for feed in feeds:
                feed(request)
            if not number % _PROGRESS_EVERY:
                progress(number)
        future.close()
        rows = [Row(s.policy.name, s.n_host, s.n_disk, m.tally) for s, m in zip(setups, simulators, strict=True)]
        ceilings: dict[int, Tally] = {}
        for n_host, n_disk in dict.fromkeys((setup.n_host, setup.n_disk) for setup in setups):
            if n_host + n_disk not in ceilings:
                tally = ceilings[n_host + n_disk] = Tally(tokens_per_chunk)
                optimal(future, n_host + n_disk, tally)
            rows.append(Row(OPTIMAL, n_host, n_disk, ceilings[n_host + n_disk]))
    rows.append(Row(UNBOUNDED, 0, 0, unbounded.tally))
    return Result(tokens_per_chunk, unbounded.n_blocks, rules, tuple(rows))
