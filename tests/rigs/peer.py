"""Another process at the same store, driven from the test."""

import contextlib
import multiprocessing as mp
from multiprocessing.connection import Connection
from pathlib import Path

from kvtier.errors import KvtierError
from kvtier.store.lmdb import LmdbStore
from kvtier.types import ChunkKey


class Peer:
    """Opens the store at `folder` in a process of its own and does there what it is told."""

    def __init__(self, folder: Path, capacity_bytes: int, shard_map_bytes: int) -> None:
        context = mp.get_context("spawn")
        self._pipe, far = context.Pipe()
        self.process = context.Process(target=_serve, args=(far, folder, capacity_bytes, shard_map_bytes), daemon=True)
        self.process.start()
        far.close()
        self.notices: list[str] = self._answer()

    def put(self, shard: int, frames: dict[ChunkKey, bytes], deletes: list[ChunkKey]) -> None:
        self._pipe.send(("put", shard, frames, deletes))
        self._answer()

    def read(self, shard: int, key: ChunkKey) -> bytes | None:
        self._pipe.send(("read", shard, key))
        return self._answer()

    def begin_write(self, shard: int, key: ChunkKey, frame: bytes) -> None:
        """Put a frame in a transaction that stays open: for a process that is to be stopped or killed in it."""
        self._pipe.send(("begin_write", shard, key, frame))
        self._answer()

    def begin_read(self, shard: int, key: ChunkKey) -> bytes | None:
        """Borrow a frame and keep it."""
        self._pipe.send(("begin_read", shard, key))
        return self._answer()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._pipe.send(("close",))
        self.process.join(20)
        self._pipe.close()

    def kill(self) -> None:
        self.process.kill()
        self.process.join(20)

    def _answer(self):
        answer = self._pipe.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer


def _serve(pipe: Connection, folder: Path, capacity_bytes: int, shard_map_bytes: int) -> None:
    try:
        store = LmdbStore.open(folder, capacity_bytes, shard_map_bytes=shard_map_bytes)
    except KvtierError as error:
        pipe.send(error)
        return
    held = contextlib.ExitStack()
    pipe.send(store.notices)
    while True:
        op, *arguments = pipe.recv()
        if op == "close":
            held.close()
            store.close()
            return
        try:
            pipe.send(_do(store, held, op, *arguments))
        except KvtierError as error:
            pipe.send(error)


def _do(store: LmdbStore, held: contextlib.ExitStack, op: str, shard: int, *arguments):
    match op:
        case "put":
            frames, deletes = arguments
            store.write(shard, [(key, memoryview(frame)) for key, frame in frames.items()], deletes)
        case "read":
            with store.read(shard, *arguments) as frame:
                return None if frame is None else bytes(frame)
        case "begin_read":
            frame = held.enter_context(store.read(shard, *arguments))
            return None if frame is None else bytes(frame)
        case "begin_write":
            key, frame = arguments
            held.enter_context(store._lock.turn(shard))
            txn = held.enter_context(store._shards[shard]._env.begin(write=True))
            txn.put(key, frame, db=store._shards[shard]._frames)
    return None
