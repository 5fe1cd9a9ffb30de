"""Engines whose bytes are moved by a helper process."""

import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kvtier.depot import SharedPool
from kvtier.helper import depot as depot_module
from kvtier.helper.depot import HelperDepot
from kvtier.helper.life import Life
from kvtier.keys import Namespace
from tests.rigs.built import BuiltEngine, until

CHUNK_BYTES = 16 << 10
N_SLOTS = 16


class Engine(BuiltEngine):
    """One start of an engine whose pool can be shared."""

    def __init__(
        self,
        folder: Path,
        *,
        disk: dict[str, object] | None = None,
        keys: dict[str, object] | None = None,
        model_on_processors: bool = True,  # a helper that runs when nothing else does may wait longer than a test
    ):
        settings = {"path": str(folder), "capacity": "32MiB", "write_behind_after": "0s", "load": "always"}
        self.fd = os.memfd_create("pool")
        os.ftruncate(self.fd, N_SLOTS * CHUNK_BYTES)
        super().__init__(
            {"disk": {**settings, **(disk or {})}, **(keys or {})},
            SharedPool(memoryview(mmap.mmap(self.fd, 0)), self.fd),
            CHUNK_BYTES,
            Namespace({"model": "m"}),
            model_on_processors=model_on_processors,
        )
        running.append(self)

    @property
    def depot(self) -> HelperDepot:
        return next(depot for depot in depots if depot._work is self.cache)

    @property
    def life(self) -> Life:
        return self.depot._the_life

    @property
    def is_back(self) -> bool:
        return self.cache.disk_readable and self.cache.disk_writable

    def settled(self) -> None:
        """Nothing is on its way, nothing is pinned, and the index is what the store holds."""
        until(lambda: self.is_back and not self.cache.n_dirty() and not self.cache._n_promoting)
        self.cache.check()
        assert not any(resident.pinned for resident in self.cache.host.residents())
        assert not self.depot._promotions
        assert not self.depot._spills

    def stop(self) -> None:
        super().stop()
        os.close(self.fd)


running: list[Engine] = []
depots: list[HelperDepot] = []


@contextmanager
def all_stopped(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """For the block of a test: pauses are short, and every engine has ended, with its helper, when it has."""
    start = HelperDepot.start

    def noted(depot: HelperDepot, *arguments: Any) -> None:
        depots.append(depot)
        start(depot, *arguments)

    monkeypatch.setattr(HelperDepot, "start", noted)
    monkeypatch.setattr(depot_module, "FIRST_PAUSE_S", 0.02)
    yield
    while running:
        running.pop().stop()
    while depots:
        assert not alive(depots.pop()._the_life.pid)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
