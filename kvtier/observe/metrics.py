"""The metric table: what an exporter may show, read from Stats and Gauges. Knows no engine and no exporter.

Names are `kvtier_` + the field's own name, `_total` appended to counters, so that the code, the JSON log and a
dashboard use one word for one thing. docs/observability.md prints this table and a test compares the two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum, IntEnum

from kvtier.observe.stats import Gauges, Stats
from kvtier.types import Miss, Source

Sample = tuple[tuple[str, ...], int | float]
"""Label values in the order of `Metric.labels`, and the number."""


class Kind(Enum):
    """How an exporter treats a number."""

    COUNTER = "counter"  # only grows; `read` on an interval gives the increment, on totals the total
    GAUGE = "gauge"  # state at the instant of the reading


@dataclass(frozen=True, slots=True)
class Metric:
    """One row of the table."""

    name: str
    kind: Kind
    labels: tuple[str, ...]
    documentation: str
    read: Callable[
        [Stats, Gauges], list[Sample]
    ]  # one sample for each combination of label values, always the same ones


def _counter(field: str, documentation: str) -> Metric:
    def read(stats: Stats, _: Gauges) -> list[Sample]:
        return [((), getattr(stats, field))]

    return Metric(f"kvtier_{field}_total", Kind.COUNTER, (), documentation, read)


def _counter_by(label: str, members: Iterable[IntEnum], field: str, documentation: str) -> Metric:
    label_values = [(member.name.lower(),) for member in members]

    def read(stats: Stats, _: Gauges) -> list[Sample]:
        return list(zip(label_values, getattr(stats, field), strict=True))

    return Metric(f"kvtier_{field}_total", Kind.COUNTER, (label,), documentation, read)


def _gauge(field: str, documentation: str) -> Metric:
    def read(_: Stats, gauges: Gauges) -> list[Sample]:
        return [((), getattr(gauges, field) + 0)]  # + 0: exporters refuse bool

    return Metric(f"kvtier_{field}", Kind.GAUGE, (), documentation, read)


METRICS: tuple[Metric, ...] = (
    _counter("requests", "Requests admitted to run; a preempted request that resumes counts again."),
    _counter("asked_tokens", "Prompt tokens whose KV was needed: hit plus missed."),
    _counter_by("source", Source, "hit_tokens", "Asked tokens whose KV was found, by where it was found."),
    _counter_by("reason", Miss, "miss_tokens", "Asked tokens whose KV had to be computed, by why it was not found."),
    _counter("offload_bytes", "Bytes copied from device to host, uncompressed."),
    _counter("onload_bytes", "Bytes copied from host to device, uncompressed."),
    _counter("spill_raw_bytes", "Bytes taken from host to disk, before compression."),
    _counter("spill_stored_bytes", "Bytes written to disk as frames."),
    _counter("promote_raw_bytes", "Bytes brought from disk to host, after decompression."),
    _counter("promote_stored_bytes", "Bytes read from disk as frames."),
    _counter("offloaded_chunks", "Chunks copied from device to host."),
    _counter("store_refused_chunks", "Chunks the engine offered that got no host slot."),
    _counter("spilled_chunks", "Chunks written to disk."),
    _counter("promoted_chunks", "Chunks brought from disk to host."),
    _counter("host_evicted_chunks", "Chunks evicted from host memory."),
    _counter("host_dropped_chunks", "Chunks evicted from host memory before they were on disk: in no tier afterwards."),
    _counter("disk_evicted_chunks", "Chunks evicted from disk."),
    _counter("held_back_chunks", "Chunks not admitted to disk when they were stored; used again, they may be."),
    _counter("over_budget_chunks", "Chunks not written to disk because the write budget was spent."),
    _counter("spill_failed_chunks", "Chunks not written to disk because it was full or failed."),
    _counter("corrupt_frames", "Frames that did not verify and were deleted."),
    _counter("foreign_frames", "Sound frames that belong to another key or namespace and were deleted."),
    _counter("load_errors", "Promotions or device loads that failed for other reasons."),
    _counter("tier_off", "Times a tier was switched off after errors."),
    _counter("helper_restarts", "Helper processes of the disk tier started after one had died."),
    _counter("gated_requests", "Requests that computed chunks which were on disk: faster than loading them."),
    _counter("probed_chunks", "Chunks promoted for no request, to measure the disk while the gate is shut."),
    _counter("gave_up_requests", "Requests that computed what had been promised, because it did not come in time."),
    _counter("engine_errors", "Exceptions stopped before they reached the engine; each is a bug or a broken machine."),
    _gauge("host_used_bytes", "Bytes of host memory that hold chunks."),
    _gauge("host_capacity_bytes", "Bytes of host memory that may hold chunks."),
    _gauge("disk_used_bytes", "Live bytes on disk, rounding included."),
    _gauge("disk_capacity_bytes", "Bytes the disk tier may take."),
    _gauge("disk_raw_bytes", "What the frames on disk of this namespace are uncompressed."),
    _gauge("disk_stored_bytes", "What the same frames take as stored."),
    _gauge("spill_backlog", "Chunks in host memory that are not on disk yet."),
    _gauge("promote_backlog", "Chunks on their way from disk to host."),
    _gauge("prefill_tokens_per_s", "Moving estimate of prefill speed in tokens a second; 0 until measured."),
    _gauge(
        "load_bytes_per_s", "Moving estimate of loading from disk to host memory, queueing included; 0 until known."
    ),
    _gauge("onload_bytes_per_s", "Moving estimate of copying from host memory to the device; 1e10 until measured."),
    _gauge(
        "load_pays_from_tokens",
        "Shortest prompt that is loaded from an idle disk; 0 until known, 1073741824 for none.",
    ),
    _gauge("disk_on", "1 while the disk tier is in use, 0 when it is off or was switched off."),
    _gauge("write_budget_bytes", "Bytes that may be written to disk now; 0 without a write budget."),
)
"""Every counter and gauge there is, in the order of Stats and Gauges."""
