"""The load gate on a real engine: vLLM plain, with kvtier and no disk, and with kvtier on a disk that becomes slow.

python -m tools.gate_bench [--json] [--rounds N]

In a round each engine answers the same prompt, one output token, after the device's cache was dropped; rounds take
turns in who goes first. Plain vLLM is there twice: what the second takes, beside the first, is what the machine's noise
and nothing else makes. kvtier without a disk tells what offloading costs from what the disk and the gate cost. Each
prompt is filled once and measured once, and host RAM is smaller than two of them, so nothing comes from host RAM.
As root on Linux, all engines alike go before other work of the machine.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from integration.vllm.conftest import CHUNK, TAIL, prompts, tree
from integration.vllm.engine import Engine, wait_for_frames
from tools.make_model import ensure_model

N_CHUNKS = 5
HOST = "20MiB"
"""Seven chunks of the demo model: one prompt, and not two."""

N_FLUSH = 2
"""Prompts after the fill that nobody asks for again: what was filled last is in host RAM no longer."""

SLOW_S = 2.0
"""Before every read from disk. Four threads read here, so five chunks take twice that; to compute them takes 0.4 s."""

BOUND = {"VLLM_CPU_OMP_THREADS_BIND": "1", "KVTIER_TEST_SPIN_S": "0.02"}
"""All engines compute on the same core, one after the other; the benchmark and transfer threads have the other. None
spins for a second after its answer, as vLLM's processes do: whoever is asked next would pay for it."""

N_FAST = 6
N_FIND_OUT = 3
"""Rounds after the disk became slow that are counted apart."""

PLAIN = "plain vLLM"
SUBJECT = "kvtier"
WAKE_TOKENS = 32
EXPORT_S = 1.1
"""Metrics are exported at an engine's steps, at most once a second."""

Question = Sequence[int]
Row = dict[str, float | str]


class Answer(NamedTuple):
    """One request that found nothing on the device."""

    seconds: float
    cpu_s: float
    cached: int  # tokens it did not have to compute


def ask(engine: Engine, question: Question) -> Answer:
    """Drop the device's cache, wake the engine by a prompt of less than a chunk, ask, and wait until it is idle."""
    engine.drop_device_cache()
    engine.generate([question[-WAKE_TOKENS:]], max_tokens=1)
    cpu_s, began_s = engine.cpu_s(), time.perf_counter()
    output = engine.generate([question], max_tokens=1)[0]
    seconds = time.perf_counter() - began_s
    time.sleep(0.02)  # what comes after the answer costs processor time too
    return Answer(seconds, engine.cpu_s() - cpu_s, output.cached)


