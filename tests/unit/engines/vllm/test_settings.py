"""Engines whose workers could not share the host pool are refused with a remedy."""

import warnings
from types import SimpleNamespace
from typing import Any

import pytest

from kvtier.errors import ConfigError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("vllm.distributed.utils")
from kvtier.engines.vllm.settings import refuse_unfit

ONE_KIND = SimpleNamespace(kv_cache_groups=[object()])
TWO_KINDS = SimpleNamespace(kv_cache_groups=[object(), object()])


def engine(n_layers: int = 30, **parallel: Any) -> Any:
    shape = {
        "nnodes": 1,
        "world_size": 2,
        "distributed_executor_backend": "mp",
        "pipeline_parallel_size": 1,
        **parallel,
    }
    return SimpleNamespace(
        parallel_config=SimpleNamespace(**shape),
        model_config=SimpleNamespace(get_total_num_hidden_layers=lambda: n_layers),
    )


@pytest.mark.parametrize(
    "shape", [{}, {"pipeline_parallel_size": 2}, {"world_size": 1, "distributed_executor_backend": "ray"}]
)
def test_workers_that_share_one_pool_cut_the_same_way_are_fit(shape: dict[str, Any]) -> None:
    refuse_unfit(engine(**shape), ONE_KIND)


@pytest.mark.parametrize(
    "shape",
    [{"nnodes": 2}, {"distributed_executor_backend": "ray"}, {"distributed_executor_backend": "external_launcher"}],
)
def test_workers_that_may_not_share_memory_or_decisions_are_refused(shape: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="kvtier"):
        refuse_unfit(engine(**shape), ONE_KIND)


def test_pipeline_stages_of_unequal_length_are_refused() -> None:
    with pytest.raises(ConfigError, match="pipeline stages"):
        refuse_unfit(engine(n_layers=31, pipeline_parallel_size=2), ONE_KIND)


def test_pipeline_stages_of_a_hybrid_model_are_refused() -> None:
    with pytest.raises(ConfigError, match="pipeline stages"):
        refuse_unfit(engine(pipeline_parallel_size=2), TWO_KINDS)
