"""KV to measure with: captured from a model where there is a capture, else made up with stated properties.

A capture is a folder: `sample.json`, a list of `{"file", "dtype", "tokens_per_chunk", "chunk_bytes", "source"}`, and
the named files, each whole chunks one after the other. `make kv-sample` makes one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kvtier.bench.base import Conditions
from kvtier.errors import InputError

MANIFEST = "sample.json"
DEFAULT_SAMPLE = Path(".cache/kv-sample")

_SYNTHETIC_DISTINCT = 16
"""Made-up chunks that differ; more are these again."""


class KvData(NamedTuple):
    """Chunks of one dtype and size."""

    dtype: str
    tokens_per_chunk: int  # 0 when made up
    chunk_bytes: int
    chunks: list[memoryview]
    source: str  # where they come from, for people
    captured: bool


def kv_for(conditions: Conditions) -> KvData:
    """KV in chunks of `conditions.chunk_bytes` for benchmarks that move bytes: captured bf16 cut to size, or made up.

    At most `conditions.n_chunks` chunks, fewer when the capture is smaller: use them again. The notes say which it is.
    """
    captured = [data for data in captures(conditions.sample) if data.dtype == "bfloat16"]
    if captured:
        largest = max(captured, key=lambda data: data.chunk_bytes)
        whole = np.concatenate([np.frombuffer(chunk, dtype=np.uint8) for chunk in largest.chunks])
        n = min(conditions.n_chunks, len(whole) // conditions.chunk_bytes)
        if n:
            view = whole.data
            chunks = [view[i * conditions.chunk_bytes : (i + 1) * conditions.chunk_bytes] for i in range(n)]
            conditions.note(f"KV: {largest.source}, cut into chunks of {conditions.chunk_bytes} bytes")
            return largest._replace(chunk_bytes=conditions.chunk_bytes, tokens_per_chunk=0, chunks=chunks)
    made_up = synthetic(conditions.chunk_bytes, min(conditions.n_chunks, _SYNTHETIC_DISTINCT))
    conditions.note(f"KV: {made_up.source}")
    return made_up


def captures(folder: Path | None) -> list[KvData]:
    """Everything in a capture, one entry for each dtype and chunk size. InputError when it is not what it should be."""
    if folder is None:
        return []
    try:
        entries = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return [_captured(folder, entry) for entry in entries]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder}: no capture of KV ({error}); make one with `make kv-sample`") from error


def synthetic(chunk_bytes: int, n_chunks: int) -> KvData:
    """bf16 whose channels are normal, each with a spread of its own, as in KV."""
    rng = np.random.default_rng(1)
    n_values = chunk_bytes // 2
    spread = np.resize(np.exp(rng.normal(0, 0.6, 64)).astype(np.float32), n_values)
    chunks = []
    for _ in range(n_chunks):
        values: npt.NDArray[np.float32] = rng.standard_normal(n_values, dtype=np.float32) * spread
        raw = (values.view(np.uint32) >> 16).astype("<u2").tobytes()
        chunks.append(memoryview(raw.ljust(chunk_bytes, b"\0")))
    source = "made up: bf16, 64 channels, each normal with its own spread (log-normal, sigma 0.6)"
    return KvData("bfloat16", 0, chunk_bytes, chunks, source, captured=False)


def _captured(folder: Path, entry: dict[str, object]) -> KvData:
    dtype, chunk_bytes, source = str(entry["dtype"]), int(str(entry["chunk_bytes"])), str(entry["source"])
    data = memoryview((folder / str(entry["file"])).read_bytes())
    if chunk_bytes < 1 or not data or len(data) % chunk_bytes:
        raise ValueError(f"{entry['file']} is {len(data)} bytes, not whole chunks of {chunk_bytes}")
    chunks = [data[at : at + chunk_bytes] for at in range(0, len(data), chunk_bytes)]
    return KvData(dtype, int(str(entry["tokens_per_chunk"])), chunk_bytes, chunks, source, captured=True)
