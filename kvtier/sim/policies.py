"""Policies by the names people type: `lru`, `slru-g30`, `slru20`; two names, `lru/slru-g30`, are host's and disk's."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Self

from kvtier.errors import ConfigError
from kvtier.policy.linked import LinkedSlru
from kvtier.policy.slru import PROTECTED_SHARE, Slru

FORMS: Final = "lru, slru-g30 (30 % protected, with a ghost list), slru30 (without one)"
_SLRU: Final = re.compile(r"slru(-g|-?)([1-9][0-9]?)", re.ASCII)
DEFAULT: Final = f"slru-g{PROTECTED_SHARE * 100:.0f}"


@dataclass(frozen=True, slots=True)
class Policy:
    """An eviction policy that can be made for any capacity."""

    name: str
    protected: float
    ghosts: bool

    @classmethod
    def parse(cls, name: str) -> Self:
        """The policy called `name`. Raises ConfigError."""
        if name == "lru":
            return cls(name, 0.0, ghosts=False)
        if name == "slru":
            return cls.parse(DEFAULT)
        match = _SLRU.fullmatch(name)
        if match is None:
            raise ConfigError(f"{name!r} is no policy: expected {FORMS}, or two of them for host/disk")
        return cls(name, int(match[2]) / 100, ghosts=match[1] == "-g")

    def make(self, capacity: int) -> Slru:
        """The policy for a tier of `capacity` blocks."""
        return Slru(capacity, protected=self.protected, ghosts=None if self.ghosts else 0)

    def make_linked(self, capacity: int) -> LinkedSlru:
        """The same policy as production's disk tier has it."""
        return LinkedSlru(capacity, protected=self.protected, ghosts=None if self.ghosts else 0)


@dataclass(frozen=True, slots=True)
class Pair:
    """The policies of both tiers."""

    host: Policy
    disk: Policy

    @classmethod
    def parse(cls, name: str) -> Self:
        """One name for both tiers, or `host/disk`. Raises ConfigError."""
        host, slash, disk = name.partition("/")
        return cls(Policy.parse(host), Policy.parse(disk if slash else host))

    @property
    def name(self) -> str:
        """As `parse` reads it."""
        return self.host.name if self.host == self.disk else f"{self.host.name}/{self.disk.name}"
