"""Imported by any Python process with this folder in PYTHONPATH: its reads from disk take as long as a file says."""

import os
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from kvtier.store.lmdb import LmdbStore
from kvtier.transfer import mover
from kvtier.types import ChunkKey

_read, _read_at_once = LmdbStore.read, mover.read_at_once


def _wait(n_frames: int) -> None:
    time.sleep(n_frames * float(Path(os.environ["KVTIER_TEST_READ_DELAY"]).read_text()))


def _read_slowly(self: LmdbStore, shard: int, key: ChunkKey) -> AbstractContextManager[memoryview | None]:
    _wait(1)
    return _read(self, shard, key)


def _read_slowly_at_once(wanted: Sequence[Any], *, yields: bool) -> list[bool]:
    _wait(len(wanted))
    return _read_at_once(wanted, yields=yields)


LmdbStore.read = _read_slowly  # type: ignore[method-assign]
mover.read_at_once = _read_slowly_at_once
