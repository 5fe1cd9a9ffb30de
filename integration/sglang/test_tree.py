"""SGLang's own tree, controller and pools move KV through kvtier bit for bit, in every layout and for hybrid models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sglang_on_cpu
import torch
from sglang.srt.environ import envs

pytest.importorskip("sglang.test.kits.unified_radix_cache", reason="this SGLang ships no fixtures for its tree")

from integration.sglang.trees import MAMBA, MHA, MLA, SWA, Tree

Begin = Callable[..., Tree]

CASES = [
    ("mha", MHA, "page_first"), ("mha", MHA, "page_first_direct"), ("mha", MHA, "layer_first"),
    ("mha", MHA, "page_head"), ("swa", SWA, "page_first"), ("swa", SWA, "page_first_direct"),
    ("swa", SWA, "layer_first"), ("mamba", MAMBA, "page_first"), ("mamba", MAMBA, "page_first_direct"),
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def on_cpu() -> None:
    sglang_on_cpu.register()


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Begin]:
    open_trees: list[Tree] = []

    def start(cfg: Any = MHA, layout: str = "page_first", **extra: Any) -> Tree:
        while open_trees:
            open_trees.pop().close()
        open_trees.append(Tree(cfg, layout, tmp_path / "disk", **extra))
        return open_trees[-1]

    yield start
    while open_trees:
        open_trees.pop().close()


def tokens(n_pages: int, page_size: int) -> list[int]:
    return list(range(1, 1 + n_pages * page_size))


def equal(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(("name", "cfg", "layout"), CASES, ids=[f"{name}-{layout}" for name, _, layout in CASES])
@pytest.mark.parametrize("interface_v1", [1, 0])
def test_a_restart_loads_what_was_stored_bit_for_bit(
    begin: Begin, name: str, cfg: Any, layout: str, interface_v1: int
) -> None:
    asked = tokens(6, cfg.page_size)
    stored = begin(cfg, layout, interface_v1=interface_v1).store(asked)
    assert any(float(part.float().abs().sum()) > 0 for part in stored)
    n_loaded, state = begin(cfg, layout, interface_v1=interface_v1).load(asked)
    assert n_loaded == len(asked)
    assert equal(state, stored)


def test_another_memory_layout_finds_nothing(begin: Begin) -> None:
    asked = tokens(6, 16)
    begin(layout="page_first_direct").store(asked)
    assert begin(layout="page_first").load(asked) == (0, [])
    assert begin(layout="page_first_direct").load(asked)[0] == len(asked)


def tensor_parallel(rank: int, size: int) -> dict[str, int]:
    return {
        "tp_rank": rank, "tp_size": size, "attn_tp_rank": rank, "attn_tp_size": size, "moe_tp_rank": rank,
        "moe_tp_size": size,
    }  # fmt: skip


RANKS = {
    "tp": (tensor_parallel(0, 2), tensor_parallel(1, 2)),
    "pp": ({"pp_rank": 0, "pp_size": 2}, {"pp_rank": 1, "pp_size": 2}),
    "another number": (tensor_parallel(0, 1), tensor_parallel(0, 2)),
}


@pytest.mark.parametrize(("one", "other"), RANKS.values(), ids=RANKS.keys())
@pytest.mark.parametrize("cfg", [MHA, MLA], ids=["mha", "mla"])
def test_ranks_share_what_all_of_them_hold_and_nothing_else(begin: Begin, cfg: Any, one: Any, other: Any) -> None:
    asked = tokens(6, cfg.page_size)
    stored = begin(cfg, rank=one).store(asked)
    assert begin(cfg, rank=one).load(asked)[0] == len(asked)
    n_loaded, state = begin(cfg, rank=other).load(asked)
    if cfg is MLA and one == tensor_parallel(0, 2):
        assert n_loaded == len(asked)
        assert equal(state, stored)
    else:
        assert n_loaded == 0


def test_another_request_namespace_finds_nothing(begin: Begin) -> None:
    begin().store(tokens(6, 16))
    assert begin().load([token + 1 for token in tokens(6, 16)]) == (0, [])


def test_replaced_weights_find_nothing(begin: Begin) -> None:
    asked = tokens(6, 16)
    tree = begin()
    tree.store(asked)
    tree.backend.weights_changed()
    assert tree.backend.batch_exists(["ab" * 32]) == 0
    assert begin().load(asked) == (0, []), "the weights on disk may not be those of the start"


def test_clear_forgets_and_storing_goes_on(begin: Begin) -> None:
    asked = tokens(6, 16)
    tree = begin()
    tree.store(asked)
    tree.cache.cache_controller.clear_storage_backend()
    other = [token + 1000 for token in tokens(4, 16)]
    stored = tree.store(other)
    again = begin()
    assert again.load(asked) == (0, [])
    n_loaded, state = again.load(other)
    assert n_loaded == len(other)
    assert equal(state, stored)


def test_statistics_tell_once_what_was_moved(begin: Begin) -> None:
    asked = tokens(6, 16)
    begin().store(asked)
    tree = begin()
    tree.load(asked)
    stats = tree.backend.get_stats()
    assert stats.prefetch_pgs == [6]
    assert stats.prefetch_bandwidth[0] > 0
    assert tree.backend.get_stats() is None


def test_with_a_failing_backend_what_comes_is_right(begin: Begin) -> None:
    asked = tokens(8, 16)
    stored = begin().store(asked)
    lengths = set()
    with envs.SGLANG_TEST_HICACHE_BACKEND_RANDOM_FAILURE.override(0.5):
        for _ in range(12):
            n_loaded, state = begin().load(asked)
            lengths.add(n_loaded)
            assert equal(state, [part[:n_loaded] for part in stored] if n_loaded else [])
    assert lengths == {0, len(asked)}
