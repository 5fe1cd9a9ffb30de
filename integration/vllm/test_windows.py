"""Chunks of sliding-window layers whose first blocks left the device before the chunk was complete."""

from pathlib import Path
from typing import Any

import pytest

from integration.vllm.conftest import TINY, prompts, tree
from integration.vllm.engine import Engine

pytestmark = pytest.mark.timeout(300)

STEP = 192
SMALL: dict[str, Any] = {
    **TINY, "max_num_batched_tokens": STEP, "max_num_seqs": 2, "max_model_len": 1024, "num_gpu_blocks_override": 320,
}  # fmt: skip


@pytest.mark.parametrize("n_tokens", [STEP + 90, 2 * STEP + 90])
def test_a_chunk_longer_than_the_window_is_not_loaded_unless_all_of_it_was_stored(
    sliding: Path, tmp_path: Path, n_tokens: int
) -> None:
    """A chunk of 256 tokens is computed in two steps. The second is given blocks that the window of 64 left behind in
    the first, two of a chunk's first four in one of the groups: that chunk is not whole any more."""
    question = prompts(1, n_tokens=n_tokens)[0]
    with Engine(sliding, tmp_path / "plain", **SMALL) as engine:
        expected = engine.generate([question])[0].tokens
        assert engine.generate([[*question[:100], *prompts(1, seed=2)[0][:90]]])[0].tokens != expected
    with Engine(sliding, tmp_path / "log", kvtier=tree(None, chunk={"tokens": 256}), **SMALL) as engine:
        assert engine.generate([question])[0].tokens == expected
        for _ in range(2):
            engine.drop_device_cache()
            assert engine.generate([question])[0].tokens == expected
