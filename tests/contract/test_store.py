"""Every store keeps the Store contract."""

from pathlib import Path

from kvtier.store.base import SharedStore, Store
from kvtier.store.lmdb import LmdbStore
from kvtier.store.memory import MemoryStore
from kvtier.testing.contracts import StoreContract
from kvtier.testing.faults import FaultyStore
from kvtier.testing.shared import OtherProcess, SharedStoreContract
from kvtier.types import ChunkKey
from tests.rigs.peer import Peer


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


class MemoryPeer:
    def __init__(self, store: MemoryStore) -> None:
        self._store = store.peer()

    def put(self, shard: int, frames: dict[ChunkKey, bytes], deletes: list[ChunkKey]) -> None:
        self._store.write(shard, [(key, memoryview(frame)) for key, frame in frames.items()], deletes)

    def close(self) -> None:
        pass


class TestSharedMemoryStore(SharedStoreContract):
    def open_both(self, folder: Path) -> tuple[SharedStore, OtherProcess]:
        store = MemoryStore(n_shards=2, shard_bytes=4 << 20)
        return store, MemoryPeer(store)


class TestSharedLmdbStore(SharedStoreContract):
    def open_both(self, folder: Path) -> tuple[SharedStore, OtherProcess]:
        store = LmdbStore.open(folder, 34 << 20, shard_map_bytes=17 << 20)
        return store, Peer(folder, 34 << 20, 17 << 20)
