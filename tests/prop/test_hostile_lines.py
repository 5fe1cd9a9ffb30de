"""Trace and prompt files of any content are requests or an InputError that says what was expected, no traceback."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kvtier.errors import InputError, StoreError
from kvtier.lint.read import read
from kvtier.sim.source import open_trace
from kvtier.store.manifest import MANIFEST, read_manifest

NAMES = st.sampled_from(
    [
        "kvtier_trace",
        "tokens_per_chunk",
        "t",
        "in",
        "out",
        "chunks",
        "timestamp",
        "input_length",
        "output_length",
        "hash_ids",
        "prompt",
        "messages",
        "role",
        "content",
        "text",
        "type",
        "body",
        "tools",
        "cache_salt",
        "user",
        "method",
        "url",
        "custom_id",
        "created",
        "metadata",
        "tenant",
        "image_url",
        "tool_calls",
        "function",
        "name",
        "format",
        "map_bytes",
        "capacity_bytes",
        "shards",
        "boot_id",
    ]
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from([10**400, -1, 2**63, "system", "user", "2024-01-01T00:00:00Z", "9999-12-31T23:59:59-23:59"])
    | st.sampled_from(["text", "0123456789abcdef", "<|im_start|>user\n", "[INST]", "\ud800"])
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4), max_leaves=10
)
RECORDS = st.dictionaries(NAMES, VALUES, max_size=6)
LINES = (
    RECORDS.map(lambda record: json.dumps(record).encode())
    | st.binary(max_size=40).map(lambda line: line.replace(b"\n", b" "))
    | VALUES.map(lambda value: json.dumps(value).encode())
)
HEADERS = st.sampled_from([b"", b'{"kvtier_trace":1,"tokens_per_chunk":4}\n', b'{"timestamp":0,"hash_ids":[]}\n'])
FILES = st.builds(lambda header, lines: header + b"\n".join(lines), HEADERS, st.lists(LINES, max_size=4))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hostile")


def quietly(message: str) -> None:
    assert 10 < len(message) < 2000


@given(FILES)
@example(b'{"kvtier_trace":1,"tokens_per_chunk":' + b"9" * 5000 + b"}")
@example(b'{"timestamp":1,"input_length":1,"hash_ids":' + b"[" * 50_000)
@example(b'{"timestamp":NaN,"input_length":1,"hash_ids":[1]}')
def test_any_trace_file_is_requests_or_an_input_error(folder: Path, content: bytes) -> None:
    path = folder / "trace.jsonl"
    path.write_bytes(content)
    try:
        with open_trace(str(path)) as trace:
            for request in trace:
                assert request.n_tokens >= 0
    except InputError as error:
        quietly(str(error))


@given(FILES)
@example(b'{"prompt":"x","timestamp":' + b"9" * 5000 + b"}")
@example(b'{"messages":' + b"[" * 50_000)
def test_any_prompt_file_is_requests_or_an_input_error(folder: Path, content: bytes) -> None:
    path = folder / "prompts.jsonl"
    path.write_bytes(content)
    try:
        for request in read(path, seen=lambda _n_bytes: None):
            assert request.turns is not None
    except InputError as error:
        quietly(str(error))


@given(RECORDS.map(lambda record: json.dumps(record).encode()) | st.binary(max_size=60))
@example(b'{"format":1,"map_bytes":' + b"9" * 5000 + b',"capacity_bytes":1,"shards":[]}')
@example(b"[" * 50_000)
@example(b'{"format":1,"map_bytes":Infinity,"capacity_bytes":1,"shards":[0]}')
def test_any_manifest_is_understood_or_taken_for_lost_or_said_to_be_newer(folder: Path, content: bytes) -> None:
    (folder / MANIFEST).write_bytes(content)
    manifest = None
    with contextlib.suppress(StoreError):  # of a newer kvtier
        manifest = read_manifest(folder)
    assert manifest is None or manifest.map_bytes > 0
