"""No fault of a tier fails a request or changes an answer: each is a counted miss."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import lmdb
import pytest

from integration.vllm.conftest import CHUNK, N_CHUNKS, TINY, Plain, prompts, tree
from integration.vllm.engine import Engine, frames_on_disk, wait_for_frames

pytestmark = pytest.mark.timeout(600)
FULL = N_CHUNKS * CHUNK


@pytest.fixture(scope="module")
def warm_disk(tiny: Path, plain_tiny: Plain, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("warm")
    with Engine(tiny, folder / "log", kvtier=tree(folder / "disk"), **TINY) as engine:
        engine.generate([plain_tiny.prompts[0]])
        wait_for_frames(folder / "disk", N_CHUNKS)
    return folder / "disk"


@pytest.fixture
def disk(warm_disk: Path, tmp_path: Path) -> Path:
    shutil.copytree(warm_disk, tmp_path / "disk")
    return tmp_path / "disk"


def rewrite_frames(disk: Path, change: object) -> int:
    """Apply `change(list of (key, frame))` to every shard, past the engine; returns the number of frames changed."""
    n_changed = 0
    for path in set(frames_on_disk(disk).values()):
        env = lmdb.open(str(path), subdir=False, max_dbs=4, map_size=path.stat().st_size + (64 << 20))
        frames, index = env.open_db(b"frames", create=False), env.open_db(b"index", create=False)
        with env.begin(write=True) as txn:
            old = [(bytes(k), bytes(v)) for k, v in txn.cursor(frames)]
            lengths = {bytes(v): bytes(txn.get(k, db=index)) for k, v in old}
            for key, value in change(old):  # type: ignore[operator]
                txn.put(key, value, db=frames)
                entry = lengths.get(value) or txn.get(key, db=index)
                txn.put(key, entry[:16], db=index)  # without the page of the frame that was there before
                n_changed += 1
        env.close()
    return n_changed


def counted(engine: Engine, counter: str) -> float:
    """A counter after the next export: at most one a second, with a step of the engine."""
    time.sleep(1.1)
    engine.generate([prompts(1, n_tokens=8)[0]], max_tokens=2)
    return engine.metrics()[counter]


def check_heals(tiny: Path, plain: Plain, disk: Path, log: Path, counter: str, n_cached: int) -> None:
    """The first answer misses from the damage on, the second, after a restart, has the healed chunks again."""
    with Engine(tiny, log, kvtier=tree(disk), **TINY) as engine:
        output = engine.generate([plain.prompts[0]])[0]
        assert output.cached == n_cached
        assert output.tokens[:4] == plain.cold[0].tokens[:4]
        wait_for_frames(disk, N_CHUNKS)
        assert counted(engine, counter) > 0
        engine.kill()
    with Engine(tiny, log, kvtier=tree(disk), **TINY) as engine:
        assert engine.generate([plain.prompts[0]])[0].cached == FULL


def test_a_flipped_bit_is_a_counted_miss_that_heals(tiny: Path, plain_tiny: Plain, disk: Path, tmp_path: Path) -> None:
    def flip(frames: list[tuple[bytes, bytes]]) -> Iterator[tuple[bytes, bytes]]:
        for key, frame in frames:
            damaged = bytearray(frame)
            damaged[len(damaged) // 2] ^= 1
            yield key, bytes(damaged)

    assert rewrite_frames(disk, flip) == N_CHUNKS
    check_heals(tiny, plain_tiny, disk, tmp_path / "log", "vllm:kvtier_corrupt_frames", 0)


def test_frames_under_each_others_keys_are_counted_misses_that_heal(
    tiny: Path, plain_tiny: Plain, disk: Path, tmp_path: Path
) -> None:
    def swap(frames: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        values = [frame for _, frame in frames]
        return [(key, value) for (key, _), value in zip(frames, values[1:] + values[:1], strict=True)]

    assert rewrite_frames(disk, swap) == N_CHUNKS
    check_heals(tiny, plain_tiny, disk, tmp_path / "log", "vllm:kvtier_foreign_frames", 0)


@pytest.mark.parametrize("keep", [0, 5000, 0.5])
def test_a_truncated_shard_is_set_aside_and_the_engine_starts(
    tiny: Path, plain_tiny: Plain, disk: Path, tmp_path: Path, keep: float
) -> None:
    for path in set(frames_on_disk(disk).values()):
        os.truncate(path, int(path.stat().st_size * keep) if 0 < keep < 1 else int(keep))
    with Engine(tiny, tmp_path / "log", kvtier=tree(disk), **TINY) as engine:
        output = engine.generate([plain_tiny.prompts[0]])[0]
        assert (output.cached, output.tokens) == (0, plain_tiny.cold[0].tokens)
        wait_for_frames(disk, N_CHUNKS)


def test_a_disk_path_that_cannot_be_used_leaves_the_engine_without_that_tier(
    tiny: Path, plain_tiny: Plain, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("not a folder")
    with Engine(tiny, tmp_path / "log", kvtier=tree(tmp_path / "file"), **TINY) as engine:
        assert engine.generate([plain_tiny.prompts[0]])[0].tokens == plain_tiny.cold[0].tokens
        engine.drop_device_cache()
        assert engine.generate([plain_tiny.prompts[0]])[0].cached == FULL
        assert "disk tier is off" in engine.log()


@pytest.fixture
def small_file_system(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 8 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8M,mode=0700", "kvtier-test", str(folder)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_costs_the_tier_and_no_request(
    tiny: Path, plain_tiny: Plain, small_file_system: Path, tmp_path: Path
) -> None:
    filler = small_file_system / "filler"
    config = tree(small_file_system / "disk", disk={"capacity": "64MiB"})
    with Engine(tiny, tmp_path / "log", kvtier=config, **TINY) as engine:
        filler.write_bytes(b"x" * (5 << 20))
        for question, expected in zip(plain_tiny.prompts, plain_tiny.cold, strict=True):
            engine.drop_device_cache()
            assert engine.generate([question])[0].tokens == expected.tokens
        for question, expected in zip(plain_tiny.prompts, plain_tiny.warm, strict=True):
            engine.drop_device_cache()
            assert engine.generate([question])[0] == expected
        assert counted(engine, "vllm:kvtier_spill_failed_chunks") > 0


def test_the_tier_comes_back_when_the_disk_has_room_again(
    tiny: Path, plain_tiny: Plain, small_file_system: Path, tmp_path: Path
) -> None:
    filler = small_file_system / "filler"
    config = tree(small_file_system / "disk", disk={"capacity": "64MiB"})
    with Engine(tiny, tmp_path / "log", kvtier=config, **TINY) as engine:
        filler.write_bytes(b"x" * (7 << 20))
        engine.generate(plain_tiny.prompts[:2])
        engine.generate([prompts(1, n_tokens=8)[0]])
        filler.unlink()
        engine.generate(plain_tiny.prompts[2:4])
        wait_for_frames(small_file_system / "disk", N_CHUNKS)


def test_nothing_is_left_in_shared_memory(tiny: Path, tmp_path: Path) -> None:
    with Engine(tiny, tmp_path / "log", kvtier=tree(None), **TINY) as engine:
        engine.generate([prompts(1)[0]])
        pools = engine.host_pools()
        assert len(pools) == 1
        assert not any(pool.exists() for pool in pools)
        engine.kill()
    assert not any(pool.exists() for pool in pools)


def test_what_an_engine_killed_while_starting_left_in_shared_memory_is_removed(tiny: Path, tmp_path: Path) -> None:
    first = Engine(tiny, tmp_path / "first", kvtier=tree(None), **TINY)
    with ThreadPoolExecutor(1) as starter:
        start = starter.submit(first.__enter__)
        while not (pools := first.host_pools()) and not start.done():
            time.sleep(0.0005)
        first.kill()
        assert start.exception() is not None
    left = [pool for pool in pools if pool.exists()]
    with Engine(tiny, tmp_path / "log", kvtier=tree(None), **TINY) as engine:
        assert not any(pool.exists() for pool in left)
        assert engine.log().count("that an engine left when it was killed while starting") == len(left)


def test_a_host_tier_smaller_than_a_chunk_is_refused_by_name(tiny: Path, tmp_path: Path) -> None:
    config = tree(None, host={"capacity": "16MiB"}, chunk={"tokens": 8192})
    with pytest.raises(RuntimeError, match="the engine died"), Engine(tiny, tmp_path / "log", kvtier=config, **TINY):
        pass
    assert "do not hold one chunk" in (tmp_path / "log").read_text()
