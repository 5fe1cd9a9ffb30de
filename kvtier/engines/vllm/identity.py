"""`python -m kvtier.engines.vllm.identity`: one offline vLLM engine that answers fixed prompts, cold and again.

A JSON object on stdin says how; one on stdout tells the tokens. `kvtier doctor` runs it with and without kvtier and
compares. A process of its own: an engine's memory comes back only when its process has ended.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from typing import Any

PROMPT_TOKENS = 513
"""Two chunks of the longest default and one token: with and without kvtier the same tokens are computed after a hit, so
that rounding, which moves with the boundaries of prefill, cannot make a difference of its own."""

ANSWER_TOKENS = 16
_RESET_S = 30.0


def main() -> int:
    """Build the engine, answer, print."""
    asked = json.load(sys.stdin)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # vLLM and its workers print to stdout
    from vllm import LLM  # noqa: PLC0415 - slow, and prints

    kwargs: dict[str, Any] = {"enforce_eager": True, "seed": 0, "max_model_len": 2 * PROMPT_TOKENS} | asked[
        "engine_args"
    ]
    if asked["kvtier"] is not None:
        kwargs["kv_transfer_config"] = {
            "kv_connector": "kvtier", "kv_role": "kv_both", "kv_connector_extra_config": {"kvtier": asked["kvtier"]}
        }  # fmt: skip
    llm = LLM(model=asked["model"], **kwargs)
    rng = random.Random(1)  # noqa: S311 - the same prompts in every process
    vocabulary = range(10, min(llm.llm_engine.model_config.get_vocab_size(), 30_000))
    prompts = [rng.choices(vocabulary, k=PROMPT_TOKENS) for _ in range(asked["prompts"])]
    rounds = [_answer(llm, prompts)]
    if asked["kvtier"] is not None:
        _forget_device(llm)
    rounds.append(_answer(llm, prompts))
    json.dump({"rounds": rounds}, answers)
    answers.flush()
    return 0


def _answer(llm: Any, prompts: list[list[int]]) -> list[dict[str, Any]]:
    """One prompt at a time: the company a prompt is computed in changes its rounding too."""
    from vllm import SamplingParams  # noqa: PLC0415 - as above

    params = SamplingParams(temperature=0, max_tokens=ANSWER_TOKENS, ignore_eos=True)
    answers = []
    for prompt in prompts:
        (output,) = llm.generate([{"prompt_token_ids": prompt}], params, use_tqdm=False)
        answers.append({"tokens": list(output.outputs[0].token_ids), "cached": output.num_cached_tokens or 0})
    return answers


def _forget_device(llm: Any) -> None:
    """Empty the engine's own prefix cache and leave kvtier's tiers. Refused while copies are under way."""
    give_up_s = time.monotonic() + _RESET_S
    while not llm.reset_prefix_cache(reset_connector=False):
        if time.monotonic() > give_up_s:
            raise TimeoutError(f"the engine's prefix cache could not be emptied for {_RESET_S:.0f} s")
        time.sleep(0.05)


if __name__ == "__main__":
    sys.exit(main())
