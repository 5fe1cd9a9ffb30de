"""The load gate on a real engine: plain vLLM and vLLM with kvtier in turns, on a throttled disk and on one that is not.

python -m tools.gate_bench [--json] [--rounds N]

Both engines run side by side on the demo model and answer the same prompts one at a time; what is timed is one whole
request of one output token after the device's cache was dropped. The two take turns in going first.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

from integration.vllm.conftest import CHUNK, TAIL, prompts, tree
from integration.vllm.engine import Engine, wait_for_frames
from tools.make_model import ensure_model

N_PROMPTS = 5
N_CHUNKS = 10
SLOW_S = 0.3
"""Before every read from disk. Two threads read, so a prompt takes at least five of these, 1.5 s."""

TIMEOUT_S = 60.0


def timed(engine: Engine, prompt: list[int]) -> float:
    """Seconds of one request that finds nothing on the device."""
    engine.drop_device_cache()
    began_s = time.perf_counter()
    engine.generate([prompt], max_tokens=1)
    return time.perf_counter() - began_s


def compare(plain: Engine, with_kvtier: Engine, questions: list[list[int]], n_rounds: int) -> dict[str, float]:
    """Medians over all requests, and of the ratio in each pair, with its quartiles."""
    plain_s, kvtier_s = [], []
    for n, question in enumerate(questions * n_rounds):
        if n % 2:
            plain_s.append(timed(plain, question))
        kvtier_s.append(timed(with_kvtier, question))
        if not n % 2:
            plain_s.append(timed(plain, question))
    ratios = [ours / theirs for ours, theirs in zip(kvtier_s, plain_s, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    return {
        "pairs": len(ratios),
        "plain_s": statistics.median(plain_s),
        "kvtier_s": statistics.median(kvtier_s),
        "ratio": middle,
        "low": low,
        "high": high,
    }


def run(n_rounds: int) -> dict[str, dict[str, float]]:
    """All rows; the one that counts, on a slow disk, has `n_rounds` of all prompts."""
    model = ensure_model(quiet=True)
    questions = prompts(N_PROMPTS, n_tokens=N_CHUNKS * CHUNK + TAIL, vocabulary=40000)
    rows: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder, delay = Path(name), Path(name) / "delay"
        delay.write_text("0")
        env = {"KVTIER_TEST_READ_DELAY": str(delay)}
        with Engine(model, folder / "plain.log") as plain:
            for load in ("auto", "always"):
                disk = folder / load
                config = tree(disk, disk={"load": load, "capacity": "512MiB", "sync_every": "100ms"})
                with Engine(model, folder / "kvtier.log", kvtier=config, env=env) as engine:
                    for question in questions:
                        timed(engine, question)
                    wait_for_frames(disk, N_PROMPTS * N_CHUNKS)
                    if load == "auto":
                        rows["fast disk"] = compare(plain, engine, questions, 2)
                    delay.write_text(str(SLOW_S))
                    if load == "auto":
                        rows["slow disk, request that finds out"] = compare(plain, engine, questions[:1], 1)
                        rows["slow disk"] = compare(plain, engine, questions, n_rounds)
                    else:
                        rows["slow disk, load: always"] = compare(plain, engine, questions, 1)
                    delay.write_text("0")
    return rows


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=8)
    args = parser.parse_args()
    rows = run(args.rounds)
    if args.json:
        print(json.dumps(rows))
        return 0
    print("| | pairs | plain vLLM | with kvtier | ratio in a pair, median | quartiles |\n|---|---|---|---|---|---|")
    for name, row in rows.items():
        print(
            f"| {name} | {row['pairs']:.0f} | {row['plain_s']:.3f} s | {row['kvtier_s']:.3f} s | {row['ratio']:.3f} | "
            f"{row['low']:.3f} to {row['high']:.3f} |"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
