"""Which tiers pay, how large, and every reason not to buy."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kvtier.kvshape import KvShape
from kvtier.planning.choose import Prices, choose, life_years
from kvtier.planning.demand import Lengths, SharedPrefixes
from kvtier.planning.effect import YEAR_S, Engine
from kvtier.planning.hardware import Hardware
from kvtier.planning.layout import KvLayout
from kvtier.planning.prefill import Prefill

GIB, TB = 1 << 30, 10**12
LAYOUT = KvLayout(
    full=KvShape(kind="GQA", n_layers=32, n_heads=8, head_size=256, dtype="bfloat16"),
    window=None,
    window_tokens=0,
    state=None,
    n_state_layers=0,
    n_own_heads=8,
    tensor_parallel=1,
)
PREFILL = Prefill.of_rates([(8192 / 0.218, 8192), (32768 / 1.216, 32768)], None)
HARDWARE = Hardware(
    device_cache_bytes=20 * GIB,
    ram_bytes=256 * GIB,
    disk_bytes=4096 * GIB,
    pcie_gbps=51.0,
    disk_read_gbps=13.0,
    disk_write_gbps=6.0,
    compression=1.3,
    open_gbps=1.9,
    promote_threads=9,
    step_s=0.03,
)
DEMAND = SharedPrefixes(2.0, Lengths(8000), 256, 3000, 6000, 0.8, 0.8)


def plan(prices=None, demand=DEMAND, tbw=None, **hardware):
    return choose(Engine(LAYOUT, PREFILL, replace(HARDWARE, **hardware)), demand, prices or Prices(), tbw)


def test_both_tiers_pay_where_much_comes_again_and_loading_is_fast():
    choice = plan()
    assert choice.host.pays
    assert choice.disk.pays
    assert choice.chosen.ttft["all"].mean_s < choice.without.ttft["all"].mean_s
    assert sum(choice.chosen.hit.values()) == pytest.approx(
        sum(choice.without.hit.values()) + choice.host.gain + choice.disk.gain
    )


def test_without_prices_a_tier_is_no_larger_than_it_has_to_be():
    few = replace(DEMAND, n_prefixes=50)
    assert plan(demand=few).host.n_bytes < HARDWARE.ram_bytes


@pytest.mark.parametrize(
    ("change", "tier", "why"),
    [
        ({"demand": replace(DEMAND, reuse=0.0)}, "host", "0.0 points of hit rate at most"),
        ({"demand": replace(DEMAND, n_prefixes=2, zipf=0.0)}, "disk", "there already, or new"),
        ({"ram_bytes": 20 * GIB}, "host", "20 GiB is no larger than the device cache (20 GiB)"),
        ({"ram_bytes": 0}, "host", "no RAM was offered (--ram)"),
        ({"ram_bytes": 0}, "disk", "passes through host RAM"),
        ({"disk_bytes": 0}, "disk", "no disk was offered (--disk)"),
        ({"disk_read_gbps": 1.0}, "disk", "loading is slower than computing: the mean time to first token would grow"),
        ({"pcie_gbps": 2.0}, "host", "loading is slower than computing"),
        ({"disk_write_gbps": 0.1}, "disk", "the drive writes 0.1: most would be dropped"),
        ({"tbw": 7000 * TB}, "disk", "the drive would be worn out in"),
        ({"prices": Prices(gpu_hour=2, ram_gib=1000)}, "host", "at no size does it save what it costs: 256 GiB cost"),
        ({"prices": Prices(gpu_hour=2, disk_tb=50000)}, "disk", "at no size does it save what it costs: 4 TiB cost"),
    ],
)
def test_a_tier_that_does_not_pay_is_not_bought_and_the_reason_is_said(change, tier, why):
    choice = plan(**change)
    verdict = getattr(choice, tier)
    assert not verdict.pays
    assert why in verdict.reason
    assert choice.chosen.hit[tier] == 0


def test_dearer_ram_makes_a_smaller_host_tier():
    cheap, dear = (plan(Prices(gpu_hour=3, ram_gib=price)).host for price in (0.01, 15.0))
    assert cheap.n_bytes > dear.n_bytes > 0


def test_the_size_chosen_by_price_is_the_one_that_gains_most():
    prices = Prices(gpu_hour=3, ram_gib=15.0)
    engine = Engine(LAYOUT, PREFILL, HARDWARE)

    def profit(n_bytes):
        return engine.effect(DEMAND, n_bytes, 0).saved_prefill_s * 3 - prices.tier_per_hour(n_bytes, 0)

    chosen = plan(prices).host.n_bytes
    assert all(profit(chosen) >= profit(size * GIB) - 1e-3 for size in range(32, 257, 16))


def test_a_drive_that_lasts_less_than_its_usual_guarantee_is_warned_of():
    worn = plan(tbw=60_000 * TB).disk
    assert worn.pays
    assert 1 < worn.years < 5
    assert f"the drive lasts {worn.years:.1f} years" in worn.warnings[0]
    assert plan(tbw=600_000 * TB).disk.warnings == ()


def test_life_is_tbw_by_what_is_written_in_the_hours_of_a_day():
    per_year = 1e6 * YEAR_S
    assert life_years(1e6, 3 * per_year, 24) == pytest.approx(3)
    assert life_years(1e6, 3 * per_year, 8) == pytest.approx(9)
    assert life_years(0.0, 1.0, 24) == float("inf")


def test_a_tier_costs_its_price_spread_over_the_hours_of_its_life():
    prices = Prices(ram_gib=5, disk_tb=100, years=2, hours_per_day=12)
    assert prices.tier_per_hour(10 * GIB, 3 * TB) == pytest.approx((50 + 300) / (2 * 365.25 * 12))


def test_a_drive_that_is_worn_out_early_costs_its_price_in_that_time():
    prices = Prices(disk_tb=100, years=4)
    assert prices.tier_per_hour(0, TB, 1.0) == pytest.approx(4 * prices.tier_per_hour(0, TB))
    assert prices.tier_per_hour(0, TB, 9.0) == prices.tier_per_hour(0, TB)
