"""Imported by any Python process with this folder in PYTHONPATH: its reads from disk take as long as a file says."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kvtier.store.lmdb import LmdbStore


def _slowly(read: Callable[..., Any]) -> Callable[..., Any]:
    def slow(*arguments: Any) -> Any:
        time.sleep(float(Path(os.environ["KVTIER_TEST_READ_DELAY"]).read_text()))
        return read(*arguments)

    return slow


LmdbStore.read = _slowly(LmdbStore.read)  # type: ignore[method-assign]
LmdbStore.lend = _slowly(LmdbStore.lend)  # type: ignore[method-assign]
