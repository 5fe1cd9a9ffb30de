"""kvtier's numbers in vLLM: defined beforehand, over the wire, into Prometheus, kept out of the engine's log line."""

from types import SimpleNamespace

import pytest

pytest.importorskip("vllm")

from prometheus_client import REGISTRY, Counter, Gauge, Histogram
from vllm.config import KVTransferConfig
from vllm.distributed.kv_transfer.kv_connector.v1.offloading.metrics import OffloadingConnectorStats, OffloadPromMetrics
from vllm.v1.kv_offload.cpu.spec import CPUOffloadingSpec
from vllm.v1.kv_offload.factory import OffloadingSpecFactory
from vllm.v1.metrics.prometheus import unregister_vllm_metrics
from vllm.v1.metrics.stats import SchedulerStats
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

from kvtier.engines.vllm.metrics import build_definitions, to_connector_stats, without_ours
from kvtier.observe.stats import Gauges, Stats

INTERVAL = Stats(requests=2, asked_tokens=100, hit_tokens=[10, 20, 30], miss_tokens=[25, 15, 0, 0, 0, 0])
GAUGES = Gauges(1, 2, 3, 4, 5, 6, 7, 8, 9.5, 10.5, 11.5, 12, disk_on=True)


class SpecWithOurMetrics(CPUOffloadingSpec):
    """vLLM looks the definitions up on the spec class only; no instance is made."""

    @classmethod
    def build_metric_definitions(cls, extra_config):
        return {**super().build_metric_definitions(extra_config), **build_definitions()}


@pytest.fixture
def prometheus(monkeypatch):
    """Builds vLLM's exporter the way every engine start in this process does."""
    monkeypatch.setitem(OffloadingSpecFactory._registry, "SpecWithOurMetrics", lambda: SpecWithOurMetrics)
    config = KVTransferConfig(
        kv_connector="OffloadingConnector",
        kv_role="kv_both",
        kv_connector_extra_config={"spec_name": "SpecWithOurMetrics"},
    )

    def build() -> OffloadPromMetrics:
        unregister_vllm_metrics()
        kinds = {kind: kind for kind in (Counter, Gauge, Histogram)}
        return OffloadPromMetrics(SimpleNamespace(kv_transfer_config=config), kinds, ["engine"], {0: ["0"]})

    yield build
    unregister_vllm_metrics()


def over_the_wire(stats: OffloadingConnectorStats) -> dict:
    sent = MsgpackEncoder().encode(SchedulerStats(kv_connector_stats=stats.to_dict()))
    return MsgpackDecoder(SchedulerStats).decode(sent).kv_connector_stats


def test_every_emitted_name_is_defined_and_every_defined_name_is_emitted() -> None:
    emitted = to_connector_stats(INTERVAL, GAUGES).to_dict()["data"]
    assert emitted.keys() == build_definitions().keys()


def test_numbers_arrive_in_prometheus_as_counted(prometheus) -> None:
    prometheus().observe(over_the_wire(to_connector_stats(INTERVAL, GAUGES)))
    assert REGISTRY.get_sample_value("vllm:kvtier_asked_tokens_total", {"engine": "0"}) == 100
    assert REGISTRY.get_sample_value("vllm:kvtier_hit_tokens_total", {"engine": "0", "source": "disk"}) == 30
    assert REGISTRY.get_sample_value("vllm:kvtier_miss_tokens_total", {"engine": "0", "reason": "evicted"}) == 15
    assert REGISTRY.get_sample_value("vllm:kvtier_spill_backlog", {"engine": "0"}) == 7
    assert REGISTRY.get_sample_value("vllm:kvtier_disk_on", {"engine": "0"}) == 1


def test_counters_add_up_over_intervals_and_gauges_do_not(prometheus) -> None:
    exporter = prometheus()
    for _ in range(3):
        exporter.observe(over_the_wire(to_connector_stats(INTERVAL, GAUGES)))
    assert REGISTRY.get_sample_value("vllm:kvtier_requests_total", {"engine": "0"}) == 6
    assert REGISTRY.get_sample_value("vllm:kvtier_host_used_bytes", {"engine": "0"}) == 1


def test_series_exist_before_anything_was_counted(prometheus) -> None:
    prometheus().observe(over_the_wire(to_connector_stats(Stats(), GAUGES)))
    assert REGISTRY.get_sample_value("vllm:kvtier_hit_tokens_total", {"engine": "0", "source": "host"}) == 0


def test_second_engine_in_one_process_registers_again(prometheus) -> None:
    prometheus()
    prometheus().observe(over_the_wire(to_connector_stats(INTERVAL, GAUGES)))
    assert REGISTRY.get_sample_value("vllm:kvtier_requests_total", {"engine": "0"}) == 2


def test_intervals_aggregate_in_the_engine_before_they_are_sent() -> None:
    both = to_connector_stats(INTERVAL, GAUGES).aggregate(to_connector_stats(INTERVAL, GAUGES))
    assert both.to_dict()["data"]["vllm:kvtier_hit_tokens_total"] == {("device",): 20, ("host",): 40, ("disk",): 60}


def test_engine_log_line_shows_its_own_numbers_and_not_ours() -> None:
    stats = to_connector_stats(INTERVAL, GAUGES)
    stats.increase_counter("vllm:kv_offload_load_bytes", 5)
    payload = over_the_wire(stats)
    assert OffloadingConnectorStats(data=without_ours(payload)).reduce() == {"vllm:kv_offload_load_bytes": 5}
    assert "vllm:kvtier_requests_total" in payload["data"]
