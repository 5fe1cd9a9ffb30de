import os
import re
import threading
from pathlib import Path

import pytest

from kvtier.errors import StoreError
from kvtier.files import replace_file
from kvtier.store.private import DirectoryLock, create_file, keep_private, secure_directory

OURS = re.compile(r"ours-.*")


@pytest.fixture(autouse=True)
def permissive_umask() -> object:
    before = os.umask(0)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return path.lstat().st_mode & 0o777


def test_a_missing_directory_is_made_for_this_user_alone(tmp_path: Path) -> None:
    secure_directory(tmp_path / "deep" / "er", OURS)
    assert mode(tmp_path / "deep" / "er") == 0o700


def test_an_open_directory_with_only_our_files_is_closed(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir(0o755)
    (tmp_path / "d" / "ours-1").touch()
    secure_directory(tmp_path / "d", OURS)
    assert mode(tmp_path / "d") == 0o700


def test_an_open_directory_with_other_files_is_refused_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir(0o755)
    (tmp_path / "home" / "letters").touch()
    with pytest.raises(StoreError, match="'letters', which is not kvtier's"):
        secure_directory(tmp_path / "home", OURS)
    assert mode(tmp_path / "home") == 0o755


def test_a_closed_directory_may_hold_other_files(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir(0o700)
    (tmp_path / "d" / "letters").touch()
    secure_directory(tmp_path / "d", OURS)


def test_a_symlink_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(0o700)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(StoreError, match="is a symlink"):
        secure_directory(tmp_path / "link", OURS)


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot be used as a directory"):
        secure_directory(tmp_path / "file", OURS)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_a_directory_of_another_user_is_refused(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir(0o700)
    os.chown(tmp_path / "theirs", 12345, 12345)
    with pytest.raises(StoreError, match="belongs to user 12345"):
        secure_directory(tmp_path / "theirs", OURS)


def test_a_parent_that_everyone_can_write_is_refused(tmp_path: Path) -> None:
    (tmp_path / "public").mkdir(0o777)
    with pytest.raises(StoreError, match="can be written by everyone"):
        secure_directory(tmp_path / "public" / "d", OURS)


def test_so_is_one_further_up_and_nothing_is_created_below_it(tmp_path: Path) -> None:
    (tmp_path / "public").mkdir(0o777)
    (tmp_path / "public" / "mine").mkdir(0o700)
    with pytest.raises(StoreError, match="can be written by everyone"):
        secure_directory(tmp_path / "public" / "mine" / "new" / "d", OURS)
    assert not (tmp_path / "public" / "mine" / "new").exists()


def test_so_is_one_behind_a_link(tmp_path: Path) -> None:
    (tmp_path / "public").mkdir(0o777)
    (tmp_path / "public" / "mine").mkdir(0o700)
    (tmp_path / "link").symlink_to(tmp_path / "public" / "mine")
    with pytest.raises(StoreError, match="can be written by everyone"):
        secure_directory(tmp_path / "link" / "d", OURS)


def test_a_sticky_parent_like_tmp_is_fine(tmp_path: Path) -> None:
    (tmp_path / "public").mkdir()
    (tmp_path / "public").chmod(0o1777)
    secure_directory(tmp_path / "public" / "d", OURS)


def test_a_created_file_is_private_and_new(tmp_path: Path) -> None:
    create_file(tmp_path / "f")
    assert mode(tmp_path / "f") == 0o600
    with pytest.raises(FileExistsError):
        create_file(tmp_path / "f")


def test_creating_never_follows_a_symlink(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "victim")
    with pytest.raises(FileExistsError):
        create_file(tmp_path / "link")
    assert not (tmp_path / "victim").exists()


def test_keeping_private_closes_a_file_and_removes_a_symlink(tmp_path: Path) -> None:
    (tmp_path / "open").touch(0o644)
    (tmp_path / "victim").touch(0o644)
    (tmp_path / "link").symlink_to(tmp_path / "victim")
    for name in ("open", "link", "absent"):
        keep_private(tmp_path / name)
    assert mode(tmp_path / "open") == 0o600
    assert not (tmp_path / "link").is_symlink()
    assert mode(tmp_path / "victim") == 0o644


def test_replacing_gives_new_content_and_leaves_no_draft(tmp_path: Path) -> None:
    (tmp_path / f"f.{os.getpid()}.new").write_bytes(b"left by a crash")
    replace_file(tmp_path / "f", b"one")
    replace_file(tmp_path / "f", b"two")
    assert (tmp_path / "f").read_bytes() == b"two"
    assert mode(tmp_path / "f") == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_the_first_holds_a_directory_alone_the_next_shares_it(tmp_path: Path) -> None:
    with DirectoryLock(tmp_path / "lock") as first:
        assert first.acquire() is True
        first.share()
        with DirectoryLock(tmp_path / "lock") as second:
            assert second.acquire() is False


def test_released_by_all_it_can_be_held_alone_again(tmp_path: Path) -> None:
    for _ in range(2):
        with DirectoryLock(tmp_path / "lock") as lock:
            assert lock.acquire() is True
            lock.share()


def test_waiting_for_one_who_rearranges_ends_with_an_error(tmp_path: Path) -> None:
    with DirectoryLock(tmp_path / "lock") as first, DirectoryLock(tmp_path / "lock") as second:
        first.acquire()
        with pytest.raises(StoreError, match="locked by another process"):
            second.acquire(timeout_s=0.0)


def test_waiting_ends_when_the_one_who_rearranges_is_done(tmp_path: Path) -> None:
    with DirectoryLock(tmp_path / "lock") as first, DirectoryLock(tmp_path / "lock") as second:
        first.acquire()
        answer: list[bool] = []
        waiter = threading.Thread(target=lambda: answer.append(second.acquire()))
        waiter.start()
        first.share()
        waiter.join(10)
        assert answer == [False]


def test_a_lock_file_is_private_and_never_a_symlink(tmp_path: Path) -> None:
    DirectoryLock(tmp_path / "lock").release()
    assert mode(tmp_path / "lock") == 0o600
    (tmp_path / "link").symlink_to(tmp_path / "victim")
    with pytest.raises(StoreError, match="cannot be opened"):
        DirectoryLock(tmp_path / "link")
