"""An SGLang rank as its storage backend sees it: host pools with real memory, page hashes, a storage configuration."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from kvtier.engines.sglang import compat
from kvtier.engines.sglang.backend import Backend

PAGE, LAYERS, HEADS, HEAD_SIZE = 4, 3, 2, 8


class HostPool:
    """K and V of every layer of `n_pages` pages, laid out as SGLang's pools of multi-head attention are."""

    def __init__(self, n_pages: int = 12, layout: str = "page_first", *, layers: int = LAYERS) -> None:
        self.layout, self.page_size, self.layer_num = layout, PAGE, layers
        self.head_num, self.head_dim, self.v_head_dim = HEADS, HEAD_SIZE, HEAD_SIZE
        self.start_layer, self.end_layer, self.dtype = 0, layers, torch.bfloat16
        n_rows = n_pages * PAGE
        shape = (2, n_rows, layers) if layout == "page_first" else (2, layers, n_rows)
        self.kv_buffer = torch.zeros((*shape, HEADS, HEAD_SIZE), dtype=torch.bfloat16)

    def rows(self, row: int) -> torch.Tensor:
        rows = slice(row, row + PAGE)
        return self.kv_buffer[:, rows] if self.layout == "page_first" else self.kv_buffer[:, :, rows]

    def fill(self, row: int, name: str) -> None:
        generator = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(name.encode()).digest()[:4]))
        page = self.rows(row)
        page.copy_(torch.randn(page.shape, generator=generator))

    def get_page_buffer_meta(self, indices: torch.Tensor) -> tuple[list[int], list[int]]:
        pages = [self.rows(int(row)) for row in indices[::PAGE]]
        by_layer = self.layout != "page_first"
        pieces = [
            piece for page in pages for side in (page[0], page[1]) for piece in (list(side) if by_layer else [side])
        ]
        assert all(piece.is_contiguous() for piece in pieces)
        return [piece.data_ptr() for piece in pieces], [piece.numel() * 2 for piece in pieces]

    def get_data_page(self, row: int, flat: bool = True) -> torch.Tensor:
        page = self.rows(row)
        return page.flatten() if flat else page

    def set_from_flat_data_page(self, row: int, page: torch.Tensor) -> None:
        self.rows(row).copy_(page.reshape(self.rows(row).shape))


class WholePagesOnly(HostPool):
    """A pool whose pages cannot be addressed piece by piece, as Mamba's with side states."""

    def get_page_buffer_meta(self, indices: torch.Tensor) -> tuple[list[int], list[int]]:
        raise NotImplementedError


class MHATokenToKVPoolHost(HostPool):
    """Named as SGLang names pools of separate heads."""


class Rank:
    """One rank's backend, with the pools it was given, for one start of a server."""

    def __init__(
        self,
        folder: Path,
        monkeypatch: Any,
        *,
        pools: Mapping[str, HostPool] | None = None,
        version: str = "0.5.23",
        settings: Mapping[str, object] | None = None,
        disk: Mapping[str, object] | None = None,
        extra: Mapping[str, object] | None = None,
        **storage: object,
    ) -> None:
        server = {"model_path": "m", "load_format": "dummy", "kv_cache_dtype": "auto", **(settings or {})}
        monkeypatch.setattr(compat, "installed", lambda: version)
        monkeypatch.setattr(compat, "Settings", lambda: _Settings(**server))
        self.pools = dict(pools or {"kv": HostPool()})
        yaml = {"host": {"capacity": "1MiB"}, "disk": {"path": str(folder), "capacity": "64MiB", **(disk or {})}}
        config = {
            "tp_rank": 0, "tp_size": 1, "pp_rank": 0, "pp_size": 1, "attn_cp_rank": 0, "attn_cp_size": 1,
            "is_mla_model": False, "enable_storage_metrics": False, "model_name": "m",
            "extra_config": {"backend_name": "kvtier", "interface_v1": 1, "kvtier": yaml} if extra is None else extra,
            **storage,
        }  # fmt: skip
        self.backend = Backend(SimpleNamespace(**config), {})
        self.backend.register_mem_pool_host(self.pools["kv"])
        for name, pool in self.pools.items():
            self.backend.register_mem_host_pool_v2(pool, name)

    def store(self, names: list[str]) -> list[bool]:
        """Fill the first pages of the pool with `names` and hand them over, then overwrite them."""
        for i, name in enumerate(names):
            self.pools["kv"].fill(i * PAGE, name)
        done = self.backend.batch_set_v1(hashes(names), indices(len(names)))
        self.pools["kv"].kv_buffer.zero_()
        return done

    def load(self, names: list[str]) -> list[str | None]:
        """What the pool's pages hold after loading: a name, or None where nothing came."""
        self.pools["kv"].kv_buffer.zero_()
        done = self.backend.batch_get_v1(hashes(names), indices(len(names)))
        assert len(done) == len(names)
        came = enumerate(zip(names, done, strict=True))
        return [name if done_one and self.holds(i, name) else None for i, (name, done_one) in came]

    def holds(self, i: int, name: str, pool: str = "kv") -> bool:
        like = type(self.pools[pool])(1, self.pools[pool].layout, layers=self.pools[pool].layer_num)
        like.fill(0, name)
        return torch.equal(self.pools[pool].rows(i * PAGE), like.rows(0))

    def settle(self) -> None:
        """Wait until all that was handed over is on disk."""
        opened = self.backend._open
        assert opened is not None
        while opened.cache.n_dirty():
            seen = opened.cache.n_changes
            if opened.cache.n_dirty():
                assert opened.cache.wait(seen, 20.0)


class _Settings(SimpleNamespace):
    def __getattr__(self, name: str) -> None:
        return None


def hashes(names: list[str]) -> list[str]:
    return [hashlib.sha256(name.encode()).hexdigest() for name in names]


def indices(n_pages: int) -> torch.Tensor:
    return torch.arange(n_pages * PAGE)


def transfer(name: str, names: list[str], n_pages: int | None = None) -> Any:
    return SimpleNamespace(name=name, keys=hashes(names), host_indices=indices(n_pages or len(names)))
