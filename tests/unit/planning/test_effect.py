"""What tiers do: first tokens as they were measured, what is saved, what is written."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from kvtier.kvshape import KvShape
from kvtier.planning.demand import Outcome
from kvtier.planning.effect import Engine
from kvtier.planning.hardware import Hardware
from kvtier.planning.layout import KvLayout
from kvtier.planning.prefill import Prefill
from kvtier.store.lmdb import LIVE_SHARE

GIB = 1 << 30
LLAMA_8B = KvLayout(
    full=KvShape(kind="GQA", n_layers=32, n_heads=8, head_size=256, dtype="bfloat16"),
    window=None,
    window_tokens=0,
    state=None,
    n_state_layers=0,
    n_own_heads=8,
    tensor_parallel=1,
)
H200 = Hardware(
    device_cache_bytes=GIB,
    ram_bytes=64 * GIB,
    disk_bytes=1024 * GIB,
    pcie_gbps=51.0,
    disk_read_gbps=3.3,
    disk_write_gbps=2.2,
    compression=1.45,
    open_gbps=1.9,
    promote_threads=8,
    step_s=0.035,
)
MEASURED = Prefill.of_rates([(8192 / 0.218, 8192), (32768 / 1.216, 32768)], None)
ENGINE = Engine(LLAMA_8B, MEASURED, H200)


@dataclass(frozen=True)
class Given:
    """A demand with these outcomes, whatever the tiers."""

    found: tuple[Outcome, ...]
    requests_per_s: float = 2.0
    description: str = ""

    def outcomes(self, device, host, disk):
        return self.found


def first_token(*, n_tokens, host=0.0, disk=0.0, device=0.0, engine=ENGINE):
    return engine.ttft_s(Outcome(1.0, n_tokens, 0, device, host, disk))


@pytest.mark.parametrize(
    ("n_tokens", "measured"), [(2048, (0.033, 0.049)), (8192, (0.063, 0.076)), (32768, (0.136, 0.158))]
)
def test_a_hit_in_host_ram_takes_what_was_measured_on_an_h200(n_tokens, measured):
    low, high = measured
    assert 0.8 * low < first_token(n_tokens=n_tokens, host=n_tokens - 1) < 1.2 * high


def test_a_hit_on_disk_takes_what_the_drive_and_the_link_take_one_after_the_other():
    n_bytes = 32767 * 131072
    expected = n_bytes / (3.3e9 * 1.45) + n_bytes / 51e9 + 0.035
    assert first_token(n_tokens=32768, disk=32767) == pytest.approx(expected)


def test_too_few_threads_hold_the_disk_back():
    slow = Engine(LLAMA_8B, MEASURED, replace(H200, promote_threads=1))
    n_bytes = 32767 * 131072
    assert first_token(n_tokens=32768, disk=32767, engine=slow) == pytest.approx(
        n_bytes / 1.9e9 + n_bytes / 51e9 + 0.035
    )


def test_what_is_not_found_is_computed_behind_what_is():
    rest = MEASURED.seconds(8192, 4096)
    assert first_token(n_tokens=8192, device=4096) == pytest.approx(rest)


@pytest.mark.parametrize(("n_tokens", "gbps"), [(8192, 4.93), (32768, 3.53)])
def test_break_even_is_bytes_per_token_times_prefill_rate(n_tokens, gbps):
    assert ENGINE.break_even_gbps(n_tokens) == pytest.approx(gbps, abs=0.01)
    assert ENGINE.break_even_gbps(n_tokens) == pytest.approx(131072 * MEASURED.rate(n_tokens) / 1e9)


def test_at_break_even_loading_and_computing_take_the_same_time():
    link = replace(H200, pcie_gbps=ENGINE.break_even_gbps(8192), step_s=0.0)
    loaded = first_token(n_tokens=8192, host=8192, engine=Engine(LLAMA_8B, MEASURED, link))
    assert loaded == pytest.approx(MEASURED.seconds(8192))


def test_rates_of_hits_are_of_tokens_and_times_are_of_requests():
    demand = Given((Outcome(0.5, 1000, 0, 100, 200, 300), Outcome(0.5, 3000, 0, 0, 0, 0)))
    effect = ENGINE.effect(demand, GIB, GIB)
    assert effect.hit == pytest.approx({"device": 0.025, "host": 0.05, "disk": 0.075})
    assert {name: ttft.share for name, ttft in effect.ttft.items()} == {"disk": 0.5, "computed": 0.5, "all": 1.0}


def test_percentiles_are_weighted():
    slow, fast = Outcome(0.04, 32768, 0, 0, 0, 0), Outcome(0.96, 100, 0, 0, 0, 0)
    everything = ENGINE.effect(Given((slow, fast)), 0, 0).ttft["all"]
    assert (everything.p50_s, everything.p95_s) == (0.035, 0.035)
    assert everything.mean_s == pytest.approx(0.96 * 0.035 + 0.04 * MEASURED.seconds(32768))


def test_new_tokens_and_answers_are_written_compressed():
    effect = ENGINE.effect(Given((Outcome(1.0, 1000, 200, 100, 200, 300),)), GIB, GIB)
    assert effect.written_bytes_per_s == pytest.approx(2 * (1000 - 600 + 200) * 131072 / 1.45)
    assert effect.saved_tokens_per_s == 2 * 500
    assert effect.saved_prefill_s == pytest.approx(2 * (MEASURED.seconds(600) - MEASURED.seconds(100)))


def test_without_a_disk_nothing_is_written():
    assert ENGINE.effect(Given((Outcome(1.0, 1000, 200, 0, 0, 0),)), GIB, 0).written_bytes_per_s == 0


def test_a_disk_tier_holds_compressed_tokens_in_the_part_of_it_that_is_kept_full():
    assert ENGINE.disk_tokens(GIB) == pytest.approx(8192 * 1.45 * LIVE_SHARE)


def test_what_the_gpus_cannot_serve_is_neither_saved_nor_written():
    outcome = Outcome(1.0, 8192, 200, 0, 4096, 0)
    fits, busy = (ENGINE.effect(Given((outcome,), rate), GIB, GIB) for rate in (1.0, 1000.0))
    assert busy.prefill_busy == pytest.approx(1000 * fits.prefill_busy)
    assert busy.written_bytes_per_s == pytest.approx(fits.written_bytes_per_s / fits.prefill_busy)
    assert busy.saved_prefill_s == pytest.approx(fits.saved_prefill_s / fits.prefill_busy)
