"""Plays the demo: a real vLLM server with kvtier, four acts over HTTP, then a table and what it showed.

Exits with 0 when every act showed what it claims, 1 when one did not or the server failed, 130 on Ctrl-C.
"""

import argparse
import contextlib
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import yaml

from integration.demo.report import DISK, Act, Answers, Disk, Run, disk_line, failures, sentence, table
from integration.demo.workload import Workload, make_workload
from integration.vllm.client import HttpError, Message, Metrics, Reply
from integration.vllm.server import ServerError, VllmServer

ROOT = Path(__file__).resolve().parents[2]
WORK_DIR = ROOT / ".kvtier-demo"
CONFIG = ROOT / "configs" / "demo.yaml"
MODEL_DIR = ROOT / ".cache" / "models" / "SmolLM2-135M-Instruct"
N_DOCUMENTS = 6
ANSWER_TOKENS = 16
_DISK_GAUGES = ("vllm:kvtier_disk_raw_bytes", "vllm:kvtier_disk_stored_bytes")


class DemoError(RuntimeError):
    """The demo cannot be played; the message names the remedy."""


class Stage:
    """One server and the conversations with it; collects replies until an act ends."""

    def __init__(self, server: VllmServer, workload: Workload) -> None:
        self._server = server
        self._workload = workload
        self._first_answers: dict[int, str] = {}
        self._replies: list[Reply] = []
        self._cached_before: dict[str, int] = {}

    def begin(self) -> None:
        """Count from here."""
        self._replies = []
        self._cached_before = self._server.client.metrics().cached_by_source()

    def end(self, name: str) -> Act:
        """What happened since begin()."""
        return Act(name, tuple(self._replies), self.cached())

    def cached(self) -> dict[str, int]:
        """Cached prompt tokens by source since begin()."""
        now = self._server.client.metrics().cached_by_source()
        return {source: count - self._cached_before.get(source, 0) for source, count in now.items()}

    def open(self, document: int) -> Reply:
        """First turn about a document; its answer becomes part of the second."""
        reply = self._ask(document, "question 1", self._workload.opening(document))
        self._first_answers[document] = reply.text
        return reply

    def follow_up(self, document: int) -> Reply:
        """Second turn; every time the same prompt."""
        return self._ask(document, "question 2", self._workload.follow_up(document, self._first_answers[document]))

    def _ask(self, document: int, what: str, messages: list[Message]) -> Reply:
        reply = self._server.client.chat(messages, ANSWER_TOKENS)
        self._replies.append(reply)
        say(
            f"document {document + 1}, {what}: {reply.prompt_tokens:,} tokens, {reply.cached_tokens:,} cached,"
            f" first token after {reply.ttft_s:.2f} s"
        )
        return reply


def play(server: VllmServer, stage: Stage, settle_s: float) -> Run:
    """All four acts on a running server, which is killed and started again on the way."""
    answers = Answers()
    everything = range(N_DOCUMENTS)

    heading("Act 1: cold. Nobody has seen these documents.")
    stage.begin()
    for document in everything:
        stage.open(document)
    cold = stage.end("1 cold")
    say("the second questions and their repeats come from the device cache:")
    stage.begin()
    for document in everything:
        stage.follow_up(document)
        answers.expect(document, stage.follow_up(document))
    warm = stage.end("1 device cache")

    heading("Act 2: the device cache is dropped. Host RAM has the documents that were used last.")
    server.client.drop_device_cache()
    stage.begin()
    for document in reversed(everything[-2:]):
        answers.check("act 2", document, stage.follow_up(document))
    host = stage.end("2 host RAM")

    heading(
        "Act 3: the device cache is dropped again, and host RAM is too small for all documents: the rest is on disk."
    )
    server.client.drop_device_cache()
    stage.begin()
    for document in everything:
        answers.check("act 3", document, stage.follow_up(document))
    disk = stage.end("3 disk")

    heading("Act 4: SIGKILL. Device and host memory are gone; a new server finds the disk as it was.")
    say(f"waiting {settle_s:.0f} s, in which idle disk time writes what only host RAM has")
    time.sleep(settle_s)
    server.kill()
    say("killed; starting again (about a minute)")
    server.start()
    stage.begin()
    first_disk_tokens = 0
    for document in everything:
        answers.check("act 4", document, stage.follow_up(document))
        first_disk_tokens = first_disk_tokens or (stage.cached().get(DISK, 0) if document == 0 else 0)
    restart = stage.end("4 after restart")
    return Run(cold, warm, host, disk, restart, first_disk_tokens, answers, _disk_tier(server.client.metrics()))


