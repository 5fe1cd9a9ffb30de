"""The prefix tree: requests, one after another -> what was shared, what could have been, and who is to blame.

Two chains of hashes run over the pieces of a request: the exact one tells what an earlier request already sent, the
settled one what an earlier request would have sent if both had been written to share. Where the exact chain is new and
the settled one is old, tokens are lost, and the pieces that differ up to there are to blame. A chain is a set of 64-bit
hashes: memory grows with distinct pieces, never with text. At 10^8 pieces the chance of one false share is 3 in 10,000.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator
from typing import Final

from kvtier.lint.pieces import Cutter, Piece
from kvtier.lint.read import Request
from kvtier.lint.tally import Node, Tally
from kvtier.lint.walk import Seen, Walk

MAX_NODES: Final = 200_000  # of the tree that is shown, before rare ones are dropped
MAX_SITES: Final = 20_000
MAX_GAINS: Final = 100_000
_CHANGEABLE: Final = frozenset({"prompt", "system", "developer", "tools"})  # the operator writes them


class PrefixTree:
    """Takes requests in any order. Not thread-safe. Nothing is blamed on what a user or a model said in a chat."""

    def __init__(self, cutter: Cutter, *, isolate_tenants: bool = False) -> None:
        self.tally = Tally()
        self._cutter = cutter
        self._isolate = isolate_tenants
        self._seen = Seen()

    def add(self, request: Request) -> None:
        """Count one request."""
        tally = self.tally
        tally.requests += 1
        tally.root.passes += 1
        if request.timestamp is not None:
            at = request.timestamp
            tally.first_s = at if tally.first_s is None else min(tally.first_s, at)
            tally.last_s = at if tally.last_s is None else max(tally.last_s, at)
        if request.tenant is not None:
            tally.tenants.add(request.tenant)
        seed = hash(("tenant", request.tenant)) if self._isolate else 0
        Walk(self._seen, tally, seed=seed, line=request.line).run(self._pieces(request))
        tally.n_pieces = len(self._seen.settled)
        self._forget_the_rare()

    def _forget_the_rare(self) -> None:
        """Keep what is shown and named bounded: of what few requests have, only the sums stay."""
        tally, seen = self.tally, self._seen
        least = 1
        while len(seen.nodes) > MAX_NODES:
            least *= 2
            seen.nodes = _pruned(tally.root, least)
        least = 1
        while len(tally.sites) > MAX_SITES:
            least *= 2
            tally.sites = {site: known for site, known in tally.sites.items() if known.passes + known.affected > least}
        while len(tally.gains) > MAX_GAINS:
            middle = sorted(tally.gains.values())[len(tally.gains) // 2]
            tally.gains = collections.Counter({key: n for key, n in tally.gains.items() if n > middle})

    def _pieces(self, request: Request) -> Iterator[Piece | None]:
        """The pieces, and None behind each message whose values cannot be moved behind the messages that follow."""
        said = False
        for turn in request.turns:
            changeable = turn.role in _CHANGEABLE
            # The first message of the user often carries the operator's own text; what follows is history.
            yield from self._cutter.cut(turn, fixed=not changeable and (turn.role != "user" or said))
            if not changeable:
                said = said or turn.role == "user"
                yield None


def _pruned(root: Node, least: int) -> dict[int, Node]:
    """Drop the nodes below `root` that at most `least` requests have; returns the others by key."""
    kept: dict[int, Node] = {}
    rest = [root]
    while rest:
        node = rest.pop()
        node.children = [child for child in node.children if child.passes > least]
        kept.update((child.key, child) for child in node.children)
        rest += node.children
    return kept
