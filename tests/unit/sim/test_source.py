"""Reading traces: each format gives the requests it describes, and what is wrong is said with its line."""

import gzip
import json
from pathlib import Path

import pytest

from kvtier.errors import InputError
from kvtier.sim.source import open_trace
from kvtier.sim.trace import Request

MOONCAKE = '{"timestamp": 1500, "input_length": 1100, "output_length": 7, "hash_ids": [1, 2, 3]}'
QWEN = (
    '{"chat_id": 9, "parent_chat_id": -1, "timestamp": 61.5, "input_length": 40, "output_length": 7, "type": "text", '
    '"turn": 1, "hash_ids": [1, 2, 3]}'
)
HEADER = '{"kvtier_trace": 1, "tokens_per_chunk": 256}'
RECORDED = '{"t": 3.25, "in": 600, "out": 9, "chunks": "' + "00000000000000aa" + "00000000000000bb" + '"}'


def read(path: Path, *lines: str, **options) -> list[Request]:
    path.write_text("\n".join(lines) + "\n")
    with open_trace(str(path), **options) as trace:
        return list(trace)


def complaint(path: Path, *lines: str, **options) -> str:
    with pytest.raises(InputError) as error:
        read(path, *lines, **options)
    return str(error.value)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "trace.jsonl"


def test_a_mooncake_line_counts_milliseconds_and_512_tokens_a_block(path: Path):
    (request,) = read(path, MOONCAKE)
    assert (request.time_s, request.n_tokens, request.n_output_tokens) == (1.5, 1100, 7)
    assert (len(set(request.keys)), request.n_whole) == (3, 2)


def test_a_qwen_line_counts_seconds_and_16_tokens_a_block(path: Path):
    (request,) = read(path, QWEN)
    assert (request.time_s, request.n_tokens, len(request.keys), request.n_whole) == (61.5, 40, 3, 2)


def test_a_recording_says_its_chunk_size_in_its_header(path: Path):
    path.write_text(f"{HEADER}\n{RECORDED}\n")
    with open_trace(str(path)) as trace:
        (request,) = trace
        assert trace.tokens_per_chunk == 256
    assert (request.time_s, request.n_tokens, request.n_output_tokens, request.n_whole) == (3.25, 600, 9, 2)
    assert [key[-2:] for key in request.keys] == [b"aa", b"bb"]


def test_a_block_size_that_is_given_replaces_that_of_the_format(path: Path):
    (request,) = read(path, MOONCAKE, tokens_per_chunk=1000)
    assert request.n_whole == 1


def test_equal_ids_are_equal_keys_and_different_ids_different_ones(path: Path):
    first, second = read(path, MOONCAKE, MOONCAKE.replace("3]", "4]"))
    assert first.keys[:2] == second.keys[:2]
    assert first.keys[2] != second.keys[2]


def test_blank_lines_and_a_byte_order_mark_are_no_trouble(path: Path):
    assert len(read(path, "\ufeff" + MOONCAKE, "", "  ", MOONCAKE)) == 2


def test_a_gzipped_trace_is_read(tmp_path: Path):
    path = tmp_path / "trace.jsonl.gz"
    path.write_bytes(gzip.compress(MOONCAKE.encode()))
    with open_trace(str(path)) as trace:
        assert len(list(trace)) == 1


def test_a_trace_is_streamed(path: Path):
    path.write_text(f"{MOONCAKE}\nnot reached\n")
    with open_trace(str(path)) as trace:
        assert next(iter(trace)).n_tokens == 1100


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("{", "expected one JSON object per line"),
        ("[1]", "expected one JSON object per line, got [1]"),
        ('{"timestamp": 0}', "expected `hash_ids`, a list of chunk ids, got None"),
        (MOONCAKE.replace("1100", "-1"), "expected `input_length`, a whole number of at least 0, got -1"),
        (MOONCAKE.replace("1100", '"x"'), "expected `input_length`, a whole number of at least 0, got 'x'"),
        (MOONCAKE.replace("1100", "1e400"), "expected `input_length`, a whole number of at least 0, got inf"),
        (MOONCAKE.replace("1500", "null"), "expected `timestamp`, a number, got None"),
        (MOONCAKE.replace("1500", "NaN"), "expected `timestamp`, a number, got nan"),
        (MOONCAKE.replace("3]", "[]]"), "expected whole numbers or strings as chunk ids"),
        (MOONCAKE.replace("3]", "3.5]"), "expected whole numbers or strings as chunk ids, got 3.5"),
        ("[" * 100_000, "expected one JSON object per line"),
    ],
)
def test_a_bad_line_is_refused_with_its_number_and_what_was_expected(path: Path, line: str, expected: str):
    said = complaint(path, MOONCAKE, "", line)
    assert f"{path}, line 3: {expected}" in said
    assert "--skip-bad" in said


def test_bytes_that_are_no_text_are_a_bad_line(path: Path):
    path.write_bytes(MOONCAKE.encode() + b'\n{"timestamp": "\xff\xfe"}\n')
    with open_trace(str(path)) as trace, pytest.raises(InputError, match="line 2: expected one JSON object"):
        list(trace)


