"""Imported by any Python process with this folder in PYTHONPATH: its reads from disk take as long as a file says."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kvtier.store.lmdb import LmdbStore
from kvtier.transfer import mover
from kvtier.types import ChunkKey, FilePages


def _slowly(read: Callable[..., Any]) -> Callable[..., Any]:
    def slow(*arguments: Any, **named: Any) -> Any:
        time.sleep(float(Path(os.environ["KVTIER_TEST_READ_DELAY"]).read_text()))
        return read(*arguments, **named)

    return slow


LmdbStore.read = _slowly(LmdbStore.read)  # type: ignore[method-assign]
_lend = LmdbStore.lend


def _lend_as_if_not_cached(self: LmdbStore, shard: int, key: ChunkKey, use: Callable[[FilePages], bool]) -> bool:
    return _lend(self, shard, key, lambda pages: use(pages._replace(cached=False)))


LmdbStore.lend = _lend_as_if_not_cached  # type: ignore[method-assign]
mover.opened_at_once = _slowly(mover.opened_at_once)
