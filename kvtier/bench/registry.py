"""Which benchmarks there are: name -> what it answers, and the module of this package that measures it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from types import MappingProxyType
from typing import Final, cast

from kvtier.bench.base import Conditions, Result

BENCHES: Final = MappingProxyType(
    {
        "codec": "compression: ratio and speed against plain zstd level 1, memcpy and the entropy of the bytes",
        "store": "frames on disk: write, read hot and cold, against O_DIRECT, a file per chunk and vLLM's disk tier",
        "promote": "a prefix from disk into host slots, cold and hot, against O_DIRECT and vLLM's disk tier",
        "spill": "host slots to disk without end: speed, CPU, what the scheduler loses; threads and a helper process",
        "scheduler": "steps of the engine's scheduler thread under full traffic, against idle and a helper process",
        "churn": "a full tier that replaces a frame for each it takes: speed kept, capacity kept, bytes written",
        "index": "a million chunks: seconds to open, bytes of memory each, milliseconds to look a prefix up",
    }
)


def load(name: str) -> Callable[[Conditions], Iterator[Result]]:
    """The benchmark `name`. Imported when it is asked for, because some of them import much."""
    return cast("Callable[[Conditions], Iterator[Result]]", import_module(f"kvtier.bench.{name}").run)
