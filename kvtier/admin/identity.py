"""The identity check: a model answered by vLLM with kvtier and without -> whether any token differs, and what hit."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from kvtier.errors import InputError

N_PROMPTS: Final = 4
TIMEOUT_S: Final = 900.0
_SETTLE: Final = {"host": {"capacity": "1GiB"}, "disk": {"capacity": "1GiB", "write_behind_after": "0s"}}
_TAIL_LINES: Final = 12


@dataclass(frozen=True, slots=True)
class Identity:
    """What the two engines answered."""

    prompts: int
    differing: tuple[str, ...]  # which answers were not equal, and how
    host_tokens: int  # that came from kvtier's host tier
    disk_tokens: int  # that came from disk, in an engine started anew

    @property
    def proven(self) -> bool:
        """Nothing differs, and KV came from both tiers."""
        return not self.differing and self.host_tokens > 0 and self.disk_tokens > 0


def check_identity(model: Path, engine_args: Mapping[str, Any], tell: Callable[[str], None]) -> Identity:
    """Run vLLM three times: without kvtier, with it, and with it again over the disk tier that is left.

    Minutes on a large model; each run loads it. `tell` gets a line at each step. Raises InputError with the engine's
    last words when one fails.
    """
    with tempfile.TemporaryDirectory(prefix="kvtier-doctor-") as folder:
        kvtier = {
            "host": _SETTLE["host"],
            "disk": _SETTLE["disk"] | {"path": folder, "load": "always"},
            "log": {"every": "off"},
        }
        tell("vLLM alone")
        plain = _run(model, engine_args, None)
        tell("vLLM with kvtier: cold, then from host RAM")
        first = _run(model, engine_args, kvtier)
        tell("vLLM with kvtier, started anew: from disk")
        second = _run(model, engine_args, kvtier)
    cold, warm = plain
    compared = {"computed": (cold, first[0]), "from host RAM": (warm, first[1]), "from disk": (warm, second[0])}
    return Identity(
        prompts=N_PROMPTS,
        differing=tuple(
            f"prompt {n + 1} {how}: {ours['tokens']} with kvtier, {plain_answer['tokens']} without"
            for how, (expected, found) in compared.items()
            for n, (plain_answer, ours) in enumerate(zip(expected, found, strict=True))
            if plain_answer["tokens"] != ours["tokens"]
        ),
        host_tokens=sum(answer["cached"] for answer in first[1]),
        disk_tokens=sum(answer["cached"] for answer in second[0]),
    )


def _run(model: Path, engine_args: Mapping[str, Any], kvtier: Mapping[str, Any] | None) -> list[list[dict[str, Any]]]:
    asked = {"model": str(model), "engine_args": dict(engine_args), "kvtier": kvtier, "prompts": N_PROMPTS}
    command = [sys.executable, "-m", "kvtier.engines.vllm.identity"]
    try:
        done = subprocess.run(  # noqa: S603 - our own module in this interpreter
            command, input=json.dumps(asked), env=_environment(), capture_output=True, text=True, timeout=TIMEOUT_S,
            check=False,
        )  # fmt: skip
        rounds: list[list[dict[str, Any]]] = json.loads(done.stdout)["rounds"]
    except subprocess.TimeoutExpired:
        raise InputError(f"the engine for {model} did not answer within {TIMEOUT_S:.0f} s") from None
    except (ValueError, KeyError):
        raise InputError(f"the engine for {model} ended with code {done.returncode}: {_why(done.stderr)}") from None
    return rounds


def _environment() -> dict[str, str]:
    """On CPUs vLLM takes a core less when it has a connector, and sums in another order: both get the same cores."""
    cores = sorted(os.sched_getaffinity(0))
    own = {
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores[: max(1, len(cores) - 1)])),
        "VLLM_CPU_KVCACHE_SPACE": "1",
    }
    return own | {"VLLM_NO_USAGE_STATS": "1"} | os.environ


def _why(log: str) -> str:
    """The first error in an engine's log: its process says first what was wrong, the others only that it ended."""
    lines = log.strip().splitlines()
    causes = [match[0] for line in lines if (match := re.search(r"\b[A-Z]\w*(?:Error|Exception): .+", line))]
    return causes[0] if causes else "\n".join(lines[-_TAIL_LINES:])
