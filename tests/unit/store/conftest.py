"""A directory and an open store of two small shards in it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from kvtier.store.lmdb import LmdbStore
from tests.rigs.lmdb_store import open_store


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(folder: Path) -> Iterator[LmdbStore]:
    store = open_store(folder)
    yield store
    store.close()
