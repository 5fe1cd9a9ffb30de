"""SGLang's `file` backend and kvtier on the same servers, prompts and machine: bytes on disk, restart, speed, damage.

    .venv-sglang-0.5.23/bin/python -m integration.sglang.compare file kvtier --out DIR

Each backend named is measured; what DIR has from earlier calls is printed beside it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from integration.sglang import conftest  # noqa: F401 - finds the stand-ins for what has no CPU build
from integration.sglang.damage import flip_bits
from integration.sglang.server import PAGE, Answer, SglangServer
from kvtier.engines.sglang import plugin
from tools.make_model import ensure_model

N_PROMPTS, N_TOKENS = 4, 2880
TEXT = "The number {} is followed by the number {}, which is {} more than {}. "


def prompts(model: Path) -> list[list[int]]:
    """Texts that share nothing but their style, whole pages long and a few tokens more."""
    from transformers import AutoTokenizer  # noqa: PLC0415 - seconds to import

    tokenizer = AutoTokenizer.from_pretrained(model)
    texts = [
        "".join(TEXT.format(n, n + step, step, n) for n in range(100 * step, 100 * step + 360)) for step in (1, 3, 7, 9)
    ]
    asked = [tokenizer(text)["input_ids"][: N_TOKENS + 5] for text in texts[:N_PROMPTS]]
    assert all(len(prompt) == N_TOKENS + 5 for prompt in asked)
    return asked


def arguments(backend: str, disk: Path) -> tuple[list[str], dict[str, str]]:
    if backend == "file":
        return ["--hicache-storage-backend", "file"], {"SGLANG_HICACHE_FILE_BACKEND_STORAGE_DIR": str(disk)}
    extra = json.dumps({"kvtier": {"disk": {"path": str(disk), "capacity": "1GiB"}, "host": {"capacity": "64MiB"}}})
    return ["--hicache-storage-backend", "kvtier", "--hicache-storage-backend-extra-config", extra], {}


def bytes_on_disk(disk: Path) -> int:
    """Blocks taken, as du counts them."""
    return sum(path.stat().st_blocks * 512 for path in disk.rglob("*") if path.is_file())


def measure(backend: str, out: Path) -> dict[str, Any]:
    """Two starts of a server with this backend over one directory."""
    model, disk, log = ensure_model(quiet=True), out / f"{backend}-disk", out / f"{backend}.log"
    asked = prompts(model)
    args, env = arguments(backend, disk)
    args = ["--max-total-tokens", str(N_TOKENS * 2), *args]
    result: dict[str, Any] = {"backend": backend}
    with SglangServer(model, log, args=args, env=env) as server:
        server.generate(asked[0][40::-1])  # the first request of a process pays for compilation
        firsts, cold = ask(server, asked)
        assert all(first.cached["storage"] == 0 for first in firsts)
        server.wait_for_metric("sglang:backuped_tokens_total", N_PROMPTS * N_TOKENS)
        time.sleep(2)  # the write behind the last acknowledgement
        result["cold_s"] = statistics.median(first.seconds for first in firsts)
        n_tokens = server.metric("sglang:backuped_tokens_total")
        result["bytes_per_token"] = bytes_on_disk(disk) / n_tokens
        server.kill()
    with SglangServer(model, log, args=args, env=env) as server:
        server.generate(asked[0][40::-1])
        firsts, warm = ask(server, asked)
        result["restart_s"] = statistics.median(first.seconds for first in firsts)
        result["restart_hit"] = sum(first.cached["storage"] for first in firsts) / (N_PROMPTS * N_TOKENS)
        result["same_after_restart"] = [a.tokens for a in warm] == [a.tokens for a in cold]
        server.flush()
        assert flip_bits(disk) >= N_PROMPTS * N_TOKENS // PAGE
        if backend == "kvtier":  # what it has in memory is not what is asked about
            server.detach()
            server.attach(json.dumps({**plugin.LOADED_AS, **json.loads(args[-1])}))
        damaged = [server.generate(prompt) for prompt in asked]
        result["damaged_hit"] = sum(answer.cached["storage"] for answer in damaged) / (N_PROMPTS * N_TOKENS)
        result["damaged_wrong"] = sum(a.tokens != b.tokens for a, b in zip(damaged, cold, strict=True))
        server.flush()
        server.kill()
    return result


def ask(server: SglangServer, prompts: Sequence[Sequence[int]]) -> tuple[list[Answer], list[Answer]]:
    """Each prompt for its first token, which takes as long as the time to it; then the answers of eight tokens."""
    firsts, answers = [], []
    for prompt in prompts:
        firsts.append(server.generate(prompt, n_tokens=1))
        answers.append(server.generate(prompt))
    return firsts, answers


def table(results: Sequence[dict[str, Any]]) -> str:
    rows = [
        ("bytes on disk per token", lambda r: f"{r['bytes_per_token']:,.0f}"),
        ("seconds to the first token, cold", lambda r: f"{r['cold_s']:.2f} s"),
        ("the same after SIGKILL and restart", lambda r: f"{r['restart_s']:.2f} s"),
        ("tokens found after the restart", lambda r: f"{r['restart_hit']:.0%}"),
        ("answers the same after the restart", lambda r: "yes" if r["same_after_restart"] else "no"),
        ("one bit flipped in each page: tokens loaded from them", lambda r: f"{r['damaged_hit']:.0%}"),
        ("one bit flipped in each page: wrong answers", lambda r: f"{r['damaged_wrong']} of {N_PROMPTS}"),
    ]
    lines = ["| | " + " | ".join(r["backend"] for r in results) + " |", "|---|" + "---|" * len(results)]
    lines += [f"| {name} | " + " | ".join(show(r) for r in results) + " |" for name, show in rows]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backends", nargs="*", metavar="file|kvtier")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--speed", action="store_true", help="GB/s of both, over the pages that `file` left in DIR")
    options = parser.parse_args()
    if unknown := set(options.backends) - {"file", "kvtier"}:
        parser.error(f"no such backend: {', '.join(sorted(unknown))}")
    options.out.mkdir(parents=True, exist_ok=True)
    for backend in options.backends:
        (options.out / f"{backend}.json").write_text(json.dumps(measure(backend, options.out)))
    if options.speed:
        from integration.sglang.speed import measure_speed  # noqa: PLC0415 - imports SGLang into this process

        print(json.dumps(measure_speed(options.out), indent=1))
    print(table([json.loads(file.read_text()) for file in sorted(options.out.glob("*.json"))]))
    print(f"{N_PROMPTS} prompts of {N_TOKENS} tokens, pages of {PAGE}")


if __name__ == "__main__":
    main()
