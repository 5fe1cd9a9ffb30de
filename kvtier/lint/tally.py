"""What the prefix tree counts: plain data from the walk to the report."""

from __future__ import annotations

import collections
from dataclasses import dataclass, field

from kvtier.lint.causes import Site


@dataclass(slots=True)
class SiteTally:
    """What one site did."""

    passes: int = 0  # requests that have it
    affected: int = 0  # requests that lost tokens behind it
    lost_tokens: int = 0
    lines: list[int] = field(default_factory=list)  # of some affected requests


@dataclass(slots=True)
class Node:
    """A settled prefix that at least two requests have, by its last piece."""

    key: int  # hash of the prefix
    text: str
    site: Site | None  # of a value that changes, or of a block whose order may
    tokens: int  # of the piece
    passes: int  # requests that have this prefix
    children: list[Node] = field(default_factory=list)
    lost_tokens: int = 0  # behind it, in requests whose exact prefix ended here


@dataclass(slots=True)
class Tally:
    """Everything known after some requests. Hits are those of a cache that never forgets."""

    requests: int = 0
    tokens: int = 0
    hit_tokens: int = 0
    sites: dict[Site, SiteTally] = field(default_factory=dict)
    # Tokens that would hit as well if all sites of the key were put right.
    gains: collections.Counter[frozenset[Site]] = field(default_factory=collections.Counter)
    root: Node = field(default_factory=lambda: Node(0, "", None, 0, 0))
    n_pieces: int = 0  # distinct
    first_s: float | None = None  # unix
    last_s: float | None = None
    tenants: set[str] = field(default_factory=set)
