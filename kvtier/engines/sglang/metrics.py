"""kvtier's metric table as Prometheus metrics of a scheduler process; SGLang's /metrics gathers those of all ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from kvtier.observe.metrics import METRICS, Kind
from kvtier.observe.stats import Stats

if TYPE_CHECKING:
    from kvtier.observe.stats import Gauges

_RANK_LABELS = ("tp_rank", "pp_rank")
_made: dict[str, Any] = {}  # by name: a process may attach a backend more than once, and registers each name once


class Exporter:
    """Writes one rank's counters and gauges. Scheduler thread."""

    def __init__(self, rank: tuple[str, ...]) -> None:
        self._rank = rank
        self._exported = Stats()

    @classmethod
    def for_rank(cls, storage: Any) -> Self:
        """The exporter of the rank that `storage`, SGLang's HiCacheStorageConfig, describes."""
        return cls((str(storage.tp_rank), str(storage.pp_rank)))

    def export(self, totals: Stats, gauges: Gauges) -> None:
        """Bring the metrics up to `totals` and `gauges`: about forty assignments."""
        interval, self._exported = totals - self._exported, totals
        for metric in METRICS:
            child = _prometheus(metric)
            for label_values, number in metric.read(interval, gauges):
                labelled = child.labels(*label_values, *self._rank)
                if metric.kind is Kind.COUNTER:
                    labelled.inc(number)
                else:
                    labelled.set(number)


def _prometheus(metric: Any) -> Any:
    if metric.name not in _made:
        # It looks at PROMETHEUS_MULTIPROC_DIR when it is imported, which SGLang sets at some point before this.
        from prometheus_client import Counter, Gauge  # noqa: PLC0415

        labels = (*metric.labels, *_RANK_LABELS)
        _made[metric.name] = (
            Counter(metric.name, metric.documentation, labels)
            if metric.kind is Kind.COUNTER
            else Gauge(metric.name, metric.documentation, labels, multiprocess_mode="mostrecent")
        )
    return _made[metric.name]
