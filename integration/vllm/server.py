"""A real `vllm serve` for the demo and the HTTP tests: started, waited for, stopped or killed.

The server and its children are one process group. Leaving the context, also by an exception, and a failed start end
that whole group, so nothing survives a test run.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from integration.vllm.client import Client
from integration.vllm.processes import host_pools, kill_group

SERVED_NAME = "demo"


class ServerError(RuntimeError):
    """The server did not start or died; the message ends with the tail of its log and the log's path."""


class VllmServer:
    """One `vllm serve MODEL` on a free port of 127.0.0.1.

    `args` go to the command line after the defaults below, `env` over this process's environment. The log grows
    at its end, so that a restarted server's story stays in one file. Not thread-safe; `client` is.
    """

    def __init__(
        self,
        model: Path,
        *,
        log_path: Path,
        args: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        start_timeout_s: float = 300.0,
        on_progress: Callable[[str], None] | None = None,
    ) -> None:
        self.log_path = log_path
        self.pid: int | None = None
        self._model = model
        self._args = tuple(args)
        self._env = dict(env or {})
        self._start_timeout_s = start_timeout_s
        self._on_progress = on_progress or (lambda _: None)
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0

    @property
    def base_url(self) -> str:
        """Where the server listens, for example http://127.0.0.1:41999. A restart changes it."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def client(self) -> Client:
        """A client of the server as it runs now."""
        return Client(self.base_url, SERVED_NAME)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    def command(self) -> list[str]:
        """The command line, with the interpreter that runs this."""
        return [
            str(Path(sys.executable).parent / "vllm"),
            "serve",
            str(self._model),
            "--served-model-name",
            SERVED_NAME,
            "--host",
            "127.0.0.1",
            "--port",
            str(self._port),
            # Compiling takes longer than everything a test or the demo asks of the server.
            "--enforce-eager",
            "--enable-prompt-tokens-details",
            "--disable-uvicorn-access-log",
            *self._args,
        ]

    def start(self) -> None:
        """Start the server and return once it is healthy; ServerError when it dies or takes too long."""
        assert self._process is None, "the server is running"
        self._port = _free_port()
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        with self.log_path.open("ab") as log:
            log.write(f"\n===== {' '.join(self.command())}\n".encode())
            log.flush()
            self._process = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=_environment() | self._env,
                start_new_session=True,
            )
        self.pid = self._process.pid
        try:
            self._wait_until_healthy()
        except BaseException:
            self.kill()
            raise

    def stop(self, timeout_s: float = 30.0) -> None:
        """End the server as an operator does: SIGTERM, then SIGKILL for whatever is left. Fine to call twice."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(timeout_s)
        self.kill()

    def kill(self) -> None:
        """SIGKILL the whole process group, no process gets to say goodbye. Fine to call twice."""
        if self._process is None:
            return
        kill_group(self._process.pid)
        self._process.wait()
        self._process = None
        self.pid = None

    def host_pools(self) -> set[Path]:
        """Files in /dev/shm that are, or were until they lost their names, the running server's host pools."""
        assert self._process is not None
        return host_pools(self._process.pid)

    def log_tail(self, n_lines: int = 40) -> str:
        """The last lines of the log."""
        with self.log_path.open(errors="replace") as log:
            return "".join(deque(log, n_lines))

    def _wait_until_healthy(self) -> None:
        assert self._process is not None
        client, started, last_said = self.client, time.monotonic(), 0.0
        while not client.is_healthy():
            waited = time.monotonic() - started
            if self._process.poll() is not None:
                raise ServerError(
                    self._story(f"vllm serve ended with status {self._process.returncode} while starting")
                )
            if waited > self._start_timeout_s:
                raise ServerError(self._story(f"vllm serve was not healthy after {self._start_timeout_s:.0f} s"))
            if waited - last_said >= 10:
                last_said = waited
                self._on_progress(f"still starting, {waited:.0f} s")
            time.sleep(0.25)
        self._on_progress(f"healthy after {time.monotonic() - started:.0f} s")

    def _story(self, what: str) -> str:
        return f"{what}\n{self.log_tail()}\nwhole log: {self.log_path}"


def _environment() -> dict[str, str]:
    """This process's environment with what every server here needs; a caller's own setting of a name wins."""
    cpus = sorted(os.sched_getaffinity(0))
    return {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_SERVER_DEV_MODE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        # By itself vLLM computes with more threads when there is a KV connector, and so with other roundings.
        # One CPU is left to the scheduler: beside spinning compute threads both would be slow.
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(str(cpu) for cpu in cpus[: max(1, len(cpus) - 1)]),
    } | os.environ


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
