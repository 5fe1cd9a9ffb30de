"""The rig of most tests of the transfer threads."""

from collections.abc import Iterator

import pytest

from kvtier.store.memory import MemoryStore
from tests.rigs.mover import FRAME_BYTES, Rig


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig(MemoryStore(2, 40 * FRAME_BYTES))
    yield rig
    rig.store.heal()
    assert rig.mover.stop()
