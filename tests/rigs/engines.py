"""Engines in processes of their own, on one disk directory, driven from the test."""

import contextlib
import multiprocessing as mp
import random
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from kvtier.keys import FAMILY_BYTES, Namespace
from kvtier.types import ChunkKey
from tests.torture import engine as torture_engine
from tests.torture.engine import Engine, traffic

PATIENCE_S = 30.0


class EngineProcess:
    """One engine. Calls are answered in order; `start` leaves it working, `answer` waits for what it says."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        """`settings` are those of `Engine`, and `namespace`."""
        context = mp.get_context("spawn")
        self._pipe, far = context.Pipe()
        self.process = context.Process(target=_serve, args=(far, folder, settings), daemon=True)
        self.process.start()
        far.close()

    def start(self, op: str, *arguments: Any) -> None:
        self._pipe.send((op, *arguments))

    def answer(self) -> Any:
        answer = self._pipe.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def call(self, op: str, *arguments: Any) -> Any:
        self.start(op, *arguments)
        return self.answer()

    def kill(self) -> None:
        self.process.kill()
        self.process.join(20)

    def stop(self) -> None:
        with contextlib.suppress(OSError):
            self._pipe.send(("stop",))
        self.process.join(20)
        self._pipe.close()


def until(condition: Callable[[], object], what: str) -> None:
    give_up_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < give_up_s, what
        time.sleep(0.05)


def _serve(pipe: Connection, folder: Path, settings: dict[str, Any]) -> None:
    torture_engine.NAMESPACE = Namespace({"model": settings.pop("namespace", "torture")})
    engine = Engine(folder, **settings)
    while True:
        op, *arguments = pipe.recv()
        if op == "stop":
            engine.stop()
            return
        try:
            pipe.send(_DO[op](engine, *arguments))
        except Exception as error:  # noqa: BLE001 - the test's to see
            pipe.send(error)


def _run_traffic(engine: Engine, seed: int, n_requests: int, n_prompts: int) -> dict[str, Any]:
    rng = random.Random(seed)
    for _ in range(n_requests):
        traffic(engine, rng, n_prompts=n_prompts)
    return _seen(engine)


def _request(engine: Engine, prompt: int, n_chunks: int) -> int:
    """How many chunks of the prompt hit."""
    before = sum(engine.outcome.hits)
    engine.request(prompt, n_chunks)
    return sum(engine.outcome.hits) - before


def _seen(engine: Engine) -> dict[str, Any]:
    outcome = engine.outcome
    return {
        "wrong": outcome.wrong, "failed": outcome.failed, "errors": outcome.errors, "hits": outcome.hits,
        "worst_call_s": outcome.worst_call_s, "reports": engine.reports,
    }  # fmt: skip


def _on_disk(engine: Engine) -> set[tuple[int, ChunkKey]]:
    """What the index says, the family of the namespace left out: (shard, rest of the key)."""
    with engine.cache._lock:
        assert engine.cache.disk is not None
        return {(frame.shard, ChunkKey(frame.key[FAMILY_BYTES:])) for frame in engine.cache.disk.frames()}


_DO: dict[str, Callable[..., Any]] = {
    "request": _request,
    "settle": Engine.settle,
    "push_out": Engine.push_out,
    "count": Engine.count,
    "traffic": _run_traffic,
    "seen": _seen,
    "on_disk": _on_disk,
    "capacity": lambda engine: engine.cache.disk.capacity_bytes,
    "has_disk": lambda engine: engine.has_disk,
    "reset": lambda engine: engine.kvtier.reset(),
    "check": lambda engine: engine.cache.check(),
}
