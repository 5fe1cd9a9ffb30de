"""Everything that depends on the SGLang version: what was tested, what cannot be served, where its settings are."""

from __future__ import annotations

import contextlib
import importlib
import re
from typing import Any

from kvtier.errors import ConfigError

TESTED = ("0.5.21", "0.5.23")
"""SGLang versions whose real engine ran kvtier's end-to-end tests."""

OLDEST = (0, 5, 20)
"""Since then SGLang's page hashes cover a request's LoRA adapter and cache_salt. A backend sees neither."""

_BAGS = ("model", "exec", "lora", "parallel", "spec")
"""Groups of `sglang.srt.runtime_context` in which the resolved settings are."""


def version_warning(version: str) -> str | None:
    """One line for the operator if this SGLang is not one that was tested, else None. ConfigError if it is too old."""
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:3])
    if numbers < OLDEST:
        raise ConfigError(
            f"SGLang {version} leaves LoRA adapter and cache_salt out of its page hashes, so one tenant's requests "
            f"would get another's KV; kvtier needs SGLang {'.'.join(map(str, OLDEST))} or later"
        )
    if version.split("+", maxsplit=1)[0] in TESTED:
        return None
    return f"SGLang {version} has not been tested with this kvtier (tested: {', '.join(TESTED)}); going on"


class Settings:
    """The server's settings by name, resolved where SGLang says so; None for one that this version does not have."""

    def __init__(self) -> None:
        context = importlib.import_module("sglang.srt.runtime_context")
        self._places: list[Any] = []
        for name in _BAGS:
            try:
                self._places.append(getattr(context, f"get_{name}")())
            except (AttributeError, ValueError):  # ValueError: nothing was published, as in a unit test
                continue
        with contextlib.suppress(AttributeError, ValueError):
            self._places.append(context.get_server_args())

    def __getattr__(self, name: str) -> Any:
        for place in self._places:
            try:
                value = getattr(place, name)
            except (AttributeError, ValueError, RuntimeError, AssertionError):
                continue
            if value is not None:
                return value
        return None


def installed() -> str:
    """The version of the SGLang that runs in this process."""
    return str(importlib.import_module("sglang.version").__version__)
