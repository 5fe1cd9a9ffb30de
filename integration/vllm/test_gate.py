"""A disk slower than recomputing is left alone: the load gate on a real engine."""

import time
from pathlib import Path

import pytest

from integration.vllm.conftest import N_CHUNKS, Plain, tree
from integration.vllm.engine import Engine, wait_for_frames

pytestmark = pytest.mark.timeout(600)


def test_prompts_on_a_disk_slower_than_recomputing_are_recomputed(
    smollm: Path, plain_smollm: Plain, tmp_path: Path
) -> None:
    disk, delay = tmp_path / "disk", tmp_path / "delay"
    questions, answers = plain_smollm.prompts, [output.tokens for output in plain_smollm.cold]
    config = tree(disk, disk={"sync_every": "100ms", "load": "auto"})
    with Engine(smollm, tmp_path / "log", kvtier=config) as engine:
        cold_s = []
        for question in questions:
            began = time.monotonic()
            engine.generate([question])
            cold_s.append(time.monotonic() - began)
        wait_for_frames(disk, len(questions) * N_CHUNKS)
        engine.kill()
    delay.write_text("1.0")
    with Engine(smollm, tmp_path / "log", kvtier=config, env={"KVTIER_TEST_READ_DELAY": str(delay)}) as engine:
        for question in questions[:3]:  # it has to be seen to be slow
            engine.generate([question])
        engine.drop_device_cache()
        began = time.monotonic()
        refused = engine.generate([questions[3]])[0]
        took_s = time.monotonic() - began
        assert (refused.cached, refused.tokens) == (0, answers[3])
        assert took_s < 2 * max(cold_s), (took_s, cold_s)
