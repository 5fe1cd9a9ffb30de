"""`vllm serve` as users run it: the flag, concurrent clients, metrics, the log line, SIGKILL, and a warm restart."""

import concurrent.futures
import re
from pathlib import Path

import pytest

from integration.vllm.conftest import Plain
from integration.vllm.engine import wait_for_frames
from integration.vllm.server import VllmServer

pytestmark = pytest.mark.timeout(600)
YAML = """
host: {{capacity: 96MiB}}
disk: {{path: {disk}, capacity: 1GiB, write_behind_after: 100ms, load: always}}
chunk: {{tokens: 128}}
log: {{every: 1s}}
"""
DISK = "disk"


def serve(model: Path, folder: Path) -> VllmServer:
    (folder / "kvtier.yaml").write_text(YAML.format(disk=folder / DISK))
    return VllmServer(
        model,
        log_path=folder / "log",
        args=[
            "--kv-connector", "kvtier", "--kv-connector-config", str(folder / "kvtier.yaml"), "--block-size", "32",
            "--max-model-len", "2048", "--num-gpu-blocks-override", "96",
        ],
        env={"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_SERVER_DEV_MODE": "1"},
    )  # fmt: skip


def test_a_killed_server_comes_back_warm_and_says_so(smollm: Path, plain_smollm: Plain, tmp_path: Path) -> None:
    questions, warm = plain_smollm.prompts, [output.tokens for output in plain_smollm.warm]
    n_full = plain_smollm.warm[0].cached
    server = serve(smollm, tmp_path)
    with server:
        for question, output in zip(questions, plain_smollm.cold, strict=True):
            reply = server.client.complete(question, max_tokens=12, ignore_eos=True)
            assert (reply.token_ids, reply.cached_tokens) == (output.tokens, 0)
        wait_for_frames(tmp_path / DISK, len(questions) * n_full // 128)
        pools = server.host_pools()
        server.kill()
        server.start()
        with concurrent.futures.ThreadPoolExecutor(2) as clients:
            replies = list(clients.map(lambda q: server.client.complete(q, max_tokens=12, ignore_eos=True), questions))
        # Not their text: in bf16, two warm prompts in one batch change greedy answers in plain vLLM too.
        assert [reply.cached_tokens for reply in replies] == [n_full] * len(questions)
        assert server.client.metrics().cached_by_source()["disk"] == len(questions) * n_full
        server.client.drop_device_cache()
        replies = [server.client.complete(question, max_tokens=12, ignore_eos=True) for question in questions]
        assert [reply.token_ids for reply in replies] == warm, "what came from disk, one answer at a time"
        metrics = server.client.metrics()
        assert metrics.cached_by_source()["host"] == len(questions) * n_full
        assert metrics.total("vllm:kvtier_engine_errors_total") == 0
        pools |= server.host_pools()
    assert len(pools) == 2
    assert not any(pool.exists() for pool in pools), "left by SIGKILL or by SIGTERM"
    log = (tmp_path / "log").read_text()
    assert re.search(r"kvtier \S+ \| req \d+ \| asked \S+ hit \S+% = device \S+ host \S+ disk \S+ \|", log)
