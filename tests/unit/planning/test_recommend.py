"""The YAML that a plan writes: what was chosen, why, and loadable."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvtier.config import load
from kvtier.kvshape import KvShape
from kvtier.planning.choose import Prices, choose
from kvtier.planning.demand import Lengths, SharedPrefixes
from kvtier.planning.effect import Engine
from kvtier.planning.hardware import Hardware
from kvtier.planning.layout import KvLayout
from kvtier.planning.prefill import Prefill
from kvtier.planning.recommend import pool_bytes, to_yaml

GIB = 1 << 30
SHAPE = KvShape(kind="GQA", n_layers=32, n_heads=8, head_size=256, dtype="bfloat16")
LAYOUT = KvLayout(
    full=SHAPE, window=None, window_tokens=0, state=None, n_state_layers=0, n_own_heads=8, tensor_parallel=1
)
DEMAND = SharedPrefixes(2.0, Lengths(8000), 256, 3000, 6000, 0.8, 0.8)


def engine(**changed):
    hardware = {
        "device_cache_bytes": 20 * GIB,
        "ram_bytes": 256 * GIB,
        "disk_bytes": 4096 * GIB,
        "pcie_gbps": 51.0,
        "disk_read_gbps": 13.0,
        "disk_write_gbps": 6.0,
        "compression": 1.3,
        "open_gbps": 1.9,
        "promote_threads": 9,
        "step_s": 0.03,
    }
    return Engine(LAYOUT, Prefill.of_rates([(37_000, 8192), (27_000, 32768)], None), Hardware(**(hardware | changed)))


def written(tmp_path, used, choice, path=Path("/mnt/nvme/kvtier")):
    file = tmp_path / "kvtier.yaml"
    file.write_text(to_yaml(choice, used, path=path, mean_prompt=8000, heading="a model: a load"))
    return load(file), file.read_text()


def test_sizes_and_threads_are_those_of_the_plan(tmp_path):
    used = engine()
    choice = choose(used, DEMAND, Prices())
    config, text = written(tmp_path, used, choice)
    assert config.host.capacity.n_bytes == choice.host.n_bytes
    assert config.disk.capacity.n_bytes == choice.disk.n_bytes
    assert config.disk.promote_threads == 9
    assert choice.host.reason in text
    assert choice.disk.reason in text
    assert "32 layers x 8 KV heads x (128 K + 128 V) x 2 bytes (bfloat16) = 131,072 bytes a token" in text


def test_a_disk_that_does_not_pay_is_off_and_the_reason_stands_beside_it(tmp_path):
    used = engine(disk_read_gbps=1.0)
    choice = choose(used, DEMAND, Prices())
    config, text = written(tmp_path, used, choice)
    assert config.disk is None
    assert f"# do not buy: {choice.disk.reason}" in text


def test_a_disk_without_a_host_tier_gets_a_pool_to_pass_through(tmp_path):
    used = engine(ram_bytes=16 * GIB)
    choice = choose(used, DEMAND, Prices())
    assert (choice.host.pays, choice.disk.pays) == (False, True)
    config, text = written(tmp_path, used, choice)
    assert config.host.capacity.n_bytes == pool_bytes(choice, used, 8000)
    assert 8000 * SHAPE.bytes_per_token < config.host.capacity.n_bytes <= 16 * GIB
    assert "what comes from disk passes through it" in text


@pytest.mark.parametrize("name", ["/mnt/it's: a #place", "/mnt/nvme/kvtier"])
def test_any_path_survives_being_written(tmp_path, name):
    used = engine()
    config, _ = written(tmp_path, used, choose(used, DEMAND, Prices()), Path(name))
    assert config.disk.path == Path(name)
