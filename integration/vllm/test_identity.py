"""Output with kvtier equals output without it, whichever tier the prefix came from."""

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from integration.vllm.conftest import CHUNK, N_CHUNKS, TINY, TWO_WORKERS, Plain, prompts, tree
from integration.vllm.engine import Engine, Output, wait_for_frames
from integration.vllm.models import N_WINDOWED

FULL = N_CHUNKS * CHUNK
pytestmark = pytest.mark.timeout(600)


def ask(engine: Engine, questions: list[list[int]]) -> list[Output]:
    """One at a time, each with an empty device cache, so that every hit comes from kvtier."""
    answers = []
    for question in questions:
        engine.drop_device_cache()
        answers += engine.generate([question])
    return answers


def hit_tokens(engine: Engine, source: str) -> float:
    return engine.metrics().get(f"vllm:prompt_tokens_cached_by_source{{source={source}}}", 0.0)


def test_a_real_model_answers_the_same_from_host_then_from_disk_after_sigkill(
    smollm: Path, plain_smollm: Plain, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    questions = plain_smollm.prompts
    with Engine(smollm, tmp_path / "log", kvtier=tree(disk)) as engine:
        assert ask(engine, questions) == plain_smollm.cold
        assert ask(engine, questions) == plain_smollm.warm
        assert hit_tokens(engine, "host") == len(questions) * FULL
        wait_for_frames(disk, len(questions) * N_CHUNKS)
        engine.kill()
    with Engine(smollm, tmp_path / "log", kvtier=tree(disk)) as engine:
        assert ask(engine, questions) == plain_smollm.warm
        assert hit_tokens(engine, "disk") == len(questions) * FULL
        assert ask(engine, questions) == plain_smollm.warm
        assert hit_tokens(engine, "host") == len(questions) * FULL


def test_prompts_asked_at_once_get_the_answers_they_get_alone(tiny: Path, plain_tiny: Plain, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    questions = plain_tiny.prompts
    with Engine(tiny, tmp_path / "log", kvtier=tree(disk), num_gpu_blocks_override=160, **TINY) as engine:
        ask(engine, questions)
        wait_for_frames(disk, len(questions) * N_CHUNKS)
        engine.kill()
    with Engine(tiny, tmp_path / "log", kvtier=tree(disk), num_gpu_blocks_override=160, **TINY) as engine:
        at_once = engine.generate(questions + questions)
        assert [o.tokens for o in at_once] == [o.tokens for o in plain_tiny.warm * 2]
        assert all(o.cached >= FULL for o in at_once)


def test_what_is_loaded_under_pressure_is_bit_for_bit_what_the_device_once_held(tiny: Path, tmp_path: Path) -> None:
    """Host holds a third of the working set, disk two thirds; hits are partial, so KV bytes are compared, not text."""
    questions = prompts(12)
    chunk_bytes = 4 * 2 * 2 * 64 * 4 * CHUNK  # layers, K and V, heads, head size, fp32
    working_set = len(questions) * N_CHUNKS
    small = tree(
        tmp_path / "disk",
        host={"capacity": f"{working_set // 3 * chunk_bytes // 1024}KiB"},
        disk={"capacity": "16MiB"},
    )
    seen: set[str] = set()
    cached = 0
    rng = random.Random(5)
    with Engine(tiny, tmp_path / "log", kvtier=small, **TINY) as engine:
        for _ in range(40):
            question = questions[min(rng.randrange(12), rng.randrange(12))]
            engine.drop_device_cache()
            output = engine.generate([question], max_tokens=2)[0]
            held = set(engine.block_hashes()[0])
            # What is new on the device can only have been computed: what was loaded has been there before. (Plus one:
            # the blocks that nobody has used yet are all alike.)
            assert len(held - seen) <= -(-(output.prompt_tokens + 2 - output.cached) // 32) + 1
            seen.update(held)
            cached += output.cached
        assert engine.metrics()["vllm:kvtier_spilled_chunks"] > 0
        assert engine.metrics()["vllm:kvtier_engine_errors"] == 0
    assert cached > 0


def test_a_partial_hit_loads_the_bytes_that_were_stored(tiny: Path, tmp_path: Path) -> None:
    question = prompts(1)[0]
    other_end = question[: 3 * CHUNK] + prompts(1, seed=9)[0]
    with Engine(tiny, tmp_path / "log", kvtier=tree(None), **TINY) as engine:
        engine.generate([question])
        engine.drop_device_cache()
        output = engine.generate([other_end])[0]
        assert output.cached == 3 * CHUNK
        computed = engine.generate([other_end], salt="finds nothing")[0]
        assert computed.cached == 0
        assert output.tokens == computed.tokens


def test_generated_tokens_of_one_turn_are_reused_in_the_next(tiny: Path, tmp_path: Path) -> None:
    question = prompts(1, n_tokens=2 * CHUNK)[0]
    with Engine(tiny, tmp_path / "log", kvtier=tree(None), **TINY) as engine:
        answer = engine.generate([question], max_tokens=CHUNK + 8)[0]
        engine.generate([prompts(1, seed=3)[0]])  # the finished request's last chunk leaves with a later step
        engine.drop_device_cache()
        next_turn = [*question, *answer.tokens, *prompts(1, n_tokens=30, seed=4)[0]]
        assert engine.generate([next_turn])[0].cached == 3 * CHUNK


def test_generated_tokens_stay_out_when_told_to(tiny: Path, tmp_path: Path) -> None:
    question = prompts(1, n_tokens=2 * CHUNK)[0]
    config = {**tree(None), "offload": {"generated": False}}
    with Engine(tiny, tmp_path / "log", kvtier=config, **TINY) as engine:
        answer = engine.generate([question], max_tokens=CHUNK + 8)[0]
        engine.generate([prompts(1, seed=3)[0]])
        engine.drop_device_cache()
        next_turn = [*question, *answer.tokens, *prompts(1, n_tokens=30, seed=4)[0]]
        assert engine.generate([next_turn])[0].cached == 2 * CHUNK


def test_preempted_requests_answer_the_same(tiny: Path, plain_tiny: Plain, tmp_path: Path) -> None:
    """The device holds two prompts and a half; long answers for six at once force preemption."""
    with Engine(tiny, tmp_path / "plain", num_gpu_blocks_override=52, max_model_len=1024, **TINY) as engine:
        expected = [engine.generate([q], max_tokens=160)[0].tokens for q in plain_tiny.prompts]
    with Engine(
        tiny, tmp_path / "log", kvtier=tree(tmp_path / "disk"), num_gpu_blocks_override=52, max_model_len=1024, **TINY
    ) as engine:
        answers = engine.generate(plain_tiny.prompts, max_tokens=160)
        assert engine.metrics()["vllm:num_preemptions"] > 0
        assert engine.metrics()["vllm:kvtier_engine_errors"] == 0
    same = sum(a.tokens[:8] == e[:8] for a, e in zip(answers, expected, strict=True))
    assert same == len(expected)


def test_two_tensor_parallel_workers_share_the_pool(tiny: Path, tmp_path: Path) -> None:
    questions = prompts(3)
    disk = tmp_path / "disk"
    two: dict[str, Any] = {**TINY, "tensor_parallel_size": 2, "env": TWO_WORKERS}
    with Engine(tiny, tmp_path / "log", kvtier=tree(disk), **two) as engine:
        ask(engine, questions)
        warm = ask(engine, questions)
        assert all(o.cached == FULL for o in warm)
        wait_for_frames(disk, len(questions) * N_CHUNKS)
        engine.kill()
    with Engine(tiny, tmp_path / "log", kvtier=tree(disk), **two) as engine:
        assert ask(engine, questions) == warm
        assert hit_tokens(engine, "disk") == len(questions) * FULL


def test_a_model_with_sliding_windows_hits_from_host_and_after_a_restart_from_disk(
    sliding: Path, tmp_path: Path
) -> None:
    questions = prompts(2)
    disk = tmp_path / "disk"
    with Engine(sliding, tmp_path / "log", kvtier=tree(disk), num_gpu_blocks_override=640, **TINY) as engine:
        cold = ask(engine, questions)
        warm = ask(engine, questions)
        assert all(o.cached == FULL for o in warm)
        assert [o.tokens for o in warm] == [o.tokens for o in cold]
        wait_for_frames(disk, len(questions) * (N_CHUNKS + N_WINDOWED))  # of a window the last chunk only
        engine.kill()
    with Engine(sliding, tmp_path / "log", kvtier=tree(disk), num_gpu_blocks_override=640, **TINY) as engine:
        assert ask(engine, questions) == warm


@pytest.mark.parametrize("tokens", [32, 64, 256])
def test_chunks_of_one_or_several_blocks_hit_in_whole_chunks(tiny: Path, tmp_path: Path, tokens: int) -> None:
    question = prompts(1)[0]
    config = tree(tmp_path / "disk", chunk={"tokens": tokens})
    with Engine(tiny, tmp_path / "log", kvtier=config, **TINY) as engine:
        cold = engine.generate([question])[0]
        warm = ask(engine, [question])[0]
        assert warm.cached == len(question) // tokens * tokens
        assert warm.tokens == cold.tokens


def test_an_eight_bit_kv_cache_hits_after_a_restart(tiny: Path, tmp_path: Path) -> None:
    questions = prompts(2)
    disk = tmp_path / "disk"
    fp8: dict[str, Any] = {**TINY, "kv_cache_dtype": "fp8"}
    with Engine(tiny, tmp_path / "log", kvtier=tree(disk), **fp8) as engine:
        ask(engine, questions)
        warm = ask(engine, questions)
        assert [o.cached for o in warm] == [FULL, FULL]
        wait_for_frames(disk, len(questions) * N_CHUNKS)
        engine.kill()
    with Engine(tiny, tmp_path / "log", kvtier=tree(disk), **fp8) as engine:
        assert ask(engine, questions) == warm
        assert hit_tokens(engine, "disk") == len(questions) * FULL


def test_without_any_configuration_the_tiers_are_sized_from_the_machine(tiny: Path, tmp_path: Path) -> None:
    question = prompts(1)[0]
    env = {"XDG_CACHE_HOME": str(tmp_path)}
    with Engine(tiny, tmp_path / "log", kvtier={}, env=env, **TINY) as engine:
        engine.generate([question])
        assert ask(engine, [question])[0].cached >= len(question) // 256 * 256
        wait_for_frames(tmp_path / "kvtier", len(question) // 256)


def test_a_recorded_trace_replays_to_the_prefixes_that_were_asked(tiny: Path, tmp_path: Path) -> None:
    question = prompts(1)[0]
    trace = tmp_path / "trace.jsonl"
    with Engine(tiny, tmp_path / "log", kvtier={**tree(None), "trace": {"record": str(trace)}}, **TINY) as engine:
        engine.generate([question])
        engine.generate([question[: 3 * CHUNK] + prompts(1, seed=9)[0]])
        engine.generate([question])
    replay = [str(Path(sys.executable).parent / "kvtier"), "replay", str(trace), "--host", "100", "--json"]
    report = json.loads(subprocess.run(replay, capture_output=True, text=True, check=True).stdout)
    assert (report["requests"], report["tokens_per_block"]) == (3, CHUNK)
    assert max(row["hit_blocks"] for row in report["rows"]) == 3 + N_CHUNKS
    assert trace.stat().st_mode & 0o777 == 0o600
