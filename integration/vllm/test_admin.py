"""The commands that look after a cache, beside real engines: purges reach host RAM, the doctor compares."""

import json
import time
from pathlib import Path

import pytest

from integration.vllm.conftest import CHUNK, N_CHUNKS, TINY, prompts, tree
from integration.vllm.engine import Engine, wait_for_frames
from kvtier.cli.main import main

pytestmark = pytest.mark.timeout(600)
QUESTION, OTHER = prompts(2)
FULL = N_CHUNKS * CHUNK


def test_a_purge_reaches_the_host_memory_of_a_running_engine(tiny: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with Engine(tiny, tmp_path / "log", kvtier=tree(disk), **TINY) as engine:
        engine.generate([QUESTION], salt="mine")
        engine.generate([QUESTION], salt="theirs")
        wait_for_frames(disk, 2 * N_CHUNKS)
        assert main(["purge", str(disk), "--salt", "mine"]) == 0
        engine.drop_device_cache()
        hits = {salt: engine.generate([QUESTION], salt=salt)[0].cached for salt in ("mine", "theirs")}
    assert hits == {"mine": 0, "theirs": FULL}


def test_a_purge_beside_an_engine_leaves_nothing_on_disk(tiny: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with Engine(tiny, tmp_path / "log", kvtier=tree(disk), **TINY) as engine:
        engine.generate([QUESTION])
        frames = wait_for_frames(disk, N_CHUNKS)
        words = [stored_bytes(shard, key) for key, shard in frames.items()]
        assert all(any(word in file.read_bytes() for file in disk.glob("shard-*.lmdb")) for word in words)
        assert main(["purge", str(disk), "--all"]) == 0
        assert not any(word in file.read_bytes() for file in disk.glob("shard-*.lmdb") for word in words)
        engine.drop_device_cache()
        assert engine.generate([QUESTION])[0].cached == 0
        wait_for_frames(disk, N_CHUNKS)  # the engine goes on as before
    assert main(["verify", str(disk)]) == 0


def stored_bytes(shard: Path, key: bytes) -> bytes:
    """A stretch of bytes from the middle of a frame."""
    import lmdb  # noqa: PLC0415 - this looks behind kvtier's back

    with lmdb.open(str(shard), subdir=False, max_dbs=8, readonly=True, lock=False) as env, env.begin() as txn:
        frame: bytes = txn.get(key, db=env.open_db(b"frames", txn=txn, create=False))
    return frame[len(frame) // 2 :][:64]


def test_a_chunk_that_outlives_its_ttl_is_a_miss_in_both_tiers(tiny: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    config = tree(disk, host={"ttl": "3s"}, disk={"ttl": "3s"})
    with Engine(tiny, tmp_path / "log", kvtier=config, **TINY) as engine:
        engine.generate([QUESTION])
        engine.drop_device_cache()
        assert engine.generate([QUESTION])[0].cached == FULL
        give_up_s = time.monotonic() + 30
        while engine.generate([QUESTION])[0].cached:
            assert time.monotonic() < give_up_s
            time.sleep(0.5)
            engine.drop_device_cache()


def test_an_export_warms_another_directory(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Engine(tiny, tmp_path / "log", kvtier=tree(tmp_path / "disk"), **TINY) as engine:
        engine.generate([QUESTION])
        wait_for_frames(tmp_path / "disk", N_CHUNKS)
    file = tmp_path / "tiny.kvtx"
    assert main(["export", str(tmp_path / "disk"), "--namespace", tiny.name, "-o", str(file)]) == 0
    (tmp_path / "new.yaml").write_text("disk: {path: new, capacity: 128MiB}\n")
    assert main(["import", str(file), str(tmp_path / "new.yaml")]) == 0
    with Engine(tiny, tmp_path / "log", kvtier=tree(tmp_path / "new"), **TINY) as engine:
        assert engine.generate([QUESTION])[0].cached == FULL
        usage: dict[str, int] = {}
        give_up_s = time.monotonic() + 30
        while "disk_hit_tokens" not in usage:  # counted as often as the log line comes
            assert time.monotonic() < give_up_s
            capsys.readouterr()
            assert main(["inspect", str(tmp_path / "new"), "--json"]) == 0
            (store,) = json.loads(capsys.readouterr().out)["stores"]
            usage = store["namespaces"][0]["usage"]
    assert usage["disk_hit_tokens"] == FULL


def test_the_doctor_finds_answers_equal(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engine_args = {**TINY, "block_size": 32, "num_gpu_blocks_override": 96, "gpu_memory_utilization": 0.2}
    (tmp_path / "kvtier.yaml").write_text("host: {capacity: 64MiB}\ndisk: {path: kv, capacity: 64MiB}\n")
    command = ["doctor", str(tmp_path / "kvtier.yaml"), "--model", str(tiny), "--engine-args", json.dumps(engine_args)]
    assert main([*command, "--json"]) == 0
    findings = {finding["check"]: finding for finding in json.loads(capsys.readouterr().out)["findings"]}
    assert findings["identity"]["level"] == "ok", findings["identity"]["found"]
    assert "2,048 tokens from host RAM, 2,048 from disk" in findings["identity"]["found"]
