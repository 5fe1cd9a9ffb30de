"""kvtier purge: what was chosen is gone from the index and from the files' bytes; what was not is untouched."""

import io
import json
import time
from pathlib import Path

import pytest

from kvtier.admin.purge import Choice, purge
from kvtier.admin.verify import verify
from kvtier.cli.main import main
from kvtier.errors import InputError
from kvtier.keys import tenant_digest
from tests.rigs.cache_dir import LLAMA, QWEN, CacheDir, low_plane


@pytest.fixture
def both(cache: CacheDir) -> CacheDir:
    """20 frames of either model; Llama's are older."""
    cache.name(LLAMA)
    cache.name(QWEN)
    cache.fill({cache.key(n): n for n in range(20)}, written_s=1000)
    cache.fill({cache.key(n, QWEN): n for n in range(20, 40)}, written_s=time.time())
    return cache


def of_llama(cache: CacheDir) -> set[bytes]:
    return {key for key in cache.present() if key.startswith(LLAMA.family("0"))}


def test_the_bytes_of_a_purged_namespace_are_gone_from_the_files(both: CacheDir) -> None:
    assert all(both.holds(low_plane(n)) for n in range(40))
    done = purge(both.path, Choice(namespace="Llama-8B"))
    assert done.frames == 20
    assert done.erased_bytes >= done.stored_bytes
    assert not any(both.holds(low_plane(n)) for n in range(20))
    assert all(both.holds(low_plane(n)) for n in range(20, 40))


def test_what_was_not_chosen_still_verifies(both: CacheDir) -> None:
    purge(both.path, Choice(namespace="Llama-8B"))
    found = verify(both.path)
    assert (found.frames, found.bad) == (20, [])


def test_bytes_of_frames_evicted_earlier_are_erased_too(both: CacheDir) -> None:
    from kvtier.store.lmdb import LmdbStore  # noqa: PLC0415 - as an engine does, before

    store = LmdbStore.attach(both.path)
    evicted = both.key(0)
    for shard in range(store.n_shards):
        store.write(shard, [], [evicted])
    store.close()
    assert both.holds(low_plane(0))
    purge(both.path, Choice(namespace="Llama-8B"))
    assert not both.holds(low_plane(0))


def test_a_purge_by_age_takes_the_older(both: CacheDir) -> None:
    assert purge(both.path, Choice(before_ns=2000 * 10**9)).frames == 20
    assert not of_llama(both)
    assert len(both.present()) == 20


def test_a_purge_by_salt_takes_that_tenant_alone(cache: CacheDir) -> None:
    tenants = {salt: [cache.key(ord(salt) + n, tenant=tenant_digest(salt)) for n in (0, 100)] for salt in "ab"}
    everyone = cache.key(1)
    cache.fill({key: n for n, key in enumerate([*tenants["a"], *tenants["b"], everyone])})
    assert purge(cache.path, Choice(salt="a")).frames == 2
    assert cache.present() == {*tenants["b"], everyone}
    assert not cache.holds(low_plane(0))


def test_choices_together_mean_what_fits_all(both: CacheDir) -> None:
    assert purge(both.path, Choice(namespace="Qwen-4B", before_ns=2000 * 10**9)).frames == 0
    assert len(both.present()) == 40


def test_everything_leaves_an_empty_store_that_works(both: CacheDir) -> None:
    assert purge(both.path, Choice()).frames == 40
    assert both.present() == set()
    both.fill({both.key(1): 1})
    assert verify(both.path).frames == 1


def test_set_aside_files_go_too(both: CacheDir) -> None:
    aside = both.path / "shard-0009.lmdb.broken-20260101T000000Z"
    aside.write_bytes(b"who knows what")
    assert purge(both.path, Choice(namespace="Llama-8B")).set_aside == (aside.name,)
    assert not aside.exists()


def test_a_dry_run_deletes_nothing(both: CacheDir) -> None:
    done = purge(both.path, Choice(), dry_run=True)
    assert (done.frames, done.erased_bytes) == (40, 0)
    assert len(both.present()) == 40


@pytest.mark.parametrize(
    "name", [LLAMA.base(), LLAMA.base()[:6], "Llama-8B", "/models/Llama-8B", LLAMA.family("0").hex()]
)
def test_a_namespace_answers_to_every_name_that_inspect_shows(name: str, both: CacheDir) -> None:
    assert purge(both.path, Choice(namespace=name), dry_run=True).frames == 20


def test_an_unknown_namespace_is_an_error_that_names_those_there_are(both: CacheDir) -> None:
    with pytest.raises(InputError, match=rf"'GPT': there is none; there are: .*{LLAMA.base()} \(Llama-8B\)"):
        purge(both.path, Choice(namespace="GPT"))
    assert len(both.present()) == 40


def test_the_command_wants_to_be_told_what(both: CacheDir, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["purge", str(both.path)]) == 2
    assert "purge what?" in capsys.readouterr().err
    assert main(["purge", str(both.path), "--all", "--salt", "x"]) == 2
    assert len(both.present()) == 40


def test_the_command_purges_by_age_and_says_so_in_json(both: CacheDir, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["purge", str(both.path), "--older-than", "7d", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["stores"][0]["frames"] == 20


def test_a_salt_can_be_kept_off_the_command_line(cache: CacheDir, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.fill({cache.key(1, tenant=tenant_digest("s3cret")): 1, cache.key(2): 2})
    monkeypatch.setattr("sys.stdin", io.StringIO("s3cret\n"))
    assert main(["purge", str(cache.path), "--salt", "-"]) == 0
    assert cache.present() == {cache.key(2)}


def test_a_purge_of_several_stores_covers_all(tmp_path: Path) -> None:
    stores = [CacheDir(tmp_path / "all" / name) for name in ("dp-0", "dp-1")]
    for store in stores:
        store.fill({store.key(1): 1})
    assert main(["purge", str(tmp_path / "all"), "--all"]) == 0
    assert [store.present() for store in stores] == [set(), set()]
