"""Types of command line arguments: text -> value, or an ArgumentTypeError that says what was expected."""

from __future__ import annotations

import argparse
import re

from kvtier.errors import ConfigError
from kvtier.units import Duration, parse_bytes


def count(text: str) -> int:
    """A whole number, 1 to 999,999,999."""
    if not re.fullmatch(r"0*[1-9][0-9]{0,8}", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number, at least 1")
    return int(text)


def size(text: str) -> int:
    """Bytes with a unit."""
    try:
        return parse_bytes(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def duration(text: str) -> float:
    """A time with a unit, in seconds."""
    try:
        return Duration(text).seconds
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
