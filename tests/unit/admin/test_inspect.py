"""kvtier inspect: what it says of a directory, and that it only looks."""

import json
from pathlib import Path

import pytest

from kvtier.admin.directory import find_stores
from kvtier.admin.inspect import examine
from kvtier.cli.main import main
from kvtier.errors import StoreError
from kvtier.keys import tenant_digest
from kvtier.usage import Usage
from tests.rigs.cache_dir import CHUNK_BYTES, LLAMA, QWEN, CacheDir


def test_frames_are_counted_under_the_name_of_their_namespace(cache: CacheDir) -> None:
    cache.name(LLAMA)
    cache.name(QWEN)
    cache.fill({cache.key(n): n for n in range(5)})
    cache.fill({cache.key(9, QWEN): 9})
    found = {holding.named.model: holding.frames for holding in examine(cache.path).holdings if holding.named}
    assert found == {"Llama-8B": 5, "Qwen-4B": 1}


def test_bytes_ratio_and_ages_are_the_frames(cache: CacheDir) -> None:
    cache.name(LLAMA)
    cache.fill({cache.key(1): 1}, written_s=500)
    cache.fill({cache.key(2): 2}, written_s=900)
    (holding,) = examine(cache.path).holdings
    assert holding.raw_bytes == 2 * CHUNK_BYTES
    assert holding.ratio == pytest.approx(2 * CHUNK_BYTES / holding.stored_bytes)
    assert 1.2 < holding.ratio < 2
    assert (holding.oldest_ns, holding.newest_ns) == (500 * 10**9, 900 * 10**9)


def test_past_epochs_are_told_from_the_current_one(cache: CacheDir) -> None:
    epoch = cache.name(LLAMA)
    cache.fill({cache.key(1): 1})
    epoch.bump()
    cache.name(LLAMA)
    by_epoch = {holding.named.current: holding.frames for holding in examine(cache.path).holdings if holding.named}
    assert by_epoch == {True: 0, False: 1}


def test_a_family_without_a_name_is_shown_by_its_digest(cache: CacheDir) -> None:
    cache.fill({cache.key(1): 1})
    (holding,) = examine(cache.path).holdings
    assert holding.named is None
    assert f"family {LLAMA.family('0').hex()}" in examine(cache.path).to_text(0)


def test_tenants_are_counted(cache: CacheDir) -> None:
    cache.fill({cache.key(n, tenant=tenant_digest(salt)): n for n, salt in enumerate("aab")})
    (holding,) = examine(cache.path).holdings
    assert holding.to_tree()["tenants"] == 2


def test_hits_of_all_engines_are_added_up(cache: CacheDir) -> None:
    cache.name(LLAMA)
    for _ in range(2):
        usage = Usage(cache.path / "namespaces", LLAMA)
        usage.add({"asked_tokens": 100, "host_hit_tokens": 20, "disk_hit_tokens": 5})
        usage.add({"asked_tokens": 200, "host_hit_tokens": 40, "disk_hit_tokens": 10})
    (holding,) = examine(cache.path).holdings
    assert holding.named is not None
    assert holding.named.usage["asked_tokens"] == 400
    assert "400  25.0%" in examine(cache.path).to_text(0)


def test_a_damaged_usage_file_begins_again(cache: CacheDir) -> None:
    cache.name(LLAMA)
    file = cache.path / "namespaces" / f"{LLAMA.base()}.usage"
    file.write_text("[" * 100_000)
    Usage(file.parent, LLAMA).add({"asked_tokens": 7})
    (holding,) = examine(cache.path).holdings
    assert holding.named is not None
    assert holding.named.usage["asked_tokens"] == 7


@pytest.mark.parametrize(
    "content", ["", "{", '{"epoch": 1}', '{"epoch": "x", "pristine": true, "namespace": {}}', "[]"]
)
def test_a_damaged_namespace_file_leaves_its_frames_unnamed(content: str, cache: CacheDir) -> None:
    cache.name(LLAMA)
    cache.fill({cache.key(1): 1})
    (cache.path / "namespaces" / f"{LLAMA.base()}.json").write_text(content)
    (holding,) = examine(cache.path).holdings
    assert (holding.named, holding.frames) == (None, 1)


def test_nothing_is_changed(cache: CacheDir) -> None:
    cache.name(LLAMA)
    cache.fill({cache.key(1): 1})
    before = {file.name: file.read_bytes() for file in cache.path.glob("*.*") if "lock" not in file.name}
    examine(cache.path)
    assert {file.name: file.read_bytes() for file in cache.path.glob("*.*") if "lock" not in file.name} == before


def test_stores_below_the_directory_are_found(cache: CacheDir, tmp_path: Path) -> None:
    other = CacheDir(tmp_path / "all" / "dp-1")
    assert find_stores(tmp_path / "all") == [other.path]
    assert find_stores(cache.path) == [cache.path]


def test_a_directory_that_is_no_cache_is_an_error_that_says_what_to_name(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"no kvtier cache there; name the directory of `disk\.path`"):
        find_stores(tmp_path)


def test_the_command_prints_json(cache: CacheDir, capsys: pytest.CaptureFixture[str]) -> None:
    cache.name(LLAMA)
    cache.fill({cache.key(1): 1})
    assert main(["inspect", str(cache.path), "--json"]) == 0
    (store,) = json.loads(capsys.readouterr().out)["stores"]
    assert store["frames"] == 1
    assert store["namespaces"][0]["model"] == "Llama-8B"


def test_the_command_takes_the_configuration_instead(
    cache: CacheDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "kvtier.yaml").write_text("disk: {path: cache}\n")
    assert main(["inspect", str(tmp_path / "kvtier.yaml")]) == 0
    assert capsys.readouterr().out.startswith(f"{cache.path}: 0 frames")


def test_the_command_says_when_there_is_no_disk_tier(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "kvtier.yaml").write_text("disk: off\n")
    assert main(["inspect", str(tmp_path / "kvtier.yaml")]) == 2
    assert "`disk` is off" in capsys.readouterr().err
