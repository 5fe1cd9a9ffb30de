"""Every store keeps the Store contract."""

from pathlib import Path

from kvtier.store.base import Store
from kvtier.store.lmdb import LmdbStore
from kvtier.store.memory import MemoryStore
from kvtier.testing.contracts import StoreContract
from kvtier.testing.faults import FaultyStore


class TestMemoryStore(StoreContract):
    def open_store(self, folder: Path) -> Store:
        return MemoryStore(n_shards=2, shard_bytes=4 << 20)


class TestLmdbStore(StoreContract):
    persistent = True

    def open_store(self, folder: Path) -> Store:
        return LmdbStore.open(folder, 34 << 20, shard_map_bytes=17 << 20)


class TestFaultyStoreWithoutFaults(StoreContract):
    def open_store(self, folder: Path) -> Store:
        return FaultyStore(MemoryStore(n_shards=2, shard_bytes=4 << 20))
