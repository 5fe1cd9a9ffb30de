"""Clearing the device's cache under running requests: they find their own KV in kvtier, in the very next step."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from integration.vllm.conftest import TINY, prompts, tree
from integration.vllm.engine import ROOT

pytestmark = pytest.mark.timeout(120)

RESET_WHILE_IT_RUNS = """
import json, sys
from vllm import LLM, SamplingParams
from vllm.config import KVTransferConfig

call = json.loads(sys.argv[1])
transfer = KVTransferConfig(
    kv_connector="kvtier", kv_role="kv_both", kv_connector_extra_config={"kvtier": call["kvtier"]}
)
engine = LLM(**call["engine"], kv_transfer_config=transfer).llm_engine
params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
answers = []
for name, reset_after in (("undisturbed", None), ("disturbed", 6)):
    engine.add_request(name, {"prompt_token_ids": call["prompt"]}, params)
    n_steps = 0
    while engine.has_unfinished_requests():
        for output in engine.step():
            if output.finished:
                answers.append(list(output.outputs[0].token_ids))
        n_steps += 1
        if n_steps == reset_after:
            engine.reset_prefix_cache(reset_running_requests=True)
print("ANSWERS", json.dumps(answers))
"""


def test_a_running_request_survives_a_reset_of_the_device_cache(tiny: Path) -> None:
    call = {
        "prompt": prompts(1)[0], "kvtier": tree(None),
        "engine": {
            "model": str(tiny), "enforce_eager": True, "max_model_len": 1024, "block_size": 32,
            "num_gpu_blocks_override": 96, **TINY,
        },
    }  # fmt: skip
    env = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", RESET_WHILE_IT_RUNS, json.dumps(call)],
        cwd=ROOT, env=os.environ | env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    [answers] = [line for line in done.stdout.splitlines() if line.startswith("ANSWERS")]
    undisturbed, disturbed = json.loads(answers.removeprefix("ANSWERS"))
    assert disturbed == undisturbed
