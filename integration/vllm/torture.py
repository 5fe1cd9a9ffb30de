"""SIGKILL of a real vLLM engine at random moments under load; part of `make torture` where vLLM is installed."""

import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from integration.vllm.conftest import CHUNK, N_CHUNKS, TINY, plain_answers, prompts, tree
from integration.vllm.engine import Engine, frames_on_disk
from integration.vllm.models import make_llama
from integration.vllm.processes import kill_group
from tests.torture.scenario import Row, Setting, timed

N_PROMPTS = 10
CAPACITY = "128MiB"
DISK = {"capacity": CAPACITY, "write_behind_after": "50ms", "sync_every": "200ms", "load": "always"}
HOST = {"capacity": "16MiB"}  # a few prompts: everything else is spilled, evicted and promoted


def killed_vllm(setting: Setting) -> Iterator[Row]:
    """kill -9 of a real vLLM"""
    row, rng = Row("server", "SIGKILL of a real vLLM engine under load"), setting.rng("vllm")
    folder = setting.folder
    model = make_llama(folder / "model", seed=1)
    questions = prompts(N_PROMPTS)
    setting.tell("what plain vLLM answers")
    plain = plain_answers(model, folder / "plain", questions, **TINY)
    answers = [output.tokens for output in plain.cold]
    config = tree(folder / "disk", host=HOST, disk=DISK)
    with timed(row):
        for n in range(setting.n(setting.server_kills, 1)):
            setting.tell(f"kill {n}")
            before = set(frames_on_disk(folder / "disk")) if (folder / "disk").exists() else set()
            engine = Engine(model, folder / f"log{n}", kvtier=config, **TINY)
            pools = _serve_and_kill(row, engine, questions, answers, rng)
            after = set(frames_on_disk(folder / "disk"))
            row.figures["frames_found_after_kills"] = row.figures.get("frames_found_after_kills", 0) + len(after)
            row.expect(before <= after, f"kill {n}: {len(before - after)} of {len(before)} frames are gone")
            row.expect("set aside" not in (folder / f"log{n}").read_text(), f"kill {n}: a shard was set aside")
            row.expect(pools, f"kill {n}: the engine had no host pool in /dev/shm")
            row.expect(not any(pool.exists() for pool in pools), f"kill {n}: a file is left in /dev/shm")
            n_bytes = sum(path.lstat().st_size for path in (folder / "disk").glob("*") if path.is_file())
            row.expect(n_bytes <= 128 << 20, f"kill {n}: {n_bytes} bytes on disk")
        with Engine(model, folder / "log", kvtier=config, **TINY) as engine:
            for question, answer in zip(questions, answers, strict=True):
                engine.drop_device_cache()
                output = engine.generate([question])[0]
                row.requests += 1
                row.served_wrong += output.tokens != answer
                full = row.figures.get("warm_prompts", 0)
                row.figures["warm_prompts"] = full + (output.cached == N_CHUNKS * CHUNK)
    row.expect(not row.served_wrong and not row.failed_requests, "an answer was wrong or a request failed")
    row.expect(setting.short or row.figures["warm_prompts"] == N_PROMPTS, "a prompt was not found on disk at the end")
    yield row


def _serve_and_kill(
    row: Row, engine: Engine, questions: list[list[int]], answers: list[tuple[int, ...]], rng: random.Random
) -> set[Path]:
    """Ask from one thread, kill from another; what the engine had in /dev/shm."""
    delay_s = rng.uniform(0.0, 4.0)
    with engine, ThreadPoolExecutor(1) as killer:
        pools = engine.host_pools()
        started_s = time.monotonic()

        def kill() -> None:
            time.sleep(max(0.0, started_s + delay_s - time.monotonic()))
            kill_group(engine._pid)

        killer.submit(kill)
        while True:
            asked = rng.sample(range(len(questions)), rng.choice([1, 1, 3]))
            try:
                outputs = engine.generate([questions[n] for n in asked])
            except (OSError, RuntimeError, ValueError):
                break  # it is dead
            row.requests += len(asked)
            row.served_wrong += sum(o.tokens != answers[n] for n, o in zip(asked, outputs, strict=True))
            if rng.random() < 0.5:
                try:
                    engine.drop_device_cache()
                except (OSError, RuntimeError, ValueError, AssertionError):
                    break
    row.injected += 1
    row.harmless += 1
    return pools
