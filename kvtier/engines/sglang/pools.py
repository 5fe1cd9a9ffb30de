"""SGLang's host pools: where the bytes of a page lie, and what tells its bytes from those of another pool."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

from kvtier.keys import adapter_digest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kvtier.codec.pieces import Segments

_LOG = logging.getLogger("sglang.kvtier")

KV = "kv"
_GEOMETRY = (
    "layout", "page_size", "logical_page_size", "layer_num", "start_layer", "end_layer", "head_num", "head_dim",
    "v_head_dim", "kv_lora_rank", "qk_rope_head_dim", "kv_cache_dim", "target_layer_num",
    "num_mamba_layers", "storage_format_tag", "dcp_size",
)  # fmt: skip


class HostPool:
    """One host pool of a rank, page by page. Indices are SGLang's: of every row of every page, page after page."""

    def __init__(self, pool: Any, name: str, rank: Mapping[str, Any]) -> None:
        """`rank` tells this rank's bytes from those of others; empty where all ranks hold the same."""
        import torch  # noqa: PLC0415 - there is one in every process that has such a pool

        self._pool = pool
        self._torch = torch
        self.page_rows = int(getattr(pool, "logical_page_size", None) or pool.page_size)
        first = torch.arange(self.page_rows)
        try:
            _, sizes = pool.get_page_buffer_meta(first)
            self._sizes = [int(size) for size in _per_segment(sizes, 1)]
        except (NotImplementedError, ValueError, AttributeError) as error:
            # A pool whose pages cannot be addressed piece by piece can be asked for whole ones: one copy more.
            _LOG.info("kvtier: pages of host pool %s are copied whole: %s", name, error)
            self._sizes = []
        whole = pool.get_data_page(0, flat=True) if not self._sizes else None
        self.page_bytes = sum(self._sizes) if whole is None else int(whole.numel() * whole.element_size())
        self.dtype = str(pool.dtype).removeprefix("torch.")
        shape = {field: str(getattr(pool, field, None)) for field in _GEOMETRY}
        shape |= {"class": type(pool).__name__, "dtype": self.dtype, "sizes": str(self._sizes)}
        self.geometry = json.dumps(shape | {"bytes": self.page_bytes}, sort_keys=True)
        """Everything of the pool that shapes a page."""
        self.kind = adapter_digest(json.dumps([name, self.geometry, dict(rank)], sort_keys=True).encode())
        """Stands in every key of this pool where others name an adapter."""
        self._flat: list[Any] = []

    def n_pages(self, host_indices: Any) -> int:
        """How many pages `host_indices` name; -1 if they name none whole."""
        n_rows = 0 if host_indices is None else int(host_indices.numel())
        return n_rows // self.page_rows if n_rows % self.page_rows == 0 else -1

    def sources(self, host_indices: Any) -> list[Segments]:
        """Where each page's bytes are. Valid until the next call."""
        if self._sizes:
            return self._in_place(host_indices)
        rows = host_indices[:: self.page_rows].tolist()
        self._flat = [self._pool.get_data_page(row, flat=True).contiguous() for row in rows]
        return [[(page.data_ptr(), self.page_bytes)] for page in self._flat]

    def targets(self, host_indices: Any) -> list[Segments]:
        """Where each page's bytes are to go; `landed` when they are there."""
        if self._sizes:
            return self._in_place(host_indices)
        n = self.n_pages(host_indices)
        self._flat = [self._torch.empty(self.page_bytes, dtype=self._torch.uint8) for _ in range(n)]
        return [[(page.data_ptr(), self.page_bytes)] for page in self._flat]

    def landed(self, host_indices: Any, n_pages: int) -> None:
        """The first `n_pages` of `targets` have been filled."""
        if self._sizes:
            return
        like = self._pool.get_data_page(0, flat=True)
        for row, page in zip(host_indices[:: self.page_rows].tolist()[:n_pages], self._flat, strict=False):
            self._pool.set_from_flat_data_page(row, page.view(like.dtype))

    def _in_place(self, host_indices: Any) -> list[Segments]:
        addresses, sizes = self._pool.get_page_buffer_meta(host_indices)
        each, n = len(self._sizes), self.n_pages(host_indices)
        sizes = _per_segment(sizes, n)
        if len(addresses) != n * each or sizes != self._sizes * n:
            raise ValueError(f"host pool describes {len(addresses)} pieces for {n} pages of {each}")
        pieces = list(zip(addresses, sizes, strict=True))
        return [pieces[i : i + each] for i in range(0, len(pieces), each)]


def _per_segment(sizes: Any, n_pages: int) -> list[int]:
    return list(sizes) if isinstance(sizes, (list, tuple)) else [int(sizes)] * n_pages
