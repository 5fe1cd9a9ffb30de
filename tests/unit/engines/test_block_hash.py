"""vLLM's chained block hash covers what kvtier leaves to it: adapters' names, multimodal inputs, cache salts."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm", reason="the engine is not installed")


@pytest.fixture(scope="module")
def block_hash() -> Callable[..., bytes]:
    from vllm.utils.hashing import sha256  # noqa: PLC0415 - seconds to import
    from vllm.v1.core import kv_cache_utils  # noqa: PLC0415

    kv_cache_utils.init_none_hash(sha256)

    def of(tokens: list[int], parent: bytes | None = None, **request: Any) -> bytes:
        fields: dict[str, Any] = {
            "lora_request": None, "mm_features": [], "cache_salt": None, "prompt_embeds": None, "mm_hashes": [],
            "mm_positions": [], "prompt_is_token_ids": None, **request,
        }  # fmt: skip
        extra, _ = kv_cache_utils.generate_block_hash_extra_keys(SimpleNamespace(**fields), 0, len(tokens), 0)
        return bytes(kv_cache_utils.hash_block_tokens(sha256, parent, tokens, extra))

    return of


TOKENS = list(range(16))


def test_equal_prefixes_hash_equally_and_the_chain_counts(block_hash: Callable[..., bytes]) -> None:
    head = block_hash(TOKENS)
    assert head == block_hash(TOKENS)
    assert block_hash(TOKENS, head) != head
    assert block_hash(TOKENS, head) != block_hash(TOKENS, block_hash(TOKENS[::-1]))


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param({"cache_salt": "tenant"}, id="cache salt"),
        pytest.param({"lora_request": SimpleNamespace(lora_name="a", lora_path="p")}, id="adapter"),
        pytest.param(
            {
                "mm_features": [
                    SimpleNamespace(identifier="picture", mm_position=SimpleNamespace(offset=2, length=4), data=None)
                ]
            },
            id="multimodal input",
        ),
    ],
)
def test_a_request_that_differs_in_more_than_tokens_hashes_differently(
    block_hash: Callable[..., bytes], request_: dict[str, Any]
) -> None:
    assert block_hash(TOKENS, **request_) != block_hash(TOKENS)


def test_two_adapters_of_one_name_differ_by_path(block_hash: Callable[..., bytes]) -> None:
    one, two = (block_hash(TOKENS, lora_request=SimpleNamespace(lora_name="a", lora_path=p)) for p in ("p", "q"))
    assert one != two
