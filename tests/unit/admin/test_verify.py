"""kvtier verify: every frame that an engine would refuse is found and named, and --fix deletes it."""

import json
import os
from pathlib import Path

import pytest

from kvtier.admin import verify as verify_module
from kvtier.admin.verify import verify
from kvtier.cli.main import main
from kvtier.codec.frame import frame_checksum
from kvtier.codec.guard import PLAIN, Hmac
from kvtier.store.lmdb import LmdbStore
from kvtier.types import ChunkKey
from tests.rigs.cache_dir import CHUNK_BYTES, CacheDir

OTHER = Hmac(bytes(range(1, 33)))


@pytest.fixture
def keys(cache: CacheDir) -> list[ChunkKey]:
    """Of 100 sound frames."""
    keys = [cache.key(n) for n in range(100)]
    cache.fill({key: n for n, key in enumerate(keys)})
    return keys


def test_a_sound_store_is_sound(cache: CacheDir, keys: list[ChunkKey]) -> None:
    found = verify(cache.path)
    assert found.sound
    assert (found.frames, found.raw_bytes, found.bad) == (len(keys), len(keys) * CHUNK_BYTES, [])


def test_a_changed_byte_is_found_and_named(cache: CacheDir, keys: list[ChunkKey]) -> None:
    cache.corrupt(17)
    found = verify(cache.path)
    assert [(bad.key, bad.kind) for bad in found.bad] == [(keys[17], "corrupt")]
    assert "checksum is" in found.bad[0].why
    assert found.frames == 99
    assert not found.sound


def test_a_frame_under_another_key_is_foreign(cache: CacheDir) -> None:
    mine, other = cache.key(1), cache.key(2)
    cache.fill({mine: 1})
    store = LmdbStore.attach(cache.path)
    with store.read(0, mine) as frame:
        assert frame is not None
        content = bytes(frame)
    store.write(0, [(other, memoryview(content))], [])
    store.close()
    assert [(bad.key, bad.kind) for bad in verify(cache.path).bad] == [(other, "foreign")]


def test_fix_deletes_what_is_bad_and_nothing_else(cache: CacheDir, keys: list[ChunkKey]) -> None:
    cache.corrupt(3)
    cache.corrupt(4)
    assert verify(cache.path, fix=True).sound
    assert cache.present() == set(keys) - {keys[3], keys[4]}
    assert verify(cache.path).bad == []


def test_a_claim_of_a_huge_chunk_allocates_nothing(
    cache: CacheDir, keys: list[ChunkKey], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify_module, "MAX_CHUNK_BYTES", CHUNK_BYTES - 1)
    found = verify(cache.path)
    assert len(found.bad) == len(keys)
    assert "are believed" in found.bad[0].why


def test_progress_reaches_the_end(cache: CacheDir, keys: list[ChunkKey]) -> None:
    told: list[tuple[int, int]] = []
    verify(cache.path, progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (len(keys), len(keys))
    assert told == sorted(told)


def test_a_damaged_shard_is_named_and_the_others_are_verified(cache: CacheDir, keys: list[ChunkKey]) -> None:
    os.truncate(cache.path / "shard-0001.lmdb", 12345)
    found = verify(cache.path)
    assert found.frames == len(keys) // 2
    assert not found.sound
    assert "shard-0001.lmdb: it is 12345 bytes long" in found.notices[0]


def test_exit_codes_tell_sound_from_bad(
    cache: CacheDir, keys: list[ChunkKey], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(cache.path)]) == 0
    cache.corrupt(5)
    assert main(["verify", str(cache.path)]) == 1
    assert keys[5].hex()[:64] in capsys.readouterr().out
    assert main(["verify", str(cache.path), "--fix", "--json"]) == 0
    tree = json.loads(capsys.readouterr().out)
    assert (tree["sound"], tree["stores"][0]["deleted_frames"]) == (True, 1)
    assert main(["verify", str(cache.path)]) == 0


def test_no_store_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(tmp_path)]) == 2
    assert "no kvtier cache there" in capsys.readouterr().err


def test_frames_under_a_key_are_opened_with_it_and_checked_for_damage_without(cache: CacheDir) -> None:
    keys = {cache.key(n): n for n in range(4)}
    cache.fill(keys, guard=Hmac(bytes(range(32))))
    with_key, without, other = (verify(cache.path, guard=guard) for guard in (Hmac(bytes(range(32))), PLAIN, OTHER))
    assert with_key.sound
    assert without.sound
    assert other.sound
    assert [found.locked for found in (with_key, without, other)] == [0, 4, 4]
    cache.corrupt(2)
    assert [(bad.key, bad.kind) for bad in verify(cache.path).bad] == [(cache.key(2), "corrupt")]


def test_a_forged_frame_is_found_with_the_key(cache: CacheDir) -> None:
    guard = Hmac(bytes(range(32)))
    key = cache.key(1)
    cache.fill({key: 1}, guard=guard)
    store = LmdbStore.attach(cache.path)
    with store.read(0, key) as frame:
        assert frame is not None
        content = bytearray(frame)
    content[-1] ^= 1
    content[48:64] = frame_checksum(memoryview(content))
    store.write(0, [(key, memoryview(content))], [])
    store.close()
    assert verify(cache.path).sound
    assert "MAC" in verify(cache.path, guard=guard).bad[0].why
