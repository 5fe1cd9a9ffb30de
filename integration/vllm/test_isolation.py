"""KV that another configuration made is never found: everything that shapes the bytes is in the key."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from integration.vllm.conftest import CHUNK, N_CHUNKS, TINY, TWO_WORKERS, prompts, tree
from integration.vllm.engine import Engine, wait_for_frames

pytestmark = pytest.mark.timeout(600)
QUESTION = prompts(1)[0]
FULL = N_CHUNKS * CHUNK


@pytest.fixture(scope="module")
def warm_disk(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A disk tier that holds QUESTION, written by a plain `Engine(tiny)`."""
    folder = tmp_path_factory.mktemp("warm")
    with Engine(tiny, folder / "log", kvtier=tree(folder / "disk"), **TINY) as engine:
        engine.generate([QUESTION])
        wait_for_frames(folder / "disk", N_CHUNKS)
    return folder / "disk"


@pytest.fixture
def disk(warm_disk: Path, tmp_path: Path) -> Path:
    """A private copy of it."""
    shutil.copytree(warm_disk, tmp_path / "disk")
    return tmp_path / "disk"


def cached(model: Path, disk: Path, log: Path, **kwargs: Any) -> int:
    with Engine(model, log, kvtier=kwargs.pop("kvtier", tree(disk)), **{**TINY, **kwargs}) as engine:
        return engine.generate([QUESTION])[0].cached


def test_the_same_configuration_hits(tiny: Path, disk: Path, tmp_path: Path) -> None:
    assert cached(tiny, disk, tmp_path / "log") == FULL


def test_the_same_weights_in_another_folder_hit_if_they_are_the_same_files(
    tiny: Path, disk: Path, tmp_path: Path
) -> None:
    """Only the model's name differs, and that is part of the namespace: cold, not wrong."""
    (tmp_path / "elsewhere").symlink_to(tiny)
    assert cached(tmp_path / "elsewhere", disk, tmp_path / "log") == 0


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"tensor_parallel_size": 2, "env": TWO_WORKERS}, id="tensor-parallel"),
        pytest.param({"dtype": "bfloat16"}, id="dtype"),
        pytest.param({"block_size": 64}, id="block-size"),
        pytest.param({"prefix_caching_hash_algo": "sha256_cbor"}, id="hash-algorithm"),
    ],
)
def test_another_shape_of_the_engine_gets_no_hit(
    tiny: Path, disk: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    assert cached(tiny, disk, tmp_path / "log", **change) == 0


def test_another_chunk_size_gets_no_hit(tiny: Path, disk: Path, tmp_path: Path) -> None:
    assert cached(tiny, disk, tmp_path / "log", kvtier=tree(disk, chunk={"tokens": 64})) == 0


def test_other_weights_under_the_same_path_get_no_hit(
    tiny: Path, tiny_retrained: Path, warm_disk: Path, disk: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny, model)
    assert cached(model, disk, tmp_path / "log") == 0  # another path than `tiny`: stores its own
    with Engine(model, tmp_path / "log", kvtier=tree(disk), **TINY) as engine:
        engine.generate([QUESTION])
        wait_for_frames(disk, 2 * N_CHUNKS)
    assert cached(model, disk, tmp_path / "log") == FULL
    for file in tiny_retrained.iterdir():
        shutil.copy(file, model / file.name)
    assert cached(model, disk, tmp_path / "log") == 0


def test_a_cache_salt_hits_only_itself(tiny: Path, tmp_path: Path) -> None:
    with Engine(tiny, tmp_path / "log", kvtier=tree(None), **TINY) as engine:
        answers = []
        for salt in (None, "a", "b", "a"):
            engine.drop_device_cache()
            answers.append(engine.generate([QUESTION], salt=salt)[0].cached)
    assert answers == [0, 0, 0, FULL]


def test_a_reset_that_may_mean_new_weights_hides_all_tiers_for_good(tiny: Path, disk: Path, tmp_path: Path) -> None:
    with Engine(tiny, tmp_path / "log", kvtier=tree(disk), **TINY) as engine:
        assert engine.generate([QUESTION])[0].cached == FULL
        engine.drop_device_cache(connector=True)
        assert engine.generate([QUESTION])[0].cached == 0
        engine.drop_device_cache()
        assert engine.generate([QUESTION])[0].cached == FULL  # stored again since
        engine.kill()
    assert cached(tiny, disk, tmp_path / "log") == 0


def test_an_adapter_retrained_under_its_old_name_and_path_gets_no_hit(
    tiny: Path, make_adapter: Callable[[int], Path], tmp_path: Path
) -> None:
    disk, adapter = tmp_path / "disk", tmp_path / "adapter"
    shutil.copytree(make_adapter(1), adapter)
    lora: dict[str, Any] = {"enable_lora": True, "max_lora_rank": 8}

    def ask() -> int:
        with Engine(tiny, tmp_path / "log", kvtier=tree(disk), **TINY, **lora) as engine:
            output = engine.generate([QUESTION], lora=adapter)[0]
            wait_for_frames(disk, N_CHUNKS)
            return output.cached

    assert ask() == 0
    assert ask() == FULL
    shutil.copy(make_adapter(2) / "adapter_model.safetensors", adapter)
    assert ask() == 0
