"""The load gate on a real engine: what it decides on a throttled disk, and on one that becomes slow and recovers.

Decisions and counts, no times: `python -m tools.gate_bench` measures.
"""

import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from integration.vllm.conftest import CHUNK, N_CHUNKS, Plain, prompts, tree
from integration.vllm.engine import Engine, wait_for_frames
from kvtier.policy.gate import PROBE_EVERY_S

pytestmark = pytest.mark.timeout(600)

FULL = N_CHUNKS * CHUNK
SLOW_S = "2.0"
"""Before each read: a prompt takes longer to load than to compute, whatever else this machine is doing."""


def cached(engine: Engine, questions: Sequence[Sequence[int]]) -> list[int]:
    """Tokens of each question that came from a tier below the device."""
    found = []
    for question in questions:
        engine.drop_device_cache()
        found.append(engine.generate([question])[0].cached)
    return found


def fresh(engine: Engine, metric: str, at_least: float = 1.0) -> dict[str, float]:
    """The metrics once `metric` is as large; they are exported at steps, so there has to be some traffic."""
    give_up_s = time.monotonic() + 60
    while (metrics := engine.metrics()).get(metric, 0.0) < at_least:
        assert time.monotonic() < give_up_s, (metric, metrics.get(metric))
        engine.generate(prompts(1, n_tokens=CHUNK // 2, seed=9))
    return metrics


def test_prompts_on_a_disk_slower_than_recomputing_are_recomputed_from_the_first_one_on(
    smollm: Path, plain_smollm: Plain, tmp_path: Path
) -> None:
    """Scenario: the disk is slow when the engine starts. A probe finds out, and no request has to."""
    disk, delay = tmp_path / "disk", tmp_path / "delay"
    questions, answers = plain_smollm.prompts, [output.tokens for output in plain_smollm.cold]
    config = tree(disk, disk={"sync_every": "100ms", "load": "auto"})
    with Engine(smollm, tmp_path / "log", kvtier=config) as engine:
        engine.generate(questions)
        wait_for_frames(disk, len(questions) * N_CHUNKS)
        engine.kill()
    delay.write_text(SLOW_S)
    with Engine(smollm, tmp_path / "log", kvtier=config, env={"KVTIER_TEST_READ_DELAY": str(delay)}) as engine:
        fresh(engine, "vllm:kvtier_load_bytes_per_s")
        outputs = [engine.generate([question])[0] for question in questions]
        assert [(output.cached, output.tokens) for output in outputs] == [(0, answer) for answer in answers]
        metrics = fresh(engine, "vllm:kvtier_gated_requests", len(questions))
        assert metrics["vllm:kvtier_gated_requests"] == len(questions)
        assert metrics["vllm:kvtier_gave_up_requests"] == 0
        assert metrics["vllm:kvtier_load_pays_from_tokens"] > FULL


def test_the_gate_follows_a_disk_that_becomes_slow_and_recovers(smollm: Path, tmp_path: Path) -> None:
    disk, delay = tmp_path / "disk", tmp_path / "delay"
    delay.write_text("0")
    questions = prompts(8, vocabulary=40000, seed=3)  # more than the host tier holds
    config = tree(disk, disk={"sync_every": "100ms", "load": "auto"})
    with Engine(smollm, tmp_path / "log", kvtier=config, env={"KVTIER_TEST_READ_DELAY": str(delay)}) as engine:
        cached(engine, questions)
        wait_for_frames(disk, len(questions) * N_CHUNKS)
        assert cached(engine, questions) == [FULL] * len(questions)
        delay.write_text(SLOW_S)
        cached(engine, questions)  # one of them finds out
        slow = cached(engine, questions)
        assert slow.count(FULL) <= 5  # what host RAM still had; it has room for four and a half
        assert fresh(engine, "vllm:kvtier_gave_up_requests")["vllm:kvtier_gave_up_requests"] == 1
        delay.write_text("0")
        give_up_s = time.monotonic() + 2 * PROBE_EVERY_S + 60
        while cached(engine, questions) != [FULL] * len(questions):
            assert time.monotonic() < give_up_s, "the gate did not open again"
        assert engine.metrics()["vllm:kvtier_probed_chunks"] >= 1
