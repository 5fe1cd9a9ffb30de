"""kvtier's metric table in vLLM's terms: counters and gauges in, OffloadingConnectorStats out, /metrics shows them.

vLLM carries what the scheduler side returns from `get_stats` to the API server, which refuses names it was not told of
beforehand, so `build_definitions` names every one. They begin with `vllm:` because vLLM takes exactly those back out of
the process's Prometheus registry when a second engine is built in it; any other name would be a duplicate and an error.
"""

from __future__ import annotations

from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.offloading.metrics import OffloadingConnectorStats
from vllm.v1.kv_offload.base import OffloadingCounterMetadata, OffloadingGaugeMetadata, OffloadingMetricMetadata

from kvtier.observe.metrics import METRICS, Kind
from kvtier.observe.stats import Gauges, Stats

PREFIX = "vllm:"
_METADATA: dict[Kind, type[OffloadingMetricMetadata]] = {
    Kind.COUNTER: OffloadingCounterMetadata,
    Kind.GAUGE: OffloadingGaugeMetadata,
}
_TABLE = [(PREFIX + metric.name, metric) for metric in METRICS]
_OURS = frozenset(name for name, _ in _TABLE)


def build_definitions() -> dict[str, OffloadingMetricMetadata]:
    """What `OffloadingSpec.build_metric_definitions` adds: one entry for each name `to_connector_stats` emits."""
    return {name: _METADATA[metric.kind](metric.documentation, metric.labels) for name, metric in _TABLE}


def to_connector_stats(interval: Stats, gauges: Gauges) -> OffloadingConnectorStats:
    """Counters as the increments of `interval`, gauges as they are. For `OffloadingManager.get_stats`.

    Called on the scheduler thread, at most once a second: about forty dictionary entries. Zeros are sent too, so that
    every series exists from the first scrape and a rate over it is 0 rather than absent.
    """
    out = OffloadingConnectorStats()
    for name, metric in _TABLE:
        put = out.increase_counter if metric.kind is Kind.COUNTER else out.set_gauge
        for label_values, number in metric.read(interval, gauges):
            put(name, number, label_values)
    return out


def without_ours(data: dict[str, Any]) -> dict[str, Any]:
    """A copy of a stats payload without kvtier's names, for `build_kv_connector_stats`.

    vLLM builds its "KV Transfer metrics" log line from that payload; ours have a line of their own. `data` itself goes
    on to Prometheus and is left alone.
    """
    return {part: {name: v for name, v in names.items() if name not in _OURS} for part, names in data.items()}
