"""A real SGLang server over kvtier: the answers are those without it, whatever happens to server or disk."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from integration.sglang.damage import flip_bits
from integration.sglang.server import PAGE, Answer, SglangServer
from integration.vllm.models import make_deepseek, make_llama
from kvtier.engines.sglang import plugin

N_TOKENS = 600
FULL = N_TOKENS // PAGE * PAGE
TINY = ["--dtype", "float32"]
"""32-bit: in bf16, prefill boundaries move greedy answers in plain SGLang too."""


def prompt(seed: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(10, 4096) for _ in range(N_TOKENS)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("models") / "tiny", seed=1)


@pytest.fixture(scope="module")
def retrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same architecture under other weights."""
    return make_llama(tmp_path_factory.mktemp("models") / "retrained", seed=2)


@pytest.fixture(scope="module")
def plain(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[int]]:
    """Answers of SGLang without a storage backend."""
    with SglangServer(model, tmp_path_factory.mktemp("plain") / "log", args=TINY) as server:
        answers = {seed: server.generate(prompt(seed)).tokens for seed in range(4)}
    assert len({tuple(tokens) for tokens in answers.values()}) == len(answers)
    return answers


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    return tmp_path / "disk"


@pytest.fixture
def yaml(tmp_path: Path, disk: Path) -> Path:
    file = tmp_path / "kvtier.yaml"
    file.write_text(f"disk: {{path: {disk}, capacity: 256MiB}}\nhost: {{capacity: 32MiB}}\nlog: {{every: 1s}}\n")
    return file


def short_form(yaml: Path) -> list[str]:
    return [*TINY, "--hicache-storage-backend", "kvtier", "--hicache-storage-backend-extra-config", f"@{yaml}"]


def long_form(yaml: Path) -> list[str]:
    extra = json.dumps({**plugin.LOADED_AS, "config": str(yaml)})
    return [*TINY, "--hicache-storage-backend", "dynamic", "--hicache-storage-backend-extra-config", extra]


def stored(server: SglangServer, n_pages: int, n_frames: int = 1) -> None:
    server.wait_for_metric("kvtier_spilled_chunks_total", n_pages * n_frames)


