"""Imported by any Python process with this folder in PYTHONPATH: its reads from disk take as long as a file says."""

import os
import time
from pathlib import Path
from typing import Any

from kvtier.store.lmdb import LmdbStore

_read = LmdbStore.read


def _slow(self: LmdbStore, shard: int, key: Any) -> Any:
    time.sleep(float(Path(os.environ["KVTIER_TEST_READ_DELAY"]).read_text()))
    return _read(self, shard, key)


LmdbStore.read = _slow  # type: ignore[method-assign]
