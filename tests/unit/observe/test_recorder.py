"""TraceRecorder: what it writes, replay reads; what cannot be written is counted and harms nobody."""

import json
import os
from pathlib import Path

import pytest

from kvtier.errors import ConfigError
from kvtier.observe import recorder
from kvtier.observe.recorder import TraceRecorder
from kvtier.sim.source import open_trace
from kvtier.types import ChunkKey

SALT = b"s" * 32
MANY = 1 << 20


def keys(text: str) -> list[ChunkKey]:
    return [ChunkKey(text[: i + 1].encode()) for i in range(len(text))]


def record(path: Path, *texts: str, salt: bytes = SALT, max_bytes: int = MANY) -> TraceRecorder:
    out = TraceRecorder(path, 256, salt=salt, max_bytes=max_bytes)
    for i, text in enumerate(texts):
        out.record(float(i), 256 * len(text) + 5, keys(text))
    out.close()
    return out


def read(path: Path) -> list[list[ChunkKey]]:
    with open_trace(str(path)) as trace:
        return [request.keys for request in trace]


def test_replay_reads_what_was_recorded(tmp_path: Path):
    path = tmp_path / "trace.jsonl"
    record(path, "abc", "abd")
    with open_trace(str(path)) as trace:
        first, second = trace
        assert trace.tokens_per_chunk == 256
    assert (first.time_s, first.n_tokens, first.n_whole) == (0.0, 256 * 3 + 5, 3)
    assert [a == b for a, b in zip(first.keys, second.keys, strict=True)] == [True, True, False]


def test_a_restarted_engine_goes_on_in_the_same_file(tmp_path: Path):
    path = tmp_path / "trace.jsonl"
    record(path, "ab")
    record(path, "ab")
    first, second = read(path)
    assert first == second


def test_half_a_line_of_a_killed_engine_costs_that_line_only(tmp_path: Path):
    path = tmp_path / "trace.jsonl"
    record(path, "ab", "cd")
    path.write_bytes(path.read_bytes()[:-9])
    record(path, "ef")
    with open_trace(str(path), skip_bad=True) as trace:
        assert len(list(trace)) == 2
        assert trace.n_skipped == 1


def test_a_bound_too_small_for_the_header_records_nothing(tmp_path: Path):
    path = tmp_path / "trace.jsonl"
    out = record(path, "", "", max_bytes=40)
    assert path.read_bytes() == b""
    assert out.dropped == 2


def test_hashes_of_another_salt_tell_nothing(tmp_path: Path):
    record(tmp_path / "a", "abc")
    record(tmp_path / "b", "abc", salt=b"t" * 32)
    assert not set(read(tmp_path / "a")[0]) & set(read(tmp_path / "b")[0])


def test_no_key_is_in_the_file(tmp_path: Path):
    path = tmp_path / "trace.jsonl"
    key = ChunkKey(b"\x01" * 16 + b"secretsecretsecr")
    out = TraceRecorder(path, 256, salt=SALT, max_bytes=MANY)
    out.record(0.0, 256, [key])
    out.close()
    written = path.read_bytes()
    assert key not in written
    assert key.hex().encode() not in written
    assert key[-8:].hex().encode() not in written


def test_the_file_never_passes_its_bound_and_what_is_left_out_is_counted(tmp_path: Path):
    path = tmp_path / "trace.jsonl"
    out = record(path, *["abcdefgh"] * 20, max_bytes=1000)
    assert path.stat().st_size <= 1000
    assert out.dropped + len(read(path)) == 20
    assert 0 < out.dropped < 20


def test_a_full_queue_leaves_requests_out_and_counts_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(recorder, "MAX_QUEUED", 0)
    out = record(tmp_path / "trace.jsonl", "ab", "ab")
    assert out.dropped == 2


def test_a_medium_that_fails_ends_the_recording_quietly(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(recorder, "_open_own", lambda path: path.open("ab", buffering=0))
    out = record(Path("/dev/full"), "ab", "cd")
    assert out.dropped == 2
    assert isinstance(out.last_error, OSError)


def test_a_file_that_cannot_be_opened_is_refused_with_the_remedy(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"`trace.record`: .* cannot be written: .*: name another file"):
        record(tmp_path / "no" / "such" / "folder", "ab")


def test_a_file_that_others_can_use_is_closed_to_them(tmp_path: Path):
    (tmp_path / "t").touch()
    (tmp_path / "t").chmod(0o666)
    record(tmp_path / "t", "ab")
    assert (tmp_path / "t").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("kind", ["link", "pipe", "second name", "folder", "another user's"])
def test_what_is_not_a_file_of_ones_own_is_refused_and_left_alone(tmp_path: Path, kind: str):
    path, victim = tmp_path / "t", tmp_path / "victim"
    victim.touch()
    if kind == "link":
        path.symlink_to(victim)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "second name":
        path.hardlink_to(victim)
    elif kind == "folder":
        path.mkdir()
    elif os.geteuid() == 0:
        path.touch()
        os.chown(path, 12345, 12345)
    else:
        path = Path("/dev/null")  # as near to another user's file as everyone may write
    with pytest.raises(ConfigError, match=r"`trace\.record`: .* cannot be written: .*: name another file"):
        record(path, "ab")
    assert victim.read_bytes() == b""


def test_every_line_is_one_json_object(tmp_path: Path):
    path = tmp_path / "trace.jsonl"
    record(path, "ab", "c")
    assert [sorted(json.loads(line)) for line in path.read_text().splitlines()] == [
        ["kvtier_trace", "tokens_per_chunk"],
        ["chunks", "in", "t"],
        ["chunks", "in", "t"],
    ]
