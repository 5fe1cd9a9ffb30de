"""The prefix tree: requests, one after another -> what was shared, what could have been, and who is to blame.

Two chains of hashes run over the pieces of a request: the exact one tells what an earlier request already sent, the
settled one what an earlier request would have sent if both had been written to share. Where the exact chain is new and
the settled one is old, tokens are lost, and the pieces that differ up to there are to blame. A chain is a set of 64-bit
hashes: memory grows with distinct pieces, never with text. At 10^8 pieces the chance of one false share is 3 in 10,000.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from kvtier.lint.pieces import Cutter, Piece
from kvtier.lint.read import Request
from kvtier.lint.tally import Tally
from kvtier.lint.walk import Seen, Walk

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
