"""kvtier export and import: a namespace arrives as it was, in whatever epoch; a file that is unsound brings nothing."""

import io
import json
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvtier.admin.carry import MAGIC, export, import_
from kvtier.admin.inspect import examine
from kvtier.admin.verify import verify
from kvtier.cli.main import main
from kvtier.codec.frame import frame_bound, open_into, seal_into
from kvtier.codec.guard import Hmac
from kvtier.codec.guards import guarded
from kvtier.errors import InputError
from kvtier.keys import tenant_digest
from kvtier.store.listing import records_of
from kvtier.store.lmdb import LmdbStore
from kvtier.types import ChunkKey
from tests.rigs.cache_dir import CHUNK_BYTES, CODEC, LLAMA, QWEN, CacheDir, chunk

HMAC = Hmac(bytes(range(32)))


@pytest.fixture
def source(tmp_path: Path) -> CacheDir:
    """Ten frames of Llama, one of a tenant among them, and one of Qwen."""
    cache = CacheDir(tmp_path / "source")
    cache.name(LLAMA)
    cache.name(QWEN)
    cache.fill({cache.key(n): n for n in range(9)} | {cache.key(9, tenant=tenant_digest("a")): 9}, written_s=777)
    cache.fill({cache.key(50, QWEN): 50})
    return cache


@pytest.fixture
def target(tmp_path: Path) -> CacheDir:
    return CacheDir(tmp_path / "target")


def exported(cache: CacheDir) -> bytes:
    out = io.BytesIO()
    export(cache.path, "Llama-8B", out)
    return out.getvalue()


def contents(cache: CacheDir) -> dict[ChunkKey, bytes]:
    store = LmdbStore.attach(cache.path)
    found = {}
    for record in records_of(store.scan()):
        with store.read(record.shard, record.key) as frame:
            assert frame is not None
            out = bytearray(CHUNK_BYTES)
            open_into(frame, memoryview(out), key=record.key)
            found[record.key] = bytes(out)
    store.close()
    return found


def test_a_namespace_arrives_whole_and_nothing_else_does(source: CacheDir, target: CacheDir) -> None:
    done = import_(target.path, io.BytesIO(exported(source)))
    assert (done.frames, done.present, done.bad, done.no_room) == (10, 0, 0, 0)
    expected = {source.key(n): chunk(n) for n in range(9)} | {source.key(9, tenant=tenant_digest("a")): chunk(9)}
    assert contents(target) == expected


def test_frames_keep_their_age(source: CacheDir, target: CacheDir) -> None:
    import_(target.path, io.BytesIO(exported(source)))
    (holding,) = examine(target.path).holdings
    assert (holding.oldest_ns, holding.newest_ns) == (777 * 10**9, 777 * 10**9)


def test_in_another_epoch_frames_are_sealed_anew_under_its_keys(source: CacheDir, target: CacheDir) -> None:
    target.name(LLAMA).bump()
    import_(target.path, io.BytesIO(exported(source)))
    assert target.name(LLAMA).name == "2"
    assert contents(target)[target.key(3, epoch="2")] == chunk(3)
    assert verify(target.path).frames == 10


def guarded_source(tmp_path: Path) -> CacheDir:
    """One frame under a key, of the namespace that has the key's name."""
    cache = CacheDir(tmp_path / "guarded")
    namespace = guarded(LLAMA, HMAC)
    cache.name(namespace)
    key = cache.key(1, namespace)
    room = memoryview(bytearray(frame_bound(CHUNK_BYTES, CODEC, HMAC)))
    n_bytes = seal_into(memoryview(chunk(1)), room, key=key, codec=CODEC, guard=HMAC)
    store = LmdbStore.attach(cache.path)
    store.write(0, [(key, room[:n_bytes])], [])
    store.close()
    return cache


def test_frames_under_a_key_arrive_where_the_key_is_given(tmp_path: Path, target: CacheDir) -> None:
    target.name(guarded(LLAMA, HMAC)).bump()
    done = import_(target.path, io.BytesIO(exported(guarded_source(tmp_path))), guard=HMAC)
    assert (done.frames, done.bad) == (1, 0)
    found = verify(target.path, guard=HMAC)
    assert (found.frames, found.locked) == (1, 0)


def test_frames_under_a_key_that_is_not_given_are_refused_with_the_remedy(tmp_path: Path, target: CacheDir) -> None:
    with pytest.raises(InputError, match="name a YAML whose `integrity` or `encryption` has it"):
        import_(target.path, io.BytesIO(exported(guarded_source(tmp_path))))
    assert target.present() == set()


