"""Proof: a trace through production's own cache and policy, at the sizes a plan chose -> what the plan should expect.

The plan itself is made with LRU, which one pass over a trace answers for every size; kvtier evicts better than that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from kvtier.planning.choose import Choice
from kvtier.planning.effect import Engine
from kvtier.sim.policies import DEFAULT, Pair
from kvtier.sim.replay import Rules, Setup
from kvtier.sim.tally import DISK, Tally
from kvtier.sim.trace import Request

_PROGRESS_EVERY = 1000


@dataclass(frozen=True, slots=True)
class Proof:
    """Token-weighted hit rates. The device cache is no part of the replay: what it holds, host RAM holds too."""

    policy: str
    host_hit: float  # device included
    disk_hit: float
    written_tokens_per_request: float


def prove(
    choice: Choice,
    engine: Engine,
    requests: Iterable[Request],
    tokens_per_chunk: int,
    host_bytes: int,
    *,
    progress: Callable[[int], None] = lambda _: None,
) -> Proof | None:
    """Replay `requests` with a host pool of `host_bytes` and the chosen disk. None when not one chunk fits host."""
    n_host = int(engine.tokens(host_bytes) / tokens_per_chunk)
    n_disk = int(engine.disk_tokens(choice.disk.n_bytes) / tokens_per_chunk)
    if not n_host:
        return None
    tally = Tally(tokens_per_chunk)
    simulator = Setup(n_host, n_disk, Pair.parse(DEFAULT)).make(tally, Rules(keep_partial=False))
    for number, request in enumerate(requests):
        simulator.request(request)
        if number % _PROGRESS_EVERY == 0:
            progress(number)
    if not tally.tokens:
        return None
    disk = tally.hit_tokens[DISK] / tally.tokens
    written = tally.writes_per_request * tokens_per_chunk
    return Proof(DEFAULT, tally.token_hit_rate - disk, disk, written)