def test_restart_kill_flush_detach_attach_clear_and_new_weights(
    model: Path, retrained: Path, plain: dict[int, list[int]], yaml: Path, tmp_path: Path
) -> None:
    first = tmp_path / "first.log"
    with SglangServer(model, first, args=short_form(yaml)) as server:
        for seed in (0, 1):
            assert server.generate(prompt(seed)).tokens == plain[seed]
        stored(server, 2 * FULL // PAGE)
        server.flush()
        again = server.generate(prompt(0))
        assert again.tokens == plain[0]
        assert again.cached == {"device": 0, "host": 0, "storage": FULL}
        server.kill()
    assert "asked" in first.read_text(errors="replace"), "the hit-rate line"

    with SglangServer(model, tmp_path / "second.log", args=long_form(yaml)) as server:
        for seed in (0, 1):
            answer = server.generate(prompt(seed))
            assert (answer.tokens, answer.cached["storage"]) == (plain[seed], FULL)
        server.wait_for_metric("kvtier_hit_tokens_total", 2 * FULL, source="disk")

        server.detach()
        server.flush()
        assert server.generate(prompt(0))[:2] == Answer(plain[0], {"device": 0, "host": 0, "storage": 0}, 0)[:2]
        server.attach(json.dumps({**plugin.LOADED_AS, "config": str(yaml)}))
        server.flush()
        assert server.generate(prompt(0))[:2] == Answer(plain[0], {"device": 0, "host": 0, "storage": FULL}, 0)[:2]

        server.generate(prompt(2), cache_salt="tenant a")
        server.flush()
        assert server.generate(prompt(2), cache_salt="tenant b").cached["storage"] == 0
        server.flush()
        assert server.generate(prompt(2), cache_salt="tenant a").cached["storage"] == FULL

        server.clear()
        server.flush()
        assert server.generate(prompt(0))[:2] == Answer(plain[0], {"device": 0, "host": 0, "storage": 0}, 0)[:2]
        server.flush()
        assert server.generate(prompt(0)).cached["storage"] == FULL

        server.call("POST", "/update_weights_from_disk", {"model_path": str(retrained)})
        replaced = server.generate(prompt(0))
        assert replaced.cached["storage"] == 0
        assert replaced.tokens != plain[0]
        server.stop()


def test_damage_and_another_layout_are_misses(
    model: Path, plain: dict[int, list[int]], yaml: Path, disk: Path, tmp_path: Path
) -> None:
    with SglangServer(model, tmp_path / "first.log", args=short_form(yaml)) as server:
        for seed in (0, 1):
            server.generate(prompt(seed))
        stored(server, 2 * FULL // PAGE)
        server.detach()
        assert flip_bits(disk) >= 2 * FULL // PAGE
        server.attach(json.dumps({**plugin.LOADED_AS, "config": str(yaml)}))
        server.flush()
        damaged = server.generate(prompt(0))
        assert damaged.tokens == plain[0]
        assert damaged.cached["storage"] == 0
        server.wait_for_metric("kvtier_corrupt_frames_total", 1)
        stored(server, 3 * FULL // PAGE)
        server.flush()
        assert server.generate(prompt(0)).cached["storage"] == FULL, "what was damaged has been stored anew"
        server.flush()
        server.kill()

    with SglangServer(model, tmp_path / "second.log", layout="page_first_direct", args=short_form(yaml)) as server:
        for seed in (0, 3):
            answer = server.generate(prompt(seed))
            assert (answer.tokens, answer.cached["storage"]) == (plain[seed], 0), "what another layout wrote"
        server.wait_for_metric("kvtier_miss_tokens_total", FULL, reason="foreign")


def test_no_answer_changes_when_calls_fail_at_random(
    model: Path, plain: dict[int, list[int]], yaml: Path, tmp_path: Path
) -> None:
    injector = {"SGLANG_TEST_HICACHE_BACKEND_RANDOM_FAILURE": "0.3"}
    with SglangServer(model, tmp_path / "log", args=short_form(yaml), env=injector) as server:
        hits = set()
        for _ in range(12):
            for seed in (0, 3):
                answer = server.generate(prompt(seed))
                assert answer.tokens == plain[seed]
                hits.add(answer.cached["storage"])
            server.flush()
    assert hits == {0, FULL}


def llama_in_stages(folder: Path) -> Path:
    """SGLang leaves tied embeddings out of the last stage."""
    return make_llama(folder, seed=1, tied=False)


PARALLEL = {
    "two tensor parallel ranks": (partial(make_llama, seed=1), ["--tp-size", "2"], 2),
    "two pipeline stages": (llama_in_stages, ["--pp-size", "2"], 2),
    "latent attention on two ranks": (partial(make_deepseek, seed=1), ["--tp-size", "2"], 1),
}


@pytest.mark.parametrize(("make", "args", "n_frames"), PARALLEL.values(), ids=PARALLEL.keys())
def test_every_rank_finds_its_part_after_a_kill(
    make: Callable[[Path], Path], args: list[str], n_frames: int, yaml: Path, tmp_path: Path
) -> None:
    """`n_frames` are stored for each page, by all ranks together."""
    model = make(tmp_path / "model")
    options = [*short_form(yaml), *args]
    env = {"SGLANG_CPU_OMP_THREADS_BIND": "0|1"}
    with SglangServer(model, tmp_path / "first.log", args=options, env=env) as server:
        answers = {seed: server.generate(prompt(seed)).tokens for seed in (0, 1)}
        stored(server, 2 * FULL // PAGE, n_frames)
        server.kill()
    with SglangServer(model, tmp_path / "second.log", args=options, env=env) as server:
        for seed in (0, 1):
            answer = server.generate(prompt(seed))
            assert (answer.tokens, answer.cached["storage"]) == (answers[seed], FULL)
        assert answers[0] != answers[1]
