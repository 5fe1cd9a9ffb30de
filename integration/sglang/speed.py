"""GB/s of KV through SGLang's own batch functions into its `file` backend and into kvtier, and back."""

from __future__ import annotations

import os
import shutil
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import sglang_on_cpu
import torch
from sglang.test.kits.unified_radix_cache.config import CacheConfig

from integration.sglang.trees import MHA, Tree

N_PAGES, N_ROUNDS, PAGE = 128, 5, 16
SMOLLM = CacheConfig(
    page_size=PAGE, components=MHA.components, num_layers=30, head_num=3, head_dim=64, kv_size=4096,
    max_context_len=4096,
)  # fmt: skip


def measure_speed(out: Path) -> dict[str, dict[str, float]]:
    """Medians of rounds over pages of real KV that a run of `compare` with `file` left in `out`.

    Storing ends when everything is in files; loading into host pages is compared with what was stored, bit for bit.
    """
    sglang_on_cpu.register()
    files = sorted(out.glob("file-disk/*.bin"))[:N_PAGES]
    if not files:
        raise SystemExit(f"{out}: no pages there; run `compare file --out {out}` first")
    pages = [torch.frombuffer(bytearray(file.read_bytes()), dtype=torch.bfloat16) for file in files]
    n_bytes = sum(page.numel() * page.element_size() for page in pages)
    rounds: dict[str, list[tuple[float, float, float]]] = {"file": [], "kvtier": []}
    for _ in range(N_ROUNDS + 1):  # in turn, so that whatever else the machine does meets both
        rounds["file"].append(_round("file", out / "speed-file", pages))
        rounds["kvtier"].append(_round("dynamic", out / "speed-kvtier", pages))
    return {name: _median_rates(times[1:], n_bytes) for name, times in rounds.items()}


def _median_rates(times: list[tuple[float, float, float]], n_bytes: int) -> dict[str, float]:
    medians = (n_bytes / statistics.median(seconds) / 1e9 for seconds in zip(*times, strict=True))
    return dict(zip(("store", "load, page cache", "load, disk"), medians, strict=True))


def _round(storage: str, disk: Path, pages: list[torch.Tensor]) -> tuple[float, float, float]:
    shutil.rmtree(disk, ignore_errors=True)
    stored_s = _store(storage, disk, pages)
    warm_s = _load(storage, disk, pages)
    _drop_from_page_cache(disk)
    cold_s = _load(storage, disk, pages)
    shutil.rmtree(disk)
    return stored_s, warm_s, cold_s


def _store(storage: str, disk: Path, pages: list[torch.Tensor]) -> float:
    with _controller(storage, disk) as (tree, controller):
        for i, page in enumerate(pages):
            controller.storage_host_pool.set_from_flat_data_page(i * PAGE, page)
        began = time.perf_counter()
        assert controller.page_set_func(_keys(pages), torch.arange(len(pages) * PAGE))
        if storage == "dynamic":
            cache = tree.backend._open.cache
            while cache.n_dirty():
                cache.wait(cache.n_changes, 0.01)
        return time.perf_counter() - began


def _load(storage: str, disk: Path, pages: list[torch.Tensor]) -> float:
    operation = SimpleNamespace(is_terminated=lambda: False, request_id="speed")
    with _controller(storage, disk) as (_, controller):
        began = time.perf_counter()
        n = controller.page_get_func(operation, _keys(pages), torch.arange(len(pages) * PAGE))
        took = time.perf_counter() - began
        pool = controller.storage_host_pool
        assert n == len(pages)
        assert all(torch.equal(pool.get_data_page(i * PAGE), page) for i, page in enumerate(pages))
    return took


@contextmanager
def _controller(storage: str, disk: Path) -> Iterator[tuple[Tree, Any]]:
    tree = Tree(SMOLLM, "page_first", disk, storage=storage, buffer="64MiB")
    try:
        yield tree, tree.cache.cache_controller
    finally:
        tree.close()


def _drop_from_page_cache(disk: Path) -> None:
    os.sync()
    for file in disk.rglob("*"):
        if file.is_file():
            with file.open("rb") as opened:
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _keys(pages: list[torch.Tensor]) -> list[str]:
    return [f"{n:064x}" for n in range(len(pages))]
