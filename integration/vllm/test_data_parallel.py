"""Several engines of one server keep to the capacities together."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from integration.vllm.engine import ROOT

pytestmark = pytest.mark.timeout(120)

WHAT_AN_ENGINE_TAKES = """
import json, pickle, sys
from vllm import EngineArgs
from vllm.config import KVTransferConfig
from kvtier.engines.vllm import settings

transfer = KVTransferConfig(
    kv_connector="kvtier", kv_role="kv_both",
    kv_connector_extra_config={"kvtier": {"host": {"capacity": "64MiB"}, "disk": None}},
)
started_with = EngineArgs(
    model=sys.argv[1], data_parallel_size=2, skip_tokenizer_init=True, kv_transfer_config=transfer
).create_engine_config()
engine = pickle.loads(pickle.dumps(started_with))  # as it reaches the engine's process
engine.parallel_config.reconfigure_for_independent_dp_rank()
settings.settle(engine)
print(json.dumps(engine.kv_transfer_config.kv_connector_extra_config["cpu_bytes_to_use"]))
"""


def test_each_data_parallel_engine_of_a_dense_model_takes_its_share_of_the_host_capacity(tiny: Path) -> None:
    """Such an engine is told that it is the only one."""
    done = subprocess.run(
        [sys.executable, "-c", WHAT_AN_ENGINE_TAKES, str(tiny)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == 32 << 20
