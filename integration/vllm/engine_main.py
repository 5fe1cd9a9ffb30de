"""The process behind `integration.vllm.engine.Engine`: one offline LLM that does what JSON lines on a pipe say."""

import json
import os
import time
from pathlib import Path
from typing import Any


def _block_hashes(worker: Any) -> list[str]:
    """Runs in a worker process: a digest of every KV block's bytes, all layers of this rank together."""
    import hashlib  # noqa: PLC0415 - shipped to another process

    import torch  # noqa: PLC0415

    runner = worker.model_runner
    caches = runner.kv_caches
    n_blocks = runner.kv_cache_config.num_blocks
    digests = []
    for block in range(n_blocks):
        digest = hashlib.blake2b(digest_size=16)
        for cache in caches:
            axis = list(cache.shape).index(n_blocks)
            page = cache.select(axis, block).contiguous().view(torch.uint8)
            digest.update(page.numpy().tobytes())
        digests.append(digest.hexdigest())
    return digests


def _outputs(outputs: list[Any]) -> list[dict[str, Any]]:
    return [
        {
            "prompt_tokens": len(output.prompt_token_ids),
            "cached": output.num_cached_tokens,
            "tokens": list(output.outputs[0].token_ids),
        }
        for output in outputs
    ]


def _generate(llm: Any, call: dict[str, Any]) -> list[dict[str, Any]]:
    from vllm import SamplingParams  # noqa: PLC0415 - after the pipe is set up
    from vllm.lora.request import LoRARequest  # noqa: PLC0415

    params = SamplingParams(temperature=0, max_tokens=call["max_tokens"], ignore_eos=True)
    prompts = []
    for tokens in call["prompts"]:
        prompt: dict[str, Any] = {"prompt_token_ids": tokens}
        if call.get("salt"):
            prompt["cache_salt"] = call["salt"]
        prompts.append(prompt)
    lora = LoRARequest("adapter", 1, call["lora"]) if call.get("lora") else None
    return _outputs(llm.generate(prompts, params, use_tqdm=False, lora_request=lora))


def _reset(llm: Any, connector: bool) -> bool:
    deadline = time.monotonic() + 20
    while not llm.reset_prefix_cache(reset_connector=connector):  # refused while a copy still reads a block
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _metrics(llm: Any) -> dict[str, float]:
    values: dict[str, float] = {}
    for metric in llm.get_metrics():
        labels = "".join(f"{{{k}={v}}}" for k, v in sorted(metric.labels.items()) if k not in ("engine", "model_name"))
        if hasattr(metric, "value"):
            values[metric.name + labels] = metric.value
    return values


def _slow_down_reads() -> None:
    """Every read from disk first takes the seconds that a file says, in helper processes started from now on."""
    folder = Path(__file__).with_name("slow_reads")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])


def _spin_for(seconds: float) -> None:
    """So long after a message processes spin for the next; vLLM's second keeps a core busy that others measure on."""
    from vllm.distributed.device_communicators.shm_broadcast import SpinCondition  # noqa: PLC0415 - slow

    assert SpinCondition.__init__.__defaults__ == (1,)
    SpinCondition.__init__.__defaults__ = (seconds,)


def _as_tests_ask() -> None:
    if "KVTIER_TEST_READ_DELAY" in os.environ:
        _slow_down_reads()
    if "KVTIER_TEST_SPIN_S" in os.environ:
        _spin_for(float(os.environ["KVTIER_TEST_SPIN_S"]))


def main(call_fd: int, answer_fd: int) -> None:
    """Build the LLM from the first line, then answer one line per call until the pipe ends."""
    calls = os.fdopen(call_fd, "r")
    answers = os.fdopen(answer_fd, "w")

    def answer(tree: Any) -> None:
        answers.write(json.dumps(tree) + "\n")
        answers.flush()

    _as_tests_ask()
    from vllm import LLM  # noqa: PLC0415 - slow; the parent's pipe is open by now
    from vllm.config import KVTransferConfig  # noqa: PLC0415

    kwargs = json.loads(calls.readline())
    if "kv_transfer_config" in kwargs:
        kwargs["kv_transfer_config"] = KVTransferConfig(**kwargs["kv_transfer_config"])
    llm = LLM(**kwargs)
    answer("ready")
    for line in calls:
        call = json.loads(line)
        match call["op"]:
            case "generate":
                answer(_generate(llm, call))
            case "reset":
                answer(_reset(llm, call["connector"]))
            case "block_hashes":
                answer(llm.collective_rpc(_block_hashes))
            case "metrics":
                answer(_metrics(llm))
            case "tokenize":
                answer([llm.get_tokenizer().encode(text) for text in call["texts"]])
