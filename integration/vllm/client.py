"""HTTP client of a vLLM server for tests and the demo: prompts go out, replies with timings and cache counts come back.

Standard library only, one connection per request, no retries: what the server did is what the caller sees.
"""

import http.client
import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

Message = Mapping[str, str]
"""One chat message: its role and its content."""

_SAMPLE = re.compile(r"^(?P<name>[A-Za-z_:][\w:]*)(?:\{(?P<labels>.*)\})?\s+(?P<value>\S+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


class HttpError(RuntimeError):
    """The server answered with an error status, or broke off a stream."""


@dataclass(frozen=True, slots=True)
class Reply:
    """One finished generation. `cached_tokens` counts the prompt tokens that were not computed again."""

    text: str
    token_ids: tuple[int, ...]
    prompt_tokens: int
    cached_tokens: int
    ttft_s: float
    total_s: float


@dataclass(frozen=True, slots=True)
class Metrics:
    """One scrape of /metrics."""

    samples: tuple[tuple[str, Mapping[str, str], float], ...]

    def total(self, name: str, **labels: str) -> float:
        """Sum of all samples called `name` whose labels include `labels`; 0 when there is none."""
        return sum(value for n, got, value in self.samples if n == name and labels.items() <= got.items())

    def names(self) -> frozenset[str]:
        """Every sample name of the scrape."""
        return frozenset(name for name, _, _ in self.samples)

    def cached_by_source(self) -> dict[str, int]:
        """Prompt tokens served from each cache since the server started: device, host, disk, ..."""
        wanted = "vllm:prompt_tokens_cached_by_source_total"
        totals: dict[str, int] = {}
        for name, labels, value in self.samples:
            if name == wanted:
                totals[labels["source"]] = totals.get(labels["source"], 0) + int(value)
        return totals


def parse_metrics(text: str) -> Metrics:
    """Read the Prometheus text format; comments and unreadable lines are skipped."""
    samples = []
    for line in text.splitlines():
        if line.startswith("#") or (match := _SAMPLE.match(line)) is None:
            continue
        labels = dict(_LABEL.findall(match["labels"] or ""))
        samples.append((match["name"], labels, float(match["value"])))
    return Metrics(tuple(samples))


class Client:
    """Talks to one server; greedy decoding unless a call says otherwise. Thread-safe: no state but the address."""

    def __init__(self, base_url: str, model: str, timeout_s: float = 300.0) -> None:
        parts = urlsplit(base_url)
        assert parts.hostname is not None
        assert parts.port is not None
        self._host, self._port = parts.hostname, parts.port
        self._model = model
        self._timeout_s = timeout_s

    def chat(self, messages: Sequence[Message], max_tokens: int = 32, **sampling: object) -> Reply:
        """One chat turn, streamed."""
        body = {"messages": list(messages), "max_completion_tokens": max_tokens, **sampling}
        return self._generate("/v1/chat/completions", body)

    def complete(self, prompt: str | Sequence[int], max_tokens: int = 32, **sampling: object) -> Reply:
        """Continue a text or a list of token ids, streamed."""
        body = {"prompt": prompt if isinstance(prompt, str) else list(prompt), "max_tokens": max_tokens, **sampling}
        return self._generate("/v1/completions", body)

    def drop_device_cache(self, give_up_after_s: float = 30.0) -> None:
        """Forget the engine's own prefix cache; kvtier's tiers stay. Needs VLLM_SERVER_DEV_MODE=1.

        The engine refuses while transfers are still reading its blocks, so this asks again until `give_up_after_s`.
        """
        deadline = time.monotonic() + give_up_after_s
        while not json.loads(self.request("POST", "/reset_prefix_cache"))["success"]:
            if time.monotonic() > deadline:
                raise HttpError(f"the engine did not drop its prefix cache within {give_up_after_s:.0f} s")
            time.sleep(0.1)

    def metrics(self) -> Metrics:
        """Scrape /metrics."""
        return parse_metrics(self.request("GET", "/metrics").decode())

    def tokenize(self, text: str) -> list[int]:
        """Token ids of `text`, without a chat template."""
        body = {"model": self._model, "prompt": text, "add_special_tokens": False}
        tokens: list[int] = json.loads(self.request("POST", "/tokenize", body))["tokens"]
        return tokens

    def is_healthy(self, timeout_s: float = 2.0) -> bool:
        """Whether /health answers 200 now; a refused connection is a plain no."""
        try:
            self.request("GET", "/health", timeout_s=timeout_s)
        except (OSError, http.client.HTTPException, HttpError):
            return False
        return True

    def request(self, method: str, path: str, body: object = None, timeout_s: float | None = None) -> bytes:
        """One exchange. Raises HttpError on a status of 400 or more, OSError when there is no server."""
        connection = http.client.HTTPConnection(self._host, self._port, timeout=timeout_s or self._timeout_s)
        try:
            return self._open(connection, method, path, body).read()
        finally:
            connection.close()

    def _generate(self, path: str, body: dict[str, Any]) -> Reply:
        body = {
            "model": self._model,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            "return_token_ids": True,
        } | body
        connection = http.client.HTTPConnection(self._host, self._port, timeout=self._timeout_s)
        started = time.perf_counter()
        ttft_s: float | None = None
        text: list[str] = []
        token_ids: list[int] = []
        usage: dict[str, Any] | None = None
        try:
            for event in _events(self._open(connection, "POST", path, body)):
                if "error" in event:
                    raise HttpError(f"{path}: {event['error']}")
                for choice in event.get("choices", ()):
                    token_ids += choice.get("token_ids") or ()
                    text.append(choice["text"] if "text" in choice else choice["delta"].get("content") or "")
                    # A chat stream opens with a chunk that only names the role: it can come before any token.
                    if ttft_s is None and choice.get("token_ids"):
                        ttft_s = time.perf_counter() - started
                usage = event.get("usage") or usage
        finally:
            connection.close()
        if usage is None or ttft_s is None:
            raise HttpError(f"{path}: the stream ended without a token or without its usage record")
        return Reply(
            text="".join(text),
            token_ids=tuple(token_ids),
            prompt_tokens=usage["prompt_tokens"],
            cached_tokens=(usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0,
            ttft_s=ttft_s,
            total_s=time.perf_counter() - started,
        )

    def _open(
        self, connection: http.client.HTTPConnection, method: str, path: str, body: object
    ) -> http.client.HTTPResponse:
        payload = None if body is None else json.dumps(body)
        connection.request(method, path, payload, {"Content-Type": "application/json"} if payload else {})
        response = connection.getresponse()
        if response.status >= http.HTTPStatus.BAD_REQUEST:
            raise HttpError(f"{method} {path}: HTTP {response.status}: {response.read(2000).decode(errors='replace')}")
        return response


def _events(response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    for line in response:
        data = line.strip().removeprefix(b"data:").strip()
        if data == b"[DONE]":
            return
        if data:
            yield json.loads(data)
