"""Units: what people write ("64GiB", "10%", "30s") -> numbers, and bytes -> what people read. The only parser of units.

`Size`, `Duration`, `Period`, `PerDay` and `Admit` are strings that were checked when they were made, so a configuration
prints, compares and travels as JSON the way it was written.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Final, Self

from kvtier.errors import ConfigError

_BINARY: Final = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40, "PiB": 1 << 50}
_DECIMAL: Final = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "PB": 10**15}
_BYTES: Final = {unit.lower(): n for unit, n in (_BINARY | _DECIMAL).items()}
_SECONDS: Final = {
    "ms": Fraction(1, 1000),
    "s": Fraction(1),
    "m": Fraction(60),
    "h": Fraction(3600),
    "d": Fraction(86400),
}
_NUMBER: Final = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,18})?) ?([A-Za-z]{0,12}|%)", re.ASCII)

_MAX_BYTES: Final = 1 << 60
_MAX_S: Final = 366 * 86400

_SIZE_FORMS: Final = "bytes with a unit (64GiB, 500MB), a percentage (10%) or auto"
_BYTES_FORMS: Final = "bytes with a unit, for example 64GiB or 500MB"
_PER_DAY_FORMS: Final = "bytes a day (500GB/day) or off"
_ADMIT_FORMS: Final = "all, second_use, or a percentage of chains (25%)"
_DURATION_FORMS: Final = "a time with a unit, for example 500ms, 30s or 5m"


class Size(str):
    """A capacity as written: bytes with a unit, a percentage of something larger, or `auto`. Exactly one of the three.

    What a percentage is of, and what `auto` means, is for `kvtier.sizing` to say. Raises ConfigError when made of
    anything else, or of nothing (0).
    """

    __slots__ = ()

    def __new__(cls, text: str) -> Self:
        """Check `text`; blanks around it are dropped."""
        size = super().__new__(cls, text.strip())
        if size == "auto":
            return size
        if size.endswith("%"):
            if not 0 < size._percentage() <= 100:
                raise ConfigError(f"{_quote(text)} is no share: expected more than 0% and at most 100%")
        elif parse_bytes(size, forms=_SIZE_FORMS) == 0:
            raise ConfigError(f"{_quote(text)} is no capacity: expected {_SIZE_FORMS}, more than 0")
        return size

    @property
    def is_auto(self) -> bool:
        """Whether the machine decides."""
        return self == "auto"

    @property
    def percent(self) -> Fraction | None:
        """The percentage, 0 < percent <= 100, when it was written as one."""
        return self._percentage() if self.endswith("%") else None

    @property
    def n_bytes(self) -> int | None:
        """The bytes, at least 1, when it was written as bytes."""
        return None if self.is_auto or self.endswith("%") else parse_bytes(self)

    def _percentage(self) -> Fraction:
        match = _NUMBER.fullmatch(self)
        if match is None:
            raise ConfigError(f"{_quote(self)} is no percentage: expected for example 10% or 12.5%")
        return Fraction(match[1])


class Duration(str):
    """A time as written: "500ms", "30s", "5m", "2h", "1d", or a bare "0".

    Raises ConfigError when made of anything else.
    """

    __slots__ = ()

    def __new__(cls, text: str) -> Self:
        """Check `text`; blanks around it are dropped."""
        duration = super().__new__(cls, text.strip())
        if duration.seconds > _MAX_S:
            raise ConfigError(f"{_quote(text)} is too long: expected at most 366d")
        return duration

    @property
    def seconds(self) -> float:
        """The time in seconds, 0 or more."""
        return _parse_seconds(self)


class Period(Duration):
    """How often something happens: a Duration, or `off` for never, which counts as 0 seconds."""

    __slots__ = ()

    @property
    def seconds(self) -> float:
        """The time between two times in seconds; 0 = never."""
        return 0.0 if self == "off" else _parse_seconds(self)


class PerDay(str):
    """Bytes a day as written: "500GB/day", or `off` for any number. Raises ConfigError when made of anything else."""

    __slots__ = ()

    def __new__(cls, text: str) -> Self:
        """Check `text`; blanks around it are dropped."""
        rate = super().__new__(cls, text.strip())
        if rate != "off" and rate.n_bytes == 0:
            raise ConfigError(f"{_quote(text)} is no budget: expected {_PER_DAY_FORMS}, more than 0")
        return rate

    @property
    def n_bytes(self) -> int | None:
        """Bytes in a day, at least 1; None for any number."""
        if self == "off":
            return None
        amount, slash, day = self.partition("/")
        if not slash or day.strip() != "day":
            raise ConfigError(f"{_quote(self)} is no budget: expected {_PER_DAY_FORMS}")
        return parse_bytes(amount, forms=_PER_DAY_FORMS)


class Admit(str):
    """Which chains are written to disk: `all`, `second_use` (only what is used again), or a percentage of chains.

    Raises ConfigError when made of anything else.
    """

    __slots__ = ()

    def __new__(cls, text: str) -> Self:
        """Check `text`; blanks around it are dropped."""
        admit = super().__new__(cls, text.strip())
        if not 0 <= admit.share <= 1:
            raise ConfigError(f"{_quote(text)} is no share: expected {_ADMIT_FORMS}")
        return admit

    @property
    def share(self) -> float:
        """Share of chains whose first use is enough, 0 to 1."""
        if self in ("all", "second_use"):
            return float(self == "all")
        match = _NUMBER.fullmatch(self)
        if match is None or match[2] != "%":
            raise ConfigError(f"{_quote(self)} admits nothing: expected {_ADMIT_FORMS}")
        return float(Fraction(match[1]) / 100)


def parse_bytes(text: str, *, forms: str = _BYTES_FORMS) -> int:
    """Bytes of "64GiB" (1024-based) or "500MB" (1000-based), any case, fractions rounded down.

    `forms` tells in the ConfigError what was expected.
    """
    match = _NUMBER.fullmatch(text.strip())
    if match is None:
        raise ConfigError(f"{_quote(text)} is no size: expected {forms}")
    number, unit = match.groups()
    factor = _BYTES.get(unit.lower())
    if factor is None:
        raise ConfigError(_bad_byte_unit(text, number, unit, forms))
    n_bytes = int(Fraction(number) * factor)
    if n_bytes > _MAX_BYTES:
        raise ConfigError(f"{_quote(text)} is too large: expected at most {_MAX_BYTES // _BINARY['PiB']}PiB")
    return n_bytes


def format_bytes(n_bytes: int) -> str:
    """`n_bytes` (>= 0) for people, 1024-based, about three significant digits: "0 B", "17 KiB", "2.81 MiB"."""
    unit = "B"
    value = float(n_bytes)
    for larger, factor in _BINARY.items():
        if n_bytes < factor - factor // 2048:  # one step earlier than it would round to "1024"
            break
        unit, value = larger, n_bytes / factor
    digits = 0 if unit == "B" or value >= 100 else 1 if value >= 10 else 2
    text = f"{value:.{digits}f}"
    return f"{text.rstrip('0').rstrip('.') if '.' in text else text} {unit}"


def format_age(seconds: float) -> str:
    """How long ago, for people, in the largest whole unit: "12 s", "5 min", "3 h", "41 d"; "0 s" for the future."""
    for unit, factor in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= factor:
            return f"{int(seconds // factor)} {unit}"
    return f"{max(0, int(seconds))} s"


def _parse_seconds(text: str) -> float:
    match = _NUMBER.fullmatch(text)
    if match is None:
        raise ConfigError(f"{_quote(text)} is no time: expected {_DURATION_FORMS}")
    number, unit = match.groups()
    if not unit:
        if Fraction(number) == 0:
            return 0.0
        raise ConfigError(f"{_quote(text)} has no unit: expected {_DURATION_FORMS}")
    factor = _SECONDS.get(unit)
    if factor is None:
        raise ConfigError(f"{_quote(text)} has an unknown unit {unit!r}: expected {_DURATION_FORMS}")
    return float(Fraction(number) * factor)


def _bad_byte_unit(text: str, number: str, unit: str, forms: str) -> str:
    if not unit:
        return f"{_quote(text)} has no unit: expected {forms}"
    letter = unit.upper()
    if letter + "IB" in {name.upper() for name in _BINARY}:
        return f"{_quote(text)} is ambiguous: write {number}{letter}iB (1024-based) or {number}{letter}B (1000-based)"
    return f"{_quote(text)} has an unknown unit {unit!r}: expected {forms}"


def _quote(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
