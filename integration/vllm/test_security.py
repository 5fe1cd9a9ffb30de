"""Who gets whose KV from disk: tenants with salts, and engines with keys, each over a restart of the real engine."""

from pathlib import Path

import pytest

from integration.vllm.conftest import CHUNK, N_CHUNKS, TINY, prompts, tree
from integration.vllm.engine import Engine, wait_for_frames

pytestmark = pytest.mark.timeout(600)
QUESTION = prompts(1)[0]
FULL = N_CHUNKS * CHUNK


def key_file(folder: Path, number: int) -> str:
    path = folder / f"key-{number}"
    path.write_bytes(bytes(range(number, number + 32)))
    path.chmod(0o600)
    return str(path)


def test_after_a_restart_a_tenants_salt_still_hits_only_itself_on_disk(tiny: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with Engine(tiny, tmp_path / "log", kvtier=tree(disk), **TINY) as engine:
        engine.generate([QUESTION], salt="a")
        wait_for_frames(disk, N_CHUNKS)
    with Engine(tiny, tmp_path / "log", kvtier=tree(disk), **TINY) as engine:
        assert [engine.generate([QUESTION], salt=salt)[0].cached for salt in (None, "b", "a")] == [0, 0, FULL]


@pytest.mark.parametrize("setting", ["integrity.hmac_key_file", "encryption.key_file"])
def test_an_engine_with_the_key_hits_after_a_restart_with_equal_output_and_one_with_another_does_not(
    tiny: Path, tmp_path: Path, setting: str
) -> None:
    disk, (section, name) = tmp_path / "disk", setting.split(".")
    outputs = []
    for number in (1, 1, 2):
        keys = {section: {name: key_file(tmp_path, number)}}
        with Engine(tiny, tmp_path / "log", kvtier=tree(disk, **keys), **TINY) as engine:
            outputs.append(engine.generate([QUESTION])[0])
            wait_for_frames(disk, N_CHUNKS)
    assert [output.cached for output in outputs] == [0, FULL, 0]
    assert outputs[0].tokens == outputs[1].tokens == outputs[2].tokens
