"""What cannot be told from the model's folder must not look the same after a restart."""

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    namespace = pytest.importorskip("kvtier.engines.vllm.namespace")


def engine(model: str, *, load_format: str = "auto", **more: Any) -> Any:
    fields = {"model": model, "revision": None, "seed": 0, "model_weights": "", **more}
    return SimpleNamespace(model_config=SimpleNamespace(**fields), load_config=SimpleNamespace(load_format=load_format))


@pytest.fixture
def folder(tmp_path: Path) -> str:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    return str(tmp_path)


def test_weights_in_a_folder_are_the_same_after_a_restart(folder: str) -> None:
    assert namespace._weights(engine(folder)) == namespace._weights(engine(folder))


def test_changed_model_code_is_another_model(folder: str) -> None:
    before = namespace._weights(engine(folder))
    (Path(folder) / "modeling_own.py").write_text("scale = 2")
    assert namespace._weights(engine(folder)) != before


@pytest.mark.parametrize("load_format", ["tensorizer", "ipc_cache", "modelexpress", "somebodys_plugin"])
def test_weights_that_come_from_elsewhere_than_the_folder_are_never_the_same_again(
    folder: str, load_format: str
) -> None:
    elsewhere = engine(folder, load_format=load_format)
    assert namespace._weights(elsewhere) != namespace._weights(elsewhere)


def test_weights_streamed_from_an_object_store_are_never_the_same_again(folder: str) -> None:
    streamed = engine(folder, load_format="runai_streamer", model_weights="s3://bucket/model")
    assert namespace._weights(streamed) != namespace._weights(streamed)


def test_a_name_that_the_hub_refuses_is_an_unknown_model_not_an_error() -> None:
    assert namespace._weights(engine("s3://bucket/model")).startswith("unknown ")


def test_the_longest_context_matters_to_models_with_two_sets_of_rotary_factors_only() -> None:
    long, plain = {"rope_parameters": {"rope_type": "longrope"}}, {"rope_parameters": {"rope_type": "default"}}
    short_context, long_context = SimpleNamespace(max_model_len=4096), SimpleNamespace(max_model_len=32768)
    assert namespace._positions(short_context, long) != namespace._positions(long_context, long)
    assert namespace._positions(short_context, plain) == namespace._positions(long_context, plain)


def test_an_adapter_whose_path_no_file_can_have_is_never_the_same_again() -> None:
    assert namespace.adapter_fingerprint("a\0b") != namespace.adapter_fingerprint("a\0b")