def test_bad_lines_are_left_out_and_counted_when_asked(path: Path):
    path.write_text(f"{{\n{MOONCAKE}\n[]\n{MOONCAKE}")
    with open_trace(str(path), skip_bad=True) as trace:
        assert len(list(trace)) == 2
        assert trace.n_skipped == 2
        assert "line 1" in trace.first_skipped[0]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([RECORDED], "expected the header"),
        ([HEADER.replace("1,", "2,", 1)], "expected a trace of version 1, got 2"),
        ([HEADER.replace("256", "0")], "expected `tokens_per_chunk`, at least 1, got 0"),
        ([HEADER, HEADER.replace("256", "16")], "expected `tokens_per_chunk`, 256 as before, got 16"),
        ([HEADER, RECORDED.replace("aa", "a")], "expected `chunks`, 16 hexadecimal digits per chunk"),
    ],
)
def test_a_bad_recording_is_refused(path: Path, lines: list[str], expected: str):
    assert expected in complaint(path, *lines, kind="kvtier")


@pytest.mark.parametrize("text", ["", "\n\n"])
def test_an_empty_file_is_refused(path: Path, text: str):
    assert "empty: expected one JSON object per line" in complaint(path, text)


def test_a_file_that_is_no_trace_is_refused_with_what_it_could_be(path: Path):
    assert "expected a trace: `hash_ids`" in complaint(path, '{"a": 1}')


def test_a_missing_file_and_a_damaged_archive_are_refused(tmp_path: Path):
    with pytest.raises(InputError, match=r"gone\.jsonl: cannot be read"), open_trace(str(tmp_path / "gone.jsonl")):
        pass
    damaged = tmp_path / "damaged.gz"
    damaged.write_bytes(gzip.compress(MOONCAKE.encode() * 50)[:60])
    with pytest.raises(InputError, match="cannot be read"), open_trace(str(damaged)) as trace:
        list(trace)


def test_lengths_that_do_not_fit_the_blocks_are_counted(path: Path):
    path.write_text("\n".join([MOONCAKE, MOONCAKE.replace("1100", "100"), MOONCAKE.replace("1100", "9000")]))
    with open_trace(str(path)) as trace:
        assert len(list(trace)) == 3
        assert trace.n_odd == 2


def test_prompts_without_a_tokenizer_are_refused_with_the_remedy(path: Path):
    assert "--tokenizer DIR" in complaint(path, '{"prompt": "hello"}')


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder with a tokenizer of one token per word, and a chat template."""
    tokenizers = pytest.importorskip("tokenizers")
    words = {word: i for i, word in enumerate(("?", *"abcdef", "user", "system", ":", "<end>"))}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="?"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    folder = tmp_path / "model"
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    template = "{% for m in messages %}{{ m.role }} : {{ m.content }} {{ eos_token }} {% endfor %}"
    settings = {"chat_template": template, "eos_token": {"content": "<end>"}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def test_prompts_share_the_chunks_of_their_common_tokens(path: Path, model: Path):
    lines = ['{"prompt": "a b c d e"}', '{"prompt": "a b c f e"}', '{"prompt": "b b c d e"}']
    first, second, third = read(path, *lines, tokenizer=model, tokens_per_chunk=2)
    assert (first.n_tokens, len(first.keys), first.n_whole) == (5, 3, 2)
    assert [a == b for a, b in zip(first.keys, second.keys, strict=True)] == [True, False, False]
    assert not set(first.keys) & set(third.keys)


def test_another_salt_shares_nothing(path: Path, model: Path):
    plain, salted = read(
        path, '{"prompt": "a b c d"}', '{"prompt": "a b c d", "cache_salt": "x"}', tokenizer=model, tokens_per_chunk=2
    )
    assert not set(plain.keys) & set(salted.keys)


def test_messages_go_through_the_models_chat_template(path: Path, model: Path):
    pytest.importorskip("jinja2")
    messages = [{"role": "system", "content": "a"}, {"role": "user", "content": [{"type": "text", "text": "b c"}]}]
    (chat,) = read(path, json.dumps({"messages": messages}), tokenizer=model, tokens_per_chunk=2)
    (text,) = read(path, '{"prompt": "system : a <end> user : b c <end>"}', tokenizer=model, tokens_per_chunk=2)
    assert chat.keys == text.keys


@pytest.mark.parametrize("messages", [[], "x", [{"content": "a"}], [{"role": "user", "content": 5}]])
def test_bad_messages_are_refused(path: Path, model: Path, messages: object):
    assert (
        "line 1: expected `messages`" in (said := complaint(path, json.dumps({"messages": messages}), tokenizer=model))
        or "line 1: expected messages[0]" in said
    )


def test_a_folder_without_a_tokenizer_is_refused(path: Path, tmp_path: Path):
    pytest.importorskip("tokenizers")
    assert "not a tokenizer" in complaint(path, '{"prompt": "a"}', tokenizer=tmp_path)
