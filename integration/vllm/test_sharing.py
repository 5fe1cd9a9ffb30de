"""Several engines on one disk directory: each finds what the others wrote, and nobody misses a killed one."""

import time
from pathlib import Path

import pytest

from integration.vllm.conftest import CHUNK, N_CHUNKS, TINY, Plain, tree
from integration.vllm.engine import Engine, wait_for_frames
from kvtier.tiers.follow import FOLLOW_EVERY_S

pytestmark = pytest.mark.timeout(600)
FULL = N_CHUNKS * CHUNK


def cached(engine: Engine, plain: Plain, number: int) -> int:
    """Tokens of a prompt that needed no computing; its answer is what vLLM alone says."""
    output = engine.generate([plain.prompts[number]])[0]
    assert output.tokens == (plain.warm if output.cached else plain.cold)[number].tokens
    return output.cached


def test_engines_hit_what_others_wrote_and_nobody_misses_a_killed_one(
    tiny: Path, plain_tiny: Plain, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    large, small = tree(disk), tree(disk, host={"capacity": "16MiB"})
    with (
        Engine(tiny, tmp_path / "first.log", kvtier=large, **TINY) as first,
        Engine(tiny, tmp_path / "second.log", kvtier=small, **TINY) as second,
    ):
        assert cached(first, plain_tiny, 0) == 0
        wait_for_frames(disk, N_CHUNKS)
        time.sleep(2 * FOLLOW_EVERY_S)
        assert cached(second, plain_tiny, 0) == FULL
        assert cached(second, plain_tiny, 1) == 0
        wait_for_frames(disk, 2 * N_CHUNKS)
        time.sleep(2 * FOLLOW_EVERY_S)
        assert cached(first, plain_tiny, 1) == FULL
        first.kill()
        assert cached(second, plain_tiny, 2) == 0
        wait_for_frames(disk, 3 * N_CHUNKS)
        with Engine(tiny, tmp_path / "third.log", kvtier=large, **TINY) as third:
            assert [cached(third, plain_tiny, n) for n in range(3)] == [FULL] * 3
        assert "disk tier is off" not in first.log() + second.log() + third.log()
