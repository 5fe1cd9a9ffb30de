"""The load gate on a real engine: plain vLLM and vLLM with kvtier in pairs, on a throttled disk and on one that is not.

python -m tools.gate_bench [--json] [--pairs N]

One prompt at a time, one output token, after the device's cache was dropped. In a pair both engines answer the same
prompt, and pairs take turns in who goes first. Each prompt is filled once and measured once, and host RAM is smaller
than two of them, so nothing that is measured comes from host RAM.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from time import perf_counter

from integration.vllm.conftest import CHUNK, TAIL, prompts, tree
from integration.vllm.engine import Engine, wait_for_frames
from tools.make_model import ensure_model

N_CHUNKS = 10
HOST = "40MiB"
"""14 chunks of the demo model: one prompt, and not two."""

N_FLUSH = 2
"""Prompts after the fill that nobody asks for again: what was filled last is in host RAM no longer."""

SLOW_S = 2.0
"""Before every read from disk. Six threads read, so a prompt takes two of these, 4 s; to compute it takes about one."""

BOUND = {"VLLM_CPU_OMP_THREADS_BIND": "1"}
"""Both engines compute on the same core, one after the other; the benchmark and transfer threads have the other."""

N_FIND_OUT = 3
"""Requests after the disk became slow that are counted apart. The quartiles of three are the least and the largest."""

Question = Sequence[int]
Row = dict[str, float]


def timed(engine: Engine, question: Question) -> tuple[float, int]:
    """Seconds of one request that finds nothing on the device, and the tokens it did not have to compute."""
    engine.drop_device_cache()
    began_s = perf_counter()
    output = engine.generate([question], max_tokens=1)[0]
    return perf_counter() - began_s, output.cached


def compare(plain: Engine, with_kvtier: Engine, questions: Sequence[Question], *, recomputes: bool = False) -> Row:
    """One pair for each question: medians, and quartiles of the ratios. `recomputes`: AssertionError if any is loaded.

    `itself` is of plain vLLM's requests, each to the one before: what the machine's noise makes of a ratio that is 1.
    """
    plain_s, kvtier_s, cached = [], [], []
    for n, question in enumerate(questions):
        if n % 2:
            plain_s.append(timed(plain, question)[0])
        seconds, n_tokens = timed(with_kvtier, question)
        assert n_tokens == 0 or not recomputes, f"pair {n}: {n_tokens} tokens were loaded"
        kvtier_s.append(seconds)
        cached.append(n_tokens)
        if not n % 2:
            plain_s.append(timed(plain, question)[0])
    row = {
        "pairs": len(questions),
        "loaded": statistics.fmean(cached) / (N_CHUNKS * CHUNK),
        "plain_s": statistics.median(plain_s),
        "kvtier_s": statistics.median(kvtier_s),
    }
    row |= quartiles("ratio", [ours / theirs for ours, theirs in zip(kvtier_s, plain_s, strict=True)])
    if len(plain_s) > 2:
        row |= quartiles("itself", [after / before for before, after in pairwise(plain_s)])
    return row


def quartiles(name: str, values: list[float]) -> Row:
    """`name` and its quartiles; of one value, three times that value."""
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    return {name: middle, f"{name}_low": low, f"{name}_high": high}


def run(n_pairs: int) -> dict[str, Row]:
    """All rows; the one that counts, recomputing beside a slow disk, has `n_pairs`."""
    model = ensure_model(quiet=True)
    n_fast, n_always = max(2, n_pairs // 3), max(2, n_pairs // 6)
    questions = prompts(n_fast + N_FIND_OUT + n_pairs + N_FLUSH, n_tokens=N_CHUNKS * CHUNK + TAIL, vocabulary=40000)
    fast, found_out, slow = (
        questions[:n_fast],
        questions[n_fast : n_fast + N_FIND_OUT],
        questions[n_fast + N_FIND_OUT : -N_FLUSH],
    )
    rows: dict[str, Row] = {}
    with tempfile.TemporaryDirectory() as name:
        folder, disk, delay = Path(name), Path(name) / "disk", Path(name) / "delay"
        delay.write_text("0")

        def kvtier(load: str) -> Engine:
            config = tree(disk, host={"capacity": HOST}, disk={"load": load, "capacity": "4GiB", "sync_every": "100ms"})
            return Engine(model, folder / "log", kvtier=config, env=BOUND | {"KVTIER_TEST_READ_DELAY": str(delay)})

        with Engine(model, folder / "plain.log", env=BOUND) as plain:
            timed(plain, questions[-1])
            with kvtier("auto") as engine:
                for n, question in enumerate(questions, 1):
                    timed(engine, question)
                    wait_for_frames(disk, n * N_CHUNKS)
                rows["fast disk"] = compare(plain, engine, fast)
                delay.write_text(str(SLOW_S))
                rows["slow disk, the first three requests"] = compare(plain, engine, found_out)
                rows["slow disk, the requests after it"] = compare(plain, engine, slow, recomputes=True)
            delay.write_text("0")
            with kvtier("always") as engine:
                timed(engine, questions[-1])
                delay.write_text(str(SLOW_S))
                rows["slow disk, `load: always`"] = compare(plain, engine, slow[:n_always])
    return rows


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--pairs", type=int, default=20)
    args = parser.parse_args()
    rows = run(args.pairs)
    if args.json:
        print(json.dumps(rows))
        return 0
    print("| | pairs | loaded | plain vLLM | with kvtier | ratio in a pair, median | quartiles | plain beside itself |")
    print("|---|---|---|---|---|---|---|---|")
    for name, row in rows.items():
        noise = f"{row['itself_low']:.3f} to {row['itself_high']:.3f}" if "itself" in row else ""
        print(
            f"| {name} | {row['pairs']:.0f} | {row['loaded']:.0%} | {row['plain_s']:.3f} s | {row['kvtier_s']:.3f} s | "
            f"{row['ratio']:.3f} | {row['ratio_low']:.3f} to {row['ratio_high']:.3f} | {noise} |"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
