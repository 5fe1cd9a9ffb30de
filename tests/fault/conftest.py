"""The rigs of most tests here."""

from collections.abc import Iterator

import pytest

from kvtier.store.memory import MemoryStore
from tests.rigs.helped import all_stopped
from tests.rigs.mover import FRAME_BYTES, Rig


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig(MemoryStore(2, 40 * FRAME_BYTES))
    yield rig
    rig.store.heal()
    assert rig.mover.stop()


@pytest.fixture
def stop_all(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with all_stopped(monkeypatch):
        yield
