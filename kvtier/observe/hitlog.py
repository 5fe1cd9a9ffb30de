"""The hit-rate log line: counters of an interval in, one line of text or one JSON object out, every few seconds.

docs/observability.md explains the line field by field. Its order and wording are frozen by tests/golden.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict

from kvtier.observe.stats import NEVER_TOKENS, Gauges, Stats
from kvtier.types import Miss, Source
from kvtier.units import format_bytes

_NONE = "n/a"  # keeps the columns where a number has no meaning yet
_STOP_TIMEOUT_S = 5.0
_SOURCES = ("device", "host", "disk")  # in the order of Source
_MISSES = ("new", "evicted", "gate", "corrupt", "failed", "foreign")  # in the order of Miss
_TROUBLE = {
    "host_dropped": "host_dropped_chunks",
    "store_refused": "store_refused_chunks",
    "over_budget": "over_budget_chunks",
    "spill_failed": "spill_failed_chunks",
    "corrupt_frames": "corrupt_frames",
    "foreign_frames": "foreign_frames",
    "load_errors": "load_errors",
    "gave_up": "gave_up_requests",
    "tier_off": "tier_off",
    "helper_restarts": "helper_restarts",
    "engine_errors": "engine_errors",
}


def format_line(interval: Stats, gauges: Gauges, seconds: float) -> str:
    """One line about the counts of `interval`, which took `seconds`, and the state `gauges` at its end.

    Pure. Words and their order never change; only the last group, counts of trouble, is left out when all are zero.
    Shares are percent of asked tokens, sizes are in binary units, and what cannot be said yet is `n/a`.
    """
    asked = interval.asked_tokens
    hit = _percent(sum(interval.hit_tokens), asked, "%")
    host = _fill(gauges.host_used_bytes, gauges.host_capacity_bytes)
    disk = _fill(gauges.disk_used_bytes, gauges.disk_capacity_bytes if gauges.disk_on else 0)
    moved = {
        "off": interval.offload_bytes,
        "on": interval.onload_bytes,
        "spill": interval.spill_raw_bytes,
        "promote": interval.promote_raw_bytes,
    }
    groups = [
        f"kvtier {_decimals(seconds).removesuffix('.0')}s",
        f"req {_count(interval.requests)}",
        f"asked {_count(asked)} hit {hit} = {_shares(_SOURCES, interval.hit_tokens, asked)}",
        f"miss {_shares(_MISSES, interval.miss_tokens, asked)}",
        f"host {host} disk {disk} x{_ratio(gauges.disk_raw_bytes, gauges.disk_stored_bytes)}",
        " ".join(f"{word} {_size(n_bytes)}" for word, n_bytes in moved.items()),
        f"backlog {_count(gauges.spill_backlog)}",
        f"saved {_saved(interval, gauges)}",
        f"load {_rate(gauges.load_bytes_per_s)} prefill {_tokens_rate(gauges)} pays_from {_pays_from(gauges)}",
    ]
    trouble = [f"{word} {_count(n)}" for word, field in _TROUBLE.items() if (n := getattr(interval, field))]
    return " | ".join([*groups, " ".join(trouble)] if trouble else groups)


def format_json(interval: Stats, gauges: Gauges, seconds: float) -> str:
    """The same as one JSON object on one line: every field of Stats and Gauges under its own name, then ratios.

    Pure. Keys and their order never change; what cannot be said yet is null. Ratios are fractions of asked tokens.
    """
    asked = interval.asked_tokens
    by_source = zip(Source, interval.hit_tokens, strict=True)
    record = {
        "event": "kvtier",
        "interval_s": round(seconds, 3),
        **asdict(interval),
        "hit_tokens": _by_name(Source, interval.hit_tokens),
        "miss_tokens": _by_name(Miss, interval.miss_tokens),
        **asdict(gauges),
        "prefill_tokens_per_s": round(gauges.prefill_tokens_per_s, 1),
        "load_bytes_per_s": round(gauges.load_bytes_per_s),
        "onload_bytes_per_s": round(gauges.onload_bytes_per_s),
        "hit_ratio": _fraction(sum(interval.hit_tokens), asked),
        **{f"{source.name.lower()}_hit_ratio": _fraction(tokens, asked) for source, tokens in by_source},
        "compression_ratio": _fraction(gauges.disk_raw_bytes, gauges.disk_stored_bytes),
        "saved_prefill_s": _fraction(_loaded_tokens(interval), gauges.prefill_tokens_per_s),
    }
    return json.dumps(record, allow_nan=False)


class HitLog:
    """Prints the line every `every_s` seconds from its own daemon thread; says nothing while nothing happens.

    `snapshot` is called on that thread and returns copies: totals since the engine started, and the state now. `emit`
    gets the finished line. If either raises, `failures` grows, `last_error` tells what, and the next line covers the
    time that was missed. `every_s` 0 means off.
    """

    def __init__(
        self,
        snapshot: Callable[[], tuple[Stats, Gauges]],
        every_s: float,
        json: bool,
        emit: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.failures = 0
        self.last_error: Exception | None = None
        self._snapshot = snapshot
        self._every_s = every_s
        self._format = format_json if json else format_line
        self._emit = emit
        self._clock = clock
        self._told = Stats()
        self._told_at = clock()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin printing. Does nothing when off or begun already; not to be called after `stop`."""
        if self._every_s > 0 and self._thread is None:
            self._thread = threading.Thread(target=self._run, name="kvtier-log", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End the thread and print what happened since the last line. Does nothing when not begun; never raises."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._stopped.set()
        thread.join(_STOP_TIMEOUT_S)
        if not thread.is_alive():  # else it hangs in `emit`, and a second caller would hang there too
            self.tick()

    def tick(self) -> None:
        """End the current interval: print its line unless nothing happened. One caller at a time; never raises."""
        try:
            totals, gauges = self._snapshot()
            now = self._clock()
            interval = totals - self._told
            if interval != Stats():
                self._emit(self._format(interval, gauges, now - self._told_at))
            self._told, self._told_at = totals, now
        except Exception as error:  # noqa: BLE001  a log line must never end anything; the caller reads `failures`
            self.failures += 1
            self.last_error = error

    def _run(self) -> None:
        while not self._stopped.wait(self._every_s):
            self.tick()


def _loaded_tokens(interval: Stats) -> int:
    return interval.hit_tokens[Source.HOST] + interval.hit_tokens[Source.DISK]


def _saved(interval: Stats, gauges: Gauges) -> str:
    if gauges.prefill_tokens_per_s <= 0:
        return _NONE
    return _decimals(_loaded_tokens(interval) / gauges.prefill_tokens_per_s) + "s"


def _rate(bytes_per_s: float) -> str:
    return _size(int(bytes_per_s)) + "/s" if bytes_per_s > 0 else _NONE


def _tokens_rate(gauges: Gauges) -> str:
    return _count(round(gauges.prefill_tokens_per_s)) + "/s" if gauges.prefill_tokens_per_s > 0 else _NONE


def _pays_from(gauges: Gauges) -> str:
    if not gauges.load_pays_from_tokens:
        return _NONE
    return "never" if gauges.load_pays_from_tokens >= NEVER_TOKENS else str(gauges.load_pays_from_tokens)


def _by_name(members: type[Source | Miss], tokens: Sequence[int]) -> dict[str, int]:
    return {member.name.lower(): n for member, n in zip(members, tokens, strict=True)}


def _shares(words: Sequence[str], tokens: Sequence[int], asked: int) -> str:
    return " ".join(f"{word} {_percent(n, asked)}" for word, n in zip(words, tokens, strict=True))


def _percent(part: int, whole: int, sign: str = "") -> str:
    """0 only for none at all; next to nothing is 0.0."""
    if whole <= 0:
        return _NONE
    return (f"{100 * part / whole:.1f}" if part else "0") + sign


def _ratio(numerator: int, denominator: int) -> str:
    return f"{numerator / denominator:.2f}" if denominator > 0 else _NONE


def _fraction(numerator: float, denominator: float) -> float | None:
    return round(numerator / denominator, 4) if denominator > 0 else None


def _decimals(number: float) -> str:
    """One decimal where it says something, none from 100 on."""
    return f"{number:.1f}" if number < 99.95 else f"{number:.0f}"


def _count(number: int) -> str:
    """12, 48.2k, 1.1M: at most four digits and a unit."""
    scaled = float(number)
    for unit in ("", "k", "M", "G", "T"):
        text = _decimals(scaled) if unit else str(number)
        if float(text) < 1000:
            return text + unit
        scaled /= 1000
    return f"{scaled:.0f}P"


def _size(n_bytes: int) -> str:
    return format_bytes(n_bytes).replace(" ", "")  # one word a number, for grep and awk


def _fill(used_bytes: int, capacity_bytes: int) -> str:
    return f"{_size(used_bytes)}/{_size(capacity_bytes)}" if capacity_bytes else "off"