def _disk_tier(metrics: Metrics) -> Disk:
    raw, stored = (int(metrics.total(name)) for name in _DISK_GAUGES)
    # Blocks, not lengths: a database's map file may be longer than what it takes.
    files = [path.stat().st_blocks * 512 for path in _disk_dir().rglob("*") if path.is_file()]
    return Disk(raw, stored, sum(files))


def _disk_dir() -> Path:
    path: str = yaml.safe_load(CONFIG.read_text())["disk"]["path"]
    return (CONFIG.parent / path).resolve()


def _start_cold() -> None:
    """Forget what an earlier demo left on disk, and nothing else."""
    folder = _disk_dir()
    if not folder.is_relative_to(WORK_DIR):
        raise DemoError(f"{CONFIG} keeps its disk tier in {folder}; the demo only empties folders under {WORK_DIR}")
    if folder.exists():
        shutil.rmtree(folder)


def say(text: str) -> None:
    """A progress line with the seconds since the demo began."""
    print(f"[{time.monotonic() - _BEGAN:4.0f} s] {text}", flush=True)


def heading(text: str) -> None:
    """The start of an act."""
    print(f"\n{text}", flush=True)


def main() -> int:
    """Parse arguments, play, report."""
    parser = argparse.ArgumentParser(prog="make demo", description="A real vLLM answers from KV that outlived it.")
    parser.add_argument(
        "--without-kvtier", action="store_true", help="play the acts on plain vLLM, to compare the times"
    )
    without = parser.parse_args().without_kvtier
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, signal.default_int_handler)  # a closed terminal must not leave a server behind either
    log_path = WORK_DIR / "server.log"
    try:
        if not (MODEL_DIR / "config.json").exists():
            raise DemoError(f"no model in {MODEL_DIR}; run `make demo`, or tools/make_model.py")
        WORK_DIR.mkdir(exist_ok=True)
        log_path.unlink(missing_ok=True)
        _start_cold()
        return _run(log_path, without)
    except KeyboardInterrupt:
        print("\nstopped; the server is gone", file=sys.stderr)
        return 130
    except DemoError as exc:
        print(f"demo: {exc}", file=sys.stderr)
    except ServerError as exc:
        print(f"demo: {exc}", file=sys.stderr)
    except (HttpError, OSError) as exc:
        print(f"demo: the server failed a request: {exc}\n", file=sys.stderr)
        with contextlib.suppress(OSError):
            print(log_path.read_text(errors="replace")[-6000:], file=sys.stderr)
        print(f"whole log: {log_path}", file=sys.stderr)
    return 1


def _run(log_path: Path, without: bool) -> int:
    config = os.path.relpath(CONFIG)
    kvtier = [] if without else ["--kv-connector", "kvtier", "--kv-connector-config", config]
    server = VllmServer(
        MODEL_DIR,
        log_path=log_path,
        args=["--max-model-len", "8192", *kvtier],
        on_progress=lambda text: say(f"server: {text}"),
    )
    stage = Stage(server, make_workload(N_DOCUMENTS))
    heading(f"vllm serve {MODEL_DIR.name} {' '.join(kvtier)}")
    say(f"starting (about a minute); its log: {log_path}")
    with server:
        run = play(server, stage, settle_s=0 if without else 3)
        say("done")
    print(f"\n{table(run.acts)}\n")
    if without:
        print("Plain vLLM: once its device cache is gone, every prompt is computed again.")
        return 0
    print(disk_line(run.tier))
    if problems := failures(run):
        print("\nThe demo did NOT show what it should:", *(f"  - {problem}" for problem in problems), sep="\n")
        print(f"\n{server.log_tail()}\nwhole log: {log_path}")
        return 1
    print(f"\n{sentence(run)}")
    return 0


_BEGAN = time.monotonic()

if __name__ == "__main__":
    sys.exit(main())
