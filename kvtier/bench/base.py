"""What every benchmark speaks: Conditions in, Results out; timing in turns, so that figure and peer see one machine.

A benchmark is a module of this package with `run(conditions) -> Iterator[Result]`, listed in `registry`. Each figure
has a peer or a ceiling that was measured in the same run, in its `vs`.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

GB = 1e9
MIB = 1 << 20


class Result(NamedTuple):
    """One figure."""

    name: str  # "BENCH.what_it_is", stable: scripts look for it
    value: float
    unit: str  # "GB/s", "ms", "x" for a ratio of two figures, "B", ...
    vs: Mapping[str, float] = {}  # peers and ceilings by name, of the same unit, from the same run


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """What a benchmark is to measure with. Sizes are upper hints: one that needs less takes less."""

    folder: Path  # empty, this benchmark's alone, on the file system to measure; removed afterwards
    data_bytes: int  # of KV to move, before compression
    chunk_bytes: int
    n_repeats: int  # rounds of which the median counts
    quick: bool = False  # figures may be rough; for a look, and for tests
    sample: Path | None = None  # folder of captured KV, see `kv`
    progress: Callable[[str], None] = lambda _: None  # called with what is being done now
    notes: list[str] = field(default_factory=list)  # what the reader must know of these figures

    @property
    def n_chunks(self) -> int:
        """Chunks that make up `data_bytes`, at least 2."""
        return max(2, self.data_bytes // self.chunk_bytes)

    def note(self, text: str) -> None:
        """Say something that belongs beside the figures: what they were measured with, what is missing and why."""
        if text not in self.notes:
            self.notes.append(text)


class Work(NamedTuple):
    """Something to time: `run` alone is on the clock, `prepare` and `after` around it are not."""

    run: Callable[[], object]
    prepare: Callable[[], object] | None = None
    after: Callable[[], object] | None = None


class Timings:
    """Seconds that each of several works took in each round."""

    def __init__(self, seconds: Mapping[str, Sequence[float]]) -> None:
        self.seconds = seconds

    def median_s(self, name: str) -> float:
        """Seconds of the middle round."""
        return statistics.median(self.seconds[name])

    def rate(self, name: str, n_bytes: int) -> float:
        """GB/s in the middle round, of `n_bytes` a round."""
        return n_bytes / self.median_s(name) / GB

    def speedup(self, name: str, peer: str) -> float:
        """How many times as fast as `peer`: the median of the rounds' own ratios, which outlives a slow spell."""
        return statistics.median(
            theirs / ours for ours, theirs in zip(self.seconds[name], self.seconds[peer], strict=True)
        )


def time_in_turns(
    works: Mapping[str, Callable[[], object] | Work],
    n_rounds: int,
    *,
    warm: bool = True,
    clock: Callable[[], float] = time.perf_counter,
) -> Timings:
    """Run every work once a round, each round beginning with another, and return all seconds.

    `warm` runs each once before, off the clock. Not for work that can only be done once. `time.thread_time` as `clock`
    leaves out the time in which other programs had the processor; for work of this thread alone.
    """
    items = [(name, work if isinstance(work, Work) else Work(work)) for name, work in works.items()]
    seconds: dict[str, list[float]] = {name: [] for name, _ in items}
    for number in range(-1 if warm else 0, n_rounds):
        turn = number % len(items)
        for name, work in items[turn:] + items[:turn]:
            elapsed_s = _timed(work, clock)
            if number >= 0:
                seconds[name].append(elapsed_s)
    return Timings(seconds)


def _timed(work: Work, clock: Callable[[], float]) -> float:
    if work.prepare is not None:
        work.prepare()
    try:
        started = clock()
        work.run()
        return clock() - started
    finally:
        if work.after is not None:
            work.after()
