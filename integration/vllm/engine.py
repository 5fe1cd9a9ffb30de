"""A real offline vLLM engine in a process group of its own, so that a test can use it, kill it and start it again."""

import atexit
import contextlib
import functools
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import lmdb

from integration.vllm.processes import cpu_s, go_first, host_pools, kill_group

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Output:
    """What one prompt came to."""

    prompt_tokens: int
    cached: int
    tokens: tuple[int, ...]


class Engine:
    """`LLM(model, **kwargs)`, with kvtier when `kvtier` is a configuration tree.

    Leaving the context ends the whole process group by SIGKILL, as `vllm serve` does to its engine.
    """

    def __init__(
        self,
        model: Path,
        log_path: Path,
        *,
        kvtier: Mapping[str, Any] | None = None,
        env: Mapping[str, str] = {},
        **kwargs: Any,
    ) -> None:
        self.log_path = log_path
        self._pid: int | None = None
        self._env = dict(env)
        self._kwargs: dict[str, Any] = {
            "model": str(model), "enforce_eager": True, "disable_log_stats": False, "max_model_len": 2048,
            "block_size": 32, "num_gpu_blocks_override": 96, "seed": 0, **kwargs,
        }  # fmt: skip
        if kvtier is not None:
            self._kwargs["kv_transfer_config"] = {
                "kv_connector": "kvtier", "kv_role": "kv_both", "kv_connector_extra_config": {"kvtier": dict(kvtier)}
            }  # fmt: skip

    def __enter__(self) -> Self:
        call_read, self._call_fd = os.pipe()
        answer_fd, answer_write = os.pipe()
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        with self.log_path.open("ab") as log:
            self._pid = _fork(self._env, call_read, answer_write, log.fileno())
        os.close(call_read)
        os.close(answer_write)
        self._answers = os.fdopen(answer_fd)
        try:
            assert self._ask(self._kwargs) == "ready"
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.kill()
        # kvtier turns its own bugs into misses, so they would not fail a test that only looks at answers.
        assert kind is not None or "the engine goes on without this answer" not in self.log()

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_tokens: int = 12,
        salt: str | None = None,
        lora: Path | None = None,
    ) -> list[Output]:
        """Greedy continuations of token prompts, all submitted at once."""
        answer = self._ask({
            "op": "generate", "prompts": [list(p) for p in prompts], "max_tokens": max_tokens, "salt": salt,
            "lora": str(lora) if lora else None,
        })  # fmt: skip
        return [Output(a["prompt_tokens"], a["cached"], tuple(a["tokens"])) for a in answer]

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokens of each text, by the model's own tokenizer."""
        return self._ask({"op": "tokenize", "texts": list(texts)})

    def drop_device_cache(self, *, connector: bool = False) -> None:
        """Forget what the device holds; with `connector` also tell kvtier that the weights may have changed."""
        assert self._ask({"op": "reset", "connector": connector})

    def block_hashes(self) -> list[list[str]]:
        """Per worker: a digest of every device block's bytes."""
        return self._ask({"op": "block_hashes"})

    def metrics(self) -> dict[str, float]:
        """vLLM's metrics of this engine, kvtier's among them. kvtier's are at most a second and a step old."""
        return self._ask({"op": "metrics"})

    def cpu_s(self) -> float:
        """Processor seconds that all its processes have used so far, in steps of 10 ms."""
        return cpu_s(self._pid)

    def go_first(self) -> bool:
        """Before what else the machine does; False if that may not be."""
        return go_first(self._pid)

    def host_pools(self) -> set[Path]:
        """Files in /dev/shm that are, or were until they lost their names, this engine's host pool."""
        return host_pools(self._pid) if self._pid is not None else set()

    def kill(self) -> None:
        """SIGKILL for every process of the engine."""
        with contextlib.suppress(OSError):
            os.close(self._call_fd)
        kill_group(self._pid)
        self._answers.close()

    def log(self) -> str:
        """All of the log, of every engine that wrote to this path."""
        return self.log_path.read_text(errors="replace")

    def _ask(self, call: Any) -> Any:
        try:
            os.write(self._call_fd, json.dumps(call).encode() + b"\n")
            line = self._answers.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            tail = "\n".join(self.log().splitlines()[-40:])
            raise RuntimeError(f"the engine died; log {self.log_path}\n{tail}")
        return json.loads(line)


_ENV = {
    "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",
    "VLLM_NO_USAGE_STATS": "1",
    # OpenMP threads that spin for each other on shared cores make a decode step twenty times slower.
    "OMP_NUM_THREADS": "1",
}  # fmt: skip


@functools.cache
def _zygote() -> socket.socket:
    """The door of a process that forks engines; it ends with this one."""
    ours, theirs = socket.socketpair()
    process = subprocess.Popen(
        [sys.executable, "-m", "integration.vllm.zygote", str(theirs.fileno())],
        stdin=subprocess.DEVNULL, cwd=ROOT, pass_fds=(theirs.fileno(),),
        env=os.environ | _ENV | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    theirs.close()

    def end() -> None:
        ours.close()
        process.wait(20)

    atexit.register(end)
    return ours


def _fork(env: Mapping[str, str], *fds: int) -> int:
    door = _zygote()
    socket.send_fds(door, [json.dumps(dict(env)).encode()], fds)
    return int.from_bytes(door.recv(4), "big")


def frames_on_disk(folder: Path) -> dict[bytes, Path]:
    """Keys of all committed frames under `folder` and the shard file each lies in, read past the running engine."""
    found: dict[bytes, Path] = {}
    for path in sorted(folder.rglob("shard-*.lmdb")):
        env = lmdb.open(str(path), subdir=False, readonly=True, max_dbs=4, lock=True, create=False)
        try:
            index = env.open_db(b"index", create=False)
            with env.begin(db=index) as txn, txn.cursor() as cursor:
                found.update(dict.fromkeys((bytes(key) for key in cursor.iternext(values=False)), path))
        except lmdb.NotFoundError:
            pass  # an empty shard
        finally:
            env.close()
    return found


def wait_for_frames(folder: Path, n_frames: int, timeout_s: float = 30.0) -> dict[bytes, Path]:
    """Frames on disk once there are `n_frames` of them; AssertionError with the count when time runs out."""
    deadline = time.monotonic() + timeout_s
    while len(frames := frames_on_disk(folder)) < n_frames:
        assert time.monotonic() < deadline, f"{len(frames)} of {n_frames} frames on disk after {timeout_s} s"
        time.sleep(0.1)
    return frames
