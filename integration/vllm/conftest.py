"""Models, prompts and the outputs of plain vLLM, shared by the real-engine tests."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from integration.vllm.engine import Engine, Output
from integration.vllm.models import make_llama, make_lora, make_sliding
from tools.make_model import ensure_model

CHUNK = 128
N_CHUNKS = 5
TAIL = 20
"""Tokens after the last full chunk: a full hit leaves exactly these to compute, as a device hit does."""

TINY: dict[str, Any] = {"skip_tokenizer_init": True, "dtype": "float32"}
"""32-bit: in bf16, batching and prefill boundaries move greedy answers in plain vLLM too."""

TWO_WORKERS = {"VLLM_CPU_OMP_THREADS_BIND": "0|1"}
"""vLLM binds a worker to a NUMA node unless told which cores each gets."""


@pytest.fixture(scope="session")
def smollm() -> Path:
    """The demo model: real weights, real text."""
    return ensure_model(quiet=True)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("models") / "tiny", seed=1)


@pytest.fixture(scope="session")
def tiny_retrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same architecture under other weights."""
    return make_llama(tmp_path_factory.mktemp("models") / "retrained", seed=2)


@pytest.fixture(scope="session")
def sliding(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sliding(tmp_path_factory.mktemp("models") / "sliding", seed=1)


@pytest.fixture(scope="session")
def make_adapter(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    return lambda seed: make_lora(tmp_path_factory.mktemp("adapters") / str(seed), seed=seed)


def prompts(
    n: int, *, n_tokens: int = N_CHUNKS * CHUNK + TAIL, vocabulary: int = 4096, seed: int = 0
) -> list[list[int]]:
    """Token prompts that share nothing, the same in every process."""
    rng = random.Random(seed)
    return [[rng.randrange(10, vocabulary) for _ in range(n_tokens)] for _ in range(n)]


def tree(folder: Path | None, **changes: Any) -> dict[str, Any]:
    """A kvtier configuration for tests: 128-token chunks, quick write-behind, no log line unless asked for."""
    config: dict[str, Any] = {
        "host": {"capacity": "64MiB"},
        "disk": None
        if folder is None
        else {
            "path": str(folder),
            "capacity": "128MiB",
            "write_behind_after": "100ms",
            "load": "always",  # what is counted must not depend on how fast this machine is today
        },
        "chunk": {"tokens": CHUNK},
        "log": {"every": "1s"},
    }
    for section, values in changes.items():
        config[section] = values if values is None else {**(config.get(section) or {}), **values}
    return config


@dataclass(frozen=True)
class Plain:
    """What vLLM without kvtier answers: computed from nothing, and over its own device hit of the same prompt."""

    prompts: list[list[int]]
    cold: list[Output]
    warm: list[Output]


@pytest.fixture(scope="session")
def plain_smollm(smollm: Path, tmp_path_factory: pytest.TempPathFactory) -> Plain:
    return plain_answers(smollm, tmp_path_factory.mktemp("plain"), prompts(4, vocabulary=40000))


@pytest.fixture(scope="session")
def plain_tiny(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Plain:
    return plain_answers(tiny, tmp_path_factory.mktemp("plain"), prompts(6), **TINY)


def plain_answers(model: Path, folder: Path, questions: list[list[int]], **kwargs: Any) -> Plain:
    """Ask plain vLLM each question twice, one at a time."""
    with Engine(model, folder / "log", **kwargs) as engine:
        cold = [engine.generate([q])[0] for q in questions]
        engine.drop_device_cache()
        warm = []
        for question in questions:
            engine.generate([question])
            warm += engine.generate([question])
    assert all(output.cached >= N_CHUNKS * CHUNK for output in warm)
    return Plain(questions, cold, warm)