def counted(engine: Engine) -> dict[str, float]:
    """The gate's counters, up to now."""
    time.sleep(EXPORT_S)
    engine.generate(prompts(1, n_tokens=CHUNK // 2, seed=9), max_tokens=1)
    metrics = engine.metrics()
    names = ("gated_requests", "gave_up_requests", "probed_chunks")
    return {name: metrics.get(f"vllm:kvtier_{name}", 0.0) for name in names}


def measure(name: str, engines: Mapping[str, Engine], questions: Sequence[Question], *, turn: int = 0) -> list[Row]:
    """One round for each question; a row for each engine, set beside plain vLLM's answer of the same round."""
    before = counted(engines[SUBJECT])
    answers: dict[str, list[Answer]] = {who: [] for who in engines}
    order = list(engines)
    for n, question in enumerate(questions, turn):
        for who in order[n % len(order) :] + order[: n % len(order)]:
            answers[who].append(ask(engines[who], question))
    gate = {key: value - before[key] for key, value in counted(engines[SUBJECT]).items()}
    rows = []
    for who, ours in answers.items():
        row: Row = {
            "what": name,
            "engine": who,
            "rounds": len(questions),
            "loaded": statistics.fmean(a.cached for a in ours) / (N_CHUNKS * CHUNK),
            "seconds": statistics.median(a.seconds for a in ours),
            "cpu_s": statistics.fmean(a.cpu_s for a in ours),
        }
        if who != PLAIN:
            row |= spread([a.seconds / b.seconds for a, b in zip(ours, answers[PLAIN], strict=True)])
            row["cpu_ratio"] = sum(a.cpu_s for a in ours) / sum(b.cpu_s for b in answers[PLAIN])
        rows.append(row | (gate if who == SUBJECT else {}))
    return rows


def spread(ratios: list[float]) -> Row:
    """Median, quartiles, largest, and where the median of such rounds lies with 95 % certainty (by order, no model)."""
    low, middle, high = statistics.quantiles(ratios, n=4)
    ordered, n = sorted(ratios), len(ratios)
    out = max(0, math.floor(n / 2 - 0.98 * math.sqrt(n)))
    return {
        "ratio": middle,
        "ratio_low": low,
        "ratio_high": high,
        "ratio_max": ordered[-1],
        "median_from": ordered[out],
        "median_to": ordered[n - 1 - out],
    }


def run(n_rounds: int) -> list[Row]:
    """All rows; those that count, requests after a disk has become slow, are of `n_rounds`."""
    model = ensure_model(quiet=True)
    n_always = max(3, n_rounds // 10)
    n = N_FAST + N_FIND_OUT + n_rounds + n_always + N_FLUSH
    questions = prompts(n, n_tokens=N_CHUNKS * CHUNK + TAIL, vocabulary=40000)
    fast, finding, slow, always = (
        questions[:N_FAST],
        questions[N_FAST : N_FAST + N_FIND_OUT],
        questions[N_FAST + N_FIND_OUT : N_FAST + N_FIND_OUT + n_rounds],
        questions[-N_FLUSH - n_always : -N_FLUSH],
    )
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name, ExitStack() as running:
        folder, disk, delay = Path(name), Path(name) / "disk", Path(name) / "delay"
        delay.write_text("0")

        def start(log: str, config: dict[str, Any] | None = None, **env: str) -> Engine:
            return Engine(model, folder / log, kvtier=config, env=BOUND | env)

        def with_disk(load: str) -> Engine:
            settings = {"load": load, "capacity": "4GiB", "sync_every": "100ms"}
            config = tree(disk, host={"capacity": HOST}, disk=settings)
            return start(f"{load}.log", config, KVTIER_TEST_READ_DELAY=str(delay))

        others = {
            PLAIN: running.enter_context(start("plain.log")),
            "plain vLLM again": running.enter_context(start("again.log")),
            "kvtier, no disk": running.enter_context(start("host.log", tree(None, host={"capacity": HOST}))),
        }
        with with_disk("auto") as engine:
            ahead = [other.go_first() for other in (*others.values(), engine)]
            if not all(ahead):
                print("the engines share the machine with whatever else runs", file=sys.stderr)
            for n_filled, question in enumerate(questions, 1):
                ask(engine, question)
                wait_for_frames(disk, n_filled * N_CHUNKS)
            engines = {**others, SUBJECT: engine}
            for other in others.values():
                ask(other, questions[-1])
            rows += measure("fast disk", engines, fast)
            delay.write_text(str(SLOW_S))
            rows += measure("slow disk, first three requests", engines, finding, turn=3)  # kvtier is first
            rows += measure("slow disk, after those", engines, slow)
        delay.write_text("0")
        with with_disk("always") as engine:
            engine.go_first()
            ask(engine, questions[-1])
            delay.write_text(str(SLOW_S))
            rows += measure("slow disk, `load: always`", {**others, SUBJECT: engine}, always)
    return rows


_COLUMNS = [
    *("", "engine", "rounds", "loaded", "gated", "gave up", "seconds"),
    *("beside plain vLLM", "quartiles", "median, 95 %", "largest", "CPU s", "beside plain vLLM"),
]


def _cells(row: Mapping[str, Any]) -> list[str]:
    cells = [row["what"], row["engine"], f"{row['rounds']}", f"{row['loaded']:.0%}"]
    cells += [f"{row[key]:.0f}" if key in row else "" for key in ("gated_requests", "gave_up_requests")]
    cells.append(f"{row['seconds']:.3f}")
    if "ratio" in row:
        cells += [
            f"{row['ratio']:.3f}",
            f"{row['ratio_low']:.3f} to {row['ratio_high']:.3f}",
            f"{row['median_from']:.3f} to {row['median_to']:.3f}",
            f"{row['ratio_max']:.2f}",
        ]
    else:
        cells += [""] * 4
    return [*cells, f"{row['cpu_s']:.3f}", f"{row['cpu_ratio']:.3f}" if "cpu_ratio" in row else ""]


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=40)
    args = parser.parse_args()
    rows = run(args.rounds)
    if args.json:
        print(json.dumps(rows))
        return 0
    print("| " + " | ".join(_COLUMNS) + " |")
    print("|" + "---|" * len(_COLUMNS))
    for row in rows:
        print("| " + " | ".join(_cells(row)) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
