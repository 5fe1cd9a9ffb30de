"""Units: exactly what is written, or an error that says how to write it."""

from __future__ import annotations

import pickle
from fractions import Fraction

import pytest

from kvtier.errors import ConfigError
from kvtier.units import Admit, Duration, PerDay, Period, Size, format_bytes, parse_bytes


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [
        ("64GiB", 64 << 30),
        ("1TiB", 1 << 40),
        ("500MB", 500_000_000),
        ("3kB", 3000),
        ("17B", 17),
        ("1.5 GiB", 3 << 29),
        ("192mib", 192 << 20),
        ("0.3B", 0),
        (" 2PiB ", 2 << 50),
    ],
)
def test_bytes_are_what_their_unit_says(text, n_bytes):
    assert parse_bytes(text) == n_bytes


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("64", "has no unit: expected bytes with a unit"),
        ("64G", "ambiguous: write 64GiB (1024-based) or 64GB (1000-based)"),
        ("64furlongs", "unknown unit 'furlongs'"),
        ("GiB", "is no size"),
        ("", "is no size"),
        ("-1GiB", "is no size"),
        ("1e3GiB", "is no size"),
        ("nan", "is no size"),
        ("1_000B", "is no size"),
        ("\u0663GiB", "is no size"),  # an Arabic digit three
        ("1GiB\nx", "is no size"),
        ("9999999PiB", "is too large: expected at most 1024PiB"),
    ],
)
def test_other_bytes_are_refused_with_what_was_expected(text, told):
    with pytest.raises(ConfigError) as error:
        parse_bytes(text)
    assert told in str(error.value)


def test_a_long_text_is_cut_in_the_message():
    with pytest.raises(ConfigError) as error:
        parse_bytes("x" * 10_000)
    assert len(str(error.value)) < 200


def test_a_size_is_bytes_or_a_percentage_or_auto_and_says_which():
    kinds = [(size.is_auto, size.percent, size.n_bytes) for size in map(Size, ("auto", "12.5%", "1MiB"))]
    assert kinds == [(True, None, None), (False, Fraction(25, 2), None), (False, None, 1 << 20)]


@pytest.mark.parametrize("text", ["0GiB", "0%", "100.1%", "%", "x%", "Auto", "64", "off"])
def test_a_size_of_nothing_or_of_more_than_everything_is_refused(text):
    with pytest.raises(ConfigError):
        Size(text)


def test_sizes_and_durations_print_and_travel_as_they_were_written():
    written = [Size("1.5 GiB"), Size("10%"), Duration("500ms"), Period("off")]
    assert [str(value) for value in written] == ["1.5 GiB", "10%", "500ms", "off"]
    assert pickle.loads(pickle.dumps(written)) == written


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("500ms", 0.5),
        ("30s", 30.0),
        ("5m", 300.0),
        ("2h", 7200.0),
        ("1d", 86400.0),
        ("0", 0.0),
        ("0.1s", 0.1),
        ("3 s", 3.0),
    ],
)
def test_durations_are_what_their_unit_says(text, seconds):
    assert Duration(text).seconds == seconds


@pytest.mark.parametrize("text", ["30", "30M", "S", "", "-1s", "off", "367d", "1w", "inf"])
def test_other_durations_are_refused(text):
    with pytest.raises(ConfigError):
        Duration(text)


def test_only_a_period_can_be_off_and_off_is_zero_seconds():
    assert [Period(text).seconds for text in ("off", "0", "2s")] == [0.0, 0.0, 2.0]


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (2_949_120, "2.81 MiB"),
        (192 << 20, "192 MiB"),
        ((1 << 20) - 1, "1 MiB"),
        ((1 << 30) - (1 << 20), "1023 MiB"),
        (1 << 60, "1024 PiB"),
    ],
)
def test_bytes_are_formatted_to_about_three_digits(n_bytes, text):
    assert format_bytes(n_bytes) == text


def test_formatted_bytes_can_be_parsed_and_are_close():
    for n_bytes in (1, 999, 4097, 10**6, 123_456_789, 10**12, 7 << 50):
        assert parse_bytes(format_bytes(n_bytes)) == pytest.approx(n_bytes, rel=0.006)


@pytest.mark.parametrize(("text", "n_bytes"), [("500GB/day", 500 * 10**9), (" 1TiB/day ", 1 << 40), ("off", None)])
def test_a_daily_amount_is_bytes_or_any_number(text, n_bytes):
    assert PerDay(text).n_bytes == n_bytes


@pytest.mark.parametrize("text", ["500GB", "500/day", "500GB/week", "/day", "0B/day", "auto", ""])
def test_what_is_no_daily_amount_is_refused_with_what_was_expected(text):
    with pytest.raises(ConfigError, match="expected"):
        PerDay(text)


@pytest.mark.parametrize(
    ("text", "share"), [("all", 1.0), ("second_use", 0.0), ("25%", 0.25), ("0%", 0.0), ("100%", 1.0)]
)
def test_what_is_admitted_is_a_share_of_chains(text, share):
    assert Admit(text).share == share


@pytest.mark.parametrize("text", ["25", "second_touch", "101%", "-1%", ""])
def test_what_admits_nothing_is_refused_with_what_was_expected(text):
    with pytest.raises(ConfigError, match="expected all, second_use"):
        Admit(text)
