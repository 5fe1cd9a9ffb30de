"""Key files: what is taken, what is refused, and that nothing refused is quoted."""

import os
from pathlib import Path

import pytest

from kvtier.errors import ConfigError
from kvtier.keyfile import read_key_file

SECRET = bytes(range(32))


def key_file(folder: Path, content: bytes, mode: int = 0o600) -> Path:
    path = folder / "key"
    path.write_bytes(content)
    path.chmod(mode)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(ConfigError) as error:
        read_key_file(path, "encryption.key_file")
    assert f"`encryption.key_file`: {path}" in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("content", [SECRET, SECRET.hex().encode(), SECRET.hex().upper().encode() + b"\n"])
def test_raw_bytes_and_digits_give_the_same_secret(tmp_path: Path, content: bytes) -> None:
    assert read_key_file(key_file(tmp_path, content), "x") == SECRET


@pytest.mark.parametrize("content", [b"", b"password\n", SECRET[:31], SECRET + b"\n", SECRET.hex().encode()[:-1]])
def test_anything_else_is_refused_and_not_quoted(tmp_path: Path, content: bytes) -> None:
    message = refusal(key_file(tmp_path, content))
    assert "openssl rand -hex 32" in message
    assert "password" not in message
    assert SECRET.hex()[:20] not in message


def test_what_is_not_random_is_refused(tmp_path: Path) -> None:
    assert "not random" in refusal(key_file(tmp_path, bytes(32)))


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o620, 0o606])
def test_a_file_that_others_may_use_is_refused(tmp_path: Path, mode: int) -> None:
    assert f"mode {mode:04o}" in refusal(key_file(tmp_path, SECRET, mode))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_the_group_may_read_a_file_of_roots_and_nobody_elses(tmp_path: Path) -> None:
    path = key_file(tmp_path, SECRET, 0o440)
    assert read_key_file(path, "x") == SECRET
    os.chown(path, 12345, 12345)
    assert "belongs to user 12345" in refusal(path)


def test_a_link_to_a_key_is_followed_as_mounted_secrets_need(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(key_file(tmp_path, SECRET))
    assert read_key_file(tmp_path / "link", "x") == SECRET


def test_a_pipe_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    assert "not a regular file" in refusal(tmp_path / "pipe")


@pytest.mark.parametrize("name", ["absent", "folder", "a\0b"])
def test_what_cannot_be_read_says_how_to_make_one(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    assert "make one with" in refusal(tmp_path / name)
