"""Whatever a configuration holds, the answer is a Config or a ConfigError that says something printable and short."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kvtier.config import Config, load, parse
from kvtier.config import settings as keys_of_schema
from kvtier.errors import ConfigError
from kvtier.units import Duration, Period, Size, format_bytes, parse_bytes

KEYS = sorted({part for key in keys_of_schema() for part in key.key.split(".")})

names = st.sampled_from(KEYS) | st.text(max_size=8) | st.none() | st.integers() | st.booleans() | st.floats()
words = st.sampled_from(
    [
        "auto",
        "off",
        "on",
        "1GiB",
        "64G",
        "10%",
        "0%",
        "500ms",
        "2",
        "0",
        "ahead",
        "raw",
        "~/x",
        "~nobody/x",
        "\0",
        "",
        "~",
    ]
)
scalars = (
    words
    | st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=8)
    | st.dates()
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3), max_leaves=8
)
trees = st.dictionaries(names, values | st.dictionaries(names, values, max_size=4), max_size=6)

YAML_BITS = (
    [": ", ":\n  ", "\n", "{", "}", "[", "]", ", ", "- ", "&a ", "*a", "<<", "? ", "|\n", ">\n", "'", '"', "#", "%"],
    [
        "!!int ",
        "!!float ",
        "!!bool ",
        "!!timestamp ",
        "!!binary ",
        "!!set ",
        "!!omap ",
        "!!python/none ",
        "--- ",
        "...",
    ],
    ["auto", "off", "1GiB", "10%", "5s", "0x1F", "1:30", "2020-13-99", "~", "null", "\t", "\x07", "\ufeff", "\u2028"],
    KEYS,
)
likely_text = st.lists(st.sampled_from([bit for bits in YAML_BITS for bit in bits]), max_size=14).map("".join)


def config_or_error(work) -> Config | None:
    """The Config, or None after looking at the error."""
    try:
        config = work()
    except ConfigError as error:
        message = str(error)
        assert message.isprintable()
        assert 10 < len(message) < 700
        return None
    assert isinstance(config, Config)
    return config


@given(trees)
@example({"disk": {"path": "~\ud800/x"}})
@example({"disk": {"write_behind_after": 0}, "log": {"every": 0}})
def test_any_tree_is_a_config_or_a_config_error(tree):
    config = config_or_error(lambda: parse(tree))
    if config is not None:
        assert parse(json.loads(json.dumps(config.to_tree()))) == config


@given(values)
def test_anything_else_is_too(value):
    config_or_error(lambda: parse(value))


@given(
    st.binary(max_size=60)
    | likely_text.map(str.encode)
    | st.text(max_size=60).map(lambda s: s.encode("utf-8", "replace"))
)
@example(b"x: !!timestamp y")
@example(b"!!omap [a]")
@example(b"- &a [*a]")
@example(b"{a: b, a: b}")
@example(b"!!set {a, b}")
@example(b"disk: !!set {path}")
@example(b"host:\n  capacity: " + b"9" * 5000)
def test_any_text_is_a_config_or_a_config_error(file, text):
    file.write_bytes(text)
    config_or_error(lambda: load(file))


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "kvtier.yaml"


@given(st.text(max_size=30) | words)
def test_any_text_is_a_unit_or_a_config_error(text):
    for kind in (Size, Duration, Period):
        try:
            assert kind(text) == text.strip()
        except ConfigError as error:
            message = str(error)
        else:
            continue
        assert message.isprintable()


@given(st.integers(0, 1 << 60))
def test_formatted_bytes_parse_to_within_half_a_percent_and_a_byte(n_bytes):
    assert abs(parse_bytes(format_bytes(n_bytes)) - n_bytes) <= n_bytes * 0.0051 + 1
