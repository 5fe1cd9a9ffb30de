"""Prompt files: what a line may be, and what is said when it is something else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kvtier.errors import InputError
from kvtier.lint.read import BadLine, Turn, of_prompt, parse, read

GOOD = b'{"prompt": "hello"}\n'


def written(tmp_path: Path, *lines: bytes) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(b"".join(lines))
    return path


def turns(record: object) -> tuple[Turn, ...]:
    return parse(json.dumps(record).encode(), 1).turns


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"hello\n", "expected one JSON object"),
        (b'{"prompt": "cut\n', "expected one JSON object"),
        (b'{"prompt": "\xff"}\n', "expected UTF-8"),
        (b"[" * 100_000 + b"\n", "nested too deep"),
        (b"[1]\n", "expected a JSON object, not a list"),
        (b'{"text": "x"}\n', 'expected a "prompt" or "messages" key'),
        (b'{"prompt": [1, 2]}\n', 'expected "prompt" to be text, not a list'),
        (b'{"messages": []}\n', "at least one message"),
        (b'{"messages": ["x"]}\n', 'expected messages[0] to be an object with a "role"'),
        (b'{"messages": [{"role": "user", "content": 3}]}\n', "expected the content of messages[0] to be text"),
        (b'{"messages": [{"role": "user", "content": [{}]}]}\n', "every part of messages[0] to have a type"),
        (b'{"messages": [{"role": "user", "content": "x"}], "tools": {"a": 1}}\n', 'expected "tools" to be a list'),
        (b'{"prompt": "x", "timestamp": "noon"}\n', 'expected "timestamp"'),
        (b'{"prompt": "x", "timestamp": true}\n', 'expected "timestamp"'),
        (b'{"prompt": "x", "timestamp": NaN}\n', 'expected "timestamp"'),
        (b'{"prompt": "x", "tenant": 3}\n', 'expected "tenant" to be text, not a number'),
    ],
    ids=lambda value: value[:40].decode(errors="replace") if isinstance(value, bytes) else "",
)
def test_a_bad_line_is_named_with_its_number_and_what_was_expected(tmp_path: Path, line: bytes, expected: str):
    path = written(tmp_path, GOOD, line, GOOD)
    with pytest.raises(InputError) as caught:
        list(read(path, seen=lambda _: None))
    assert str(caught.value).startswith(f"{path}: line 2: ")
    assert expected in str(caught.value)
    assert "--skip-bad" in str(caught.value)


def test_bad_lines_are_skipped_and_reported_on_request(tmp_path: Path):
    bad: list[BadLine] = []
    path = written(tmp_path, GOOD, b"x\n", GOOD, b"{}\n")
    assert [request.line for request in read(path, skip=bad.append, seen=lambda _: None)] == [1, 3]
    assert [line.line for line in bad] == [2, 4]


def test_blank_lines_are_no_lines_but_keep_their_numbers(tmp_path: Path):
    path = written(tmp_path, b"\n", GOOD, b"  \n", GOOD)
    assert [request.line for request in read(path, seen=lambda _: None)] == [2, 4]


def test_every_byte_of_the_file_is_heard_of(tmp_path: Path):
    heard: list[int] = []
    path = written(tmp_path, GOOD, b"\n", GOOD)
    list(read(path, seen=heard.append))
    assert sum(heard) == path.stat().st_size


def test_a_file_that_is_not_there_is_an_input_error(tmp_path: Path):
    with pytest.raises(InputError, match="cannot be read"):
        list(read(tmp_path / "absent", seen=lambda _: None))


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(1772442847, 1772442847.0), (1772442847000, 1772442847.0), ("2026-03-02T09:14:07+00:00", 1772442847.0)],
)
def test_a_timestamp_is_seconds_milliseconds_or_iso(value: object, seconds: float):
    assert parse(json.dumps({"prompt": "x", "timestamp": value}).encode(), 1).timestamp == seconds


def test_tools_come_behind_the_system_prompt():
    record = {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}], "tools": [{"a": 1}]}
    assert [turn.role for turn in turns(record)] == ["system", "tools", "user"]


def test_parts_of_a_message_become_lines_and_an_image_stands_by_its_content():
    def text(address: str) -> str:
        content = [{"type": "text", "text": "look"}, {"type": "image_url", "image_url": {"url": address}}]
        return turns({"messages": [{"role": "user", "content": content}]})[0].text

    assert text("http://x/<1>.png").startswith("look\n<image ")
    assert text("http://x/1.png") == text("http://x/1.png") != text("http://x/2.png")


def test_a_line_of_a_batch_file_holds_its_request_in_body():
    assert turns({"custom_id": "a", "body": {"messages": [{"role": "user", "content": "u"}]}}) == (Turn("user", "u"),)


@pytest.mark.parametrize(
    "prompt",
    [
        "<|im_start|>system\nrules<|im_end|>\n<|im_start|>user\nask<|im_end|>\n<|im_start|>assistant\n",
        (
            "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nrules<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nask<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
        ),
        "System: rules\nUser: ask\nAssistant:",
    ],
    ids=["chatml", "llama 3", "names"],
)
def test_turns_of_common_templates_are_found(prompt: str):
    found = of_prompt(prompt)
    assert [(turn.role, turn.text.strip()) for turn in found] == [
        ("system", "rules"),
        ("user", "ask"),
        ("assistant", ""),
    ]


def test_text_without_markers_is_one_turn():
    assert of_prompt("User: name\nrules") == (Turn("prompt", "User: name\nrules"),)


def test_instruction_markers_alternate_between_user_and_assistant():
    found = of_prompt("<s>[INST] ask [/INST] answer</s>[INST] more [/INST]")
    assert [turn.role for turn in found] == ["user", "assistant", "user", "assistant"]


def test_text_before_the_first_marker_is_the_system_prompt():
    assert [turn.role for turn in of_prompt("rules\n<|im_start|>user\nask<|im_end|>\n")] == ["system", "user"]


def test_tool_calls_are_part_of_their_message():
    messages = [{"role": "assistant", "content": None, "tool_calls": [{"id": "call_1"}]}]
    assert "call_1" in turns({"messages": messages})[0].text


def test_other_parts_of_a_message_are_kept_as_they_are():
    messages = [{"role": "user", "content": ["plain", {"type": "input_audio", "input_audio": {"data": "x"}}]}]
    assert turns({"messages": messages})[0].text.startswith('plain\n{"type": "input_audio"')
