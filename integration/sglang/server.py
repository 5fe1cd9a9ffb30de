"""A real SGLang server on a CPU for the tests: started, asked, stopped or killed."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

from integration.vllm.processes import kill_group

PAGE = 16
ADMIN_KEY = "test"
IO_OF = {"page_first": "kernel", "page_first_direct": "direct"}


class Answer(NamedTuple):
    """What a request got."""

    tokens: list[int]
    cached: dict[str, int]  # tokens by where SGLang had them: device, host, storage
    seconds: float


class SglangServer:
    """`sglang.launch_server MODEL` on a free port of 127.0.0.1 with a hierarchical cache. Token ids in and out."""

    def __init__(
        self,
        model: Path,
        log: Path,
        *,
        layout: str = "page_first",
        args: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.log = log
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self._env = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | os.environ | dict(env or {})
        self._command = [
            sys.executable, "-m", "sglang.launch_server", "--model-path", str(model), "--host", "127.0.0.1",
            "--port", str(self._port), "--device", "cpu", "--attention-backend", "torch_native",
            "--sampling-backend", "pytorch", "--grammar-backend", "none", "--disable-overlap-schedule",
            "--disable-cuda-graph", "--mem-fraction-static", "0.1", "--max-total-tokens", "4096",
            "--page-size", str(PAGE), "--chunked-prefill-size", "1024", "--skip-server-warmup", "--skip-tokenizer-init",
            "--random-seed", "1", "--admin-api-key", ADMIN_KEY, "--enable-metrics", "--enable-hierarchical-cache",
            "--hicache-ratio", "2", "--hicache-mem-layout", layout, "--hicache-io-backend", IO_OF[layout],
            "--hicache-storage-prefetch-policy", "wait_complete", *args,
        ]  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdout=log, stderr=subprocess.STDOUT, env=self._env, start_new_session=True
            )
        try:
            self._wait_until_healthy()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def stop(self) -> None:
        """End the server as an operator does."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(30)
        self.kill()

    def kill(self) -> None:
        """SIGKILL the server and all its processes."""
        if self._process is not None:
            kill_group(self._process.pid)
            self._process.wait()
            self._process = None

    def generate(self, prompt: Sequence[int], *, n_tokens: int = 8, **fields: Any) -> Answer:
        """Greedy tokens for `prompt`, and how long all of them took."""
        sampling = {"temperature": 0, "max_new_tokens": n_tokens, "ignore_eos": True}
        began = time.monotonic()
        answer = json.loads(
            self.call("POST", "/generate", {"input_ids": list(prompt), "sampling_params": sampling, **fields})
        )
        details = answer["meta_info"].get("cached_tokens_details") or {}
        cached = {source: details.get(source, 0) for source in ("device", "host", "storage")}
        return Answer(list(answer["output_ids"]), cached, time.monotonic() - began)

    def flush(self) -> None:
        """Empty SGLang's own caches, device and host, once no request's pages are on their way any more."""
        give_up = time.monotonic() + 30
        while True:
            try:
                self.call("POST", "/flush_cache")
            except urllib.error.HTTPError:
                if time.monotonic() > give_up:
                    raise
                time.sleep(0.2)
            else:
                return

    def attach(self, extra_config: str) -> None:
        """Attach kvtier to the running server."""
        body = {"hicache_storage_backend": "dynamic", "hicache_storage_backend_extra_config_json": extra_config}
        self.call("PUT", "/hicache/storage-backend", body)

    def detach(self) -> None:
        """Detach the storage backend."""
        self.call("DELETE", "/hicache/storage-backend")

    def clear(self) -> None:
        """Clear the storage backend."""
        self.call("POST", "/hicache/storage-backend/clear")

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples with these labels."""
        total = 0.0
        for line in self.call("GET", "/metrics").decode().splitlines():
            match = re.fullmatch(rf"{re.escape(name)}(?:{{(.*)}})? (\S+)", line)
            if match and all(f'{key}="{value}"' in (match[1] or "") for key, value in labels.items()):
                total += float(match[2])
        return total

    def wait_for_metric(self, name: str, at_least: float, **labels: str) -> None:
        """Wait until a metric has come to `at_least`."""
        give_up = time.monotonic() + 30
        while (value := self.metric(name, **labels)) < at_least:
            assert time.monotonic() < give_up, f"{name} {labels} is {value}, not {at_least}"
            time.sleep(0.2)

    def call(self, method: str, path: str, body: object = None) -> bytes:
        """One HTTP call; HTTPError unless it succeeded."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {ADMIN_KEY}"}
        request = urllib.request.Request(f"http://127.0.0.1:{self._port}{path}", data, headers, method=method)
        with urllib.request.urlopen(request, timeout=120) as response:
            return bytes(response.read())

    def log_text(self) -> str:
        """What the server has written so far."""
        return self.log.read_text(errors="replace")

    def _wait_until_healthy(self) -> None:
        assert self._process is not None
        give_up = time.monotonic() + 420
        while True:
            with contextlib.suppress(OSError):
                self.call("GET", "/health")
                return
            if self._process.poll() is not None or time.monotonic() > give_up:
                raise RuntimeError(f"SGLang did not start:\n{self.log_text()[-4000:]}\nwhole log: {self.log}")
            time.sleep(0.5)
