"""Epoch: what a restart goes on with, and that no epoch whose KV is unknown is ever found again."""

import json
import os
import stat
from pathlib import Path

import pytest

from kvtier.epoch import Epoch
from kvtier.files import only_one
from kvtier.keys import Namespace

NAMESPACE = Namespace({"model": "m"})


def file_of(folder: Path) -> Path:
    return folder / f"{NAMESPACE.base()}.json"


def test_a_restart_goes_on_with_a_pristine_epoch(tmp_path: Path):
    assert Epoch(tmp_path, NAMESPACE).name == Epoch(tmp_path, NAMESPACE).name == Epoch(tmp_path, NAMESPACE).name


def test_a_bump_begins_a_new_epoch(tmp_path: Path):
    epoch = Epoch(tmp_path, NAMESPACE)
    names = {epoch.name}
    for _ in range(3):
        epoch.bump()
        names.add(epoch.name)
    assert len(names) == 4


def test_a_restart_after_a_bump_finds_neither_that_epoch_nor_the_one_before(tmp_path: Path):
    epoch = Epoch(tmp_path, NAMESPACE)
    before = epoch.name
    epoch.bump()
    assert Epoch(tmp_path, NAMESPACE).name not in {before, epoch.name}


def test_the_epoch_begun_by_a_restart_after_a_bump_is_pristine(tmp_path: Path):
    Epoch(tmp_path, NAMESPACE).bump()
    assert Epoch(tmp_path, NAMESPACE).name == Epoch(tmp_path, NAMESPACE).name


def test_a_bumped_epoch_does_not_come_again_when_the_file_is_lost(tmp_path: Path):
    first = Epoch(tmp_path, NAMESPACE)
    first.bump()
    file_of(tmp_path).unlink()
    second = Epoch(tmp_path, NAMESPACE)
    second.bump()
    assert second.name != first.name


def test_namespaces_have_epochs_of_their_own(tmp_path: Path):
    other = Namespace({"model": "n"})
    before = Epoch(tmp_path, other).name
    Epoch(tmp_path, NAMESPACE).bump()
    assert Epoch(tmp_path, other).name == before


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "{}",
        '{"epoch": 3}',
        '{"epoch": null, "pristine": true}',
        '{"epoch": "x", "pristine": true}',
        '{"epoch": 1e999, "pristine": true}',
        '{"epoch": NaN, "pristine": true}',
        '{"epoch": ' + "9" * 5000 + ', "pristine": true}',
        "[" * 100_000,
    ],
    ids=lambda text: text[:20],
)
def test_an_unreadable_file_begins_an_epoch_nobody_had_and_is_written_anew(tmp_path: Path, text: str):
    Epoch(tmp_path, NAMESPACE)
    file_of(tmp_path).write_text(text)
    name = Epoch(tmp_path, NAMESPACE).name
    file_of(tmp_path).write_text(text)
    again = Epoch(tmp_path, NAMESPACE)
    assert len({name, again.name, "0"}) == 3
    assert Epoch(tmp_path, NAMESPACE).name == again.name


def test_bytes_that_are_no_text_begin_an_epoch_nobody_had(tmp_path: Path):
    file_of(tmp_path).write_bytes(b"\xff\xfe\x00")
    assert Epoch(tmp_path, NAMESPACE).name != "0"


def test_without_a_folder_each_process_has_an_epoch_of_its_own():
    first, second = Epoch(None, NAMESPACE), Epoch(None, NAMESPACE)
    assert first.name != second.name
    assert not first.persistent
    before = first.name
    first.bump()
    assert first.name != before


def test_a_folder_that_cannot_be_made_gives_an_epoch_of_this_process_alone(tmp_path: Path):
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "namespaces"
    first, second = Epoch(folder, NAMESPACE), Epoch(folder, NAMESPACE)
    assert not first.persistent
    assert first.name != second.name


def test_a_file_that_cannot_be_replaced_gives_an_epoch_of_this_process_alone(tmp_path: Path):
    file_of(tmp_path).mkdir()
    first, second = Epoch(tmp_path, NAMESPACE), Epoch(tmp_path, NAMESPACE)
    assert not first.persistent
    assert first.name != second.name


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_gives_an_epoch_of_this_process_alone(tmp_path: Path):
    tmp_path.chmod(0o500)
    try:
        first, second = Epoch(tmp_path, NAMESPACE), Epoch(tmp_path, NAMESPACE)
    finally:
        tmp_path.chmod(0o700)
    assert not first.persistent
    assert first.name != second.name


def test_a_bump_that_cannot_be_written_still_begins_an_epoch_that_no_restart_finds(tmp_path: Path):
    epoch = Epoch(tmp_path, NAMESPACE)
    before = epoch.name
    file_of(tmp_path).unlink()
    file_of(tmp_path).mkdir()
    epoch.bump()
    bumped = epoch.name
    assert not epoch.persistent
    file_of(tmp_path).rmdir()
    file_of(tmp_path).write_text(json.dumps({"epoch": 0, "pristine": True}))
    assert bumped not in {before, Epoch(tmp_path, NAMESPACE).name}


def test_a_file_left_by_a_killed_writer_is_no_hindrance(tmp_path: Path):
    file_of(tmp_path).with_suffix(".tmp").write_text("half a fi")
    epoch = Epoch(tmp_path, NAMESPACE)
    assert epoch.persistent
    assert Epoch(tmp_path, NAMESPACE).name == epoch.name


def test_a_link_laid_in_its_way_is_not_followed(tmp_path: Path):
    target = tmp_path / "target"
    target.write_text("untouched")
    folder = tmp_path / "namespaces"
    folder.mkdir()
    file_of(folder).with_suffix(".tmp").symlink_to(target)
    assert Epoch(folder, NAMESPACE).persistent
    assert target.read_text() == "untouched"


def test_folder_and_file_are_private_and_say_what_they_are_about(tmp_path: Path):
    Epoch(tmp_path / "new", NAMESPACE)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700
    assert stat.S_IMODE(file_of(tmp_path / "new").stat().st_mode) == 0o600
    assert json.loads(file_of(tmp_path / "new").read_text())["namespace"] == {"model": "m"}
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == sorted([file_of(tmp_path).name, "lock"])


# Other processes


def test_a_reset_in_one_process_leaves_the_others_in_their_epoch(tmp_path: Path):
    one, other = Epoch(tmp_path, NAMESPACE), Epoch(tmp_path, NAMESPACE)
    shared = one.name
    one.bump()
    assert other.name == shared
    assert one.name != shared


def test_a_start_after_resets_in_several_processes_is_in_none_of_their_epochs(tmp_path: Path):
    processes = [Epoch(tmp_path, NAMESPACE) for _ in range(3)]
    names = {processes[0].name}
    for process in (*processes, *processes):
        process.bump()
        names.add(process.name)
    assert len(names) == 7
    started = Epoch(tmp_path, NAMESPACE)
    assert started.name not in names
    assert Epoch(tmp_path, NAMESPACE).name == started.name


def test_a_lock_that_somebody_keeps_makes_the_epoch_cold_instead_of_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    before = Epoch(tmp_path, NAMESPACE)
    monkeypatch.setattr("kvtier.epoch.TURN_TIMEOUT_S", 0.02)
    with only_one(tmp_path / "lock", 1.0):
        started = Epoch(tmp_path, NAMESPACE)
        before.bump()
    assert not started.persistent
    assert len({started.name, before.name, Epoch(tmp_path, NAMESPACE).name}) == 3