def test_a_second_import_brings_nothing_new(source: CacheDir, target: CacheDir) -> None:
    import_(target.path, io.BytesIO(exported(source)))
    again = import_(target.path, io.BytesIO(exported(source)))
    assert (again.frames, again.present) == (0, 10)


def test_what_does_not_verify_is_not_exported(source: CacheDir) -> None:
    source.corrupt(4)
    out = io.BytesIO()
    done = export(source.path, "Llama-8B", out)
    assert (done.frames, done.bad) == (9, 1)


def test_a_changed_byte_on_the_way_costs_that_frame_alone(source: CacheDir, target: CacheDir) -> None:
    content = bytearray(exported(source))
    at = bytes(content).find(chunk(2)[::2])
    content[at + 50] ^= 1
    done = import_(target.path, io.BytesIO(bytes(content)))
    assert (done.frames, done.bad) == (9, 1)
    assert verify(target.path).sound


def test_an_import_evicts_nothing(source: CacheDir, tmp_path: Path) -> None:
    full = CacheDir(tmp_path / "full")
    store = LmdbStore.attach(full.path)
    room = store.shard_bytes
    store.close()
    full.fill({full.key(1000 + n, QWEN): n % 50 for n in range(2 * room // (CHUNK_BYTES * 2 // 3))})
    before = full.present()
    done = import_(full.path, io.BytesIO(exported(source)))
    assert (done.frames, done.no_room) == (0, 10)
    assert full.present() == before


def test_a_file_that_is_cut_short_is_an_error_and_what_came_before_is_sound(source: CacheDir, target: CacheDir) -> None:
    content = exported(source)
    with pytest.raises(InputError, match="cut short"):
        import_(target.path, io.BytesIO(content[: len(content) // 2]))
    assert verify(target.path).sound


@pytest.mark.parametrize("cut", [0, 3, 8, 11, 40, -1, -14])
def test_a_file_cut_anywhere_is_an_error(cut: int, source: CacheDir, target: CacheDir) -> None:
    with pytest.raises(InputError):
        import_(target.path, io.BytesIO(exported(source)[:cut]))


def test_a_huge_claim_allocates_nothing(target: CacheDir) -> None:
    with pytest.raises(InputError, match="are believed"):
        import_(target.path, io.BytesIO(MAGIC + struct.pack("<I", 2**32 - 1)))
    header = json.dumps({"namespace": dict(LLAMA.fields), "epoch": 0, "family": LLAMA.family("0").hex()}).encode()
    record = struct.pack("<HIQ", 48, 2**32 - 1, 0)
    with pytest.raises(InputError, match="frame 1 claims a key of 48 and a length of 4294967295 bytes"):
        import_(target.path, io.BytesIO(MAGIC + struct.pack("<I", len(header)) + header + record))


def test_a_header_whose_family_is_not_its_namespaces_is_refused(source: CacheDir, target: CacheDir) -> None:
    content = exported(source).replace(b"Llama-8B", b"Llama-9B", 1)
    with pytest.raises(InputError, match="do not belong together"):
        import_(target.path, io.BytesIO(content))


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_the_file_holds_only_sound_frames_come_in(
    data: st.DataObject, source: CacheDir, target: CacheDir
) -> None:
    content = bytearray(exported(source)[:30_000])
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with pytest.raises(InputError):  # cut short at the latest
        import_(target.path, io.BytesIO(bytes(content)))
    assert all(found in map(chunk, range(10)) for found in contents(target).values())


def test_the_commands_carry_through_a_file(
    source: CacheDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "llama.kvtx"
    assert main(["export", str(source.path), "--namespace", "Llama-8B", "-o", str(file)]) == 0
    assert file.stat().st_mode & 0o777 == 0o600
    (tmp_path / "kvtier.yaml").write_text("disk: {path: new, capacity: 64MiB}\n")
    capsys.readouterr()
    assert main(["import", str(file), str(tmp_path / "kvtier.yaml"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["frames"] == 10
    assert verify(tmp_path / "new").frames == 10


def test_a_failed_export_leaves_no_file(source: CacheDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(source.path), "--namespace", "GPT", "-o", str(tmp_path / "x")]) == 2
    assert "there is none; there are:" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_an_import_into_nothing_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert main(["import", str(tmp_path / "x"), str(tmp_path / "empty")]) == 2
    assert "name the YAML file instead, which says how large" in capsys.readouterr().err
