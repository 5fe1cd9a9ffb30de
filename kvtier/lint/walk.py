"""One request's way down the prefix tree: its pieces -> counts in the tally, and hashes for those who follow."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Final

from kvtier.lint.causes import Cause, Site
from kvtier.lint.pieces import Kind, Piece
from kvtier.lint.tally import Node, SiteTally, Tally

_EXAMPLES: Final = 3


class Seen:
    """All that is kept of earlier requests: hashes, and the nodes to show."""

    __slots__ = ("exact", "forked", "nodes", "settled", "spaced", "variants")

    def __init__(self) -> None:
        self.exact: set[int] = set()  # exact prefixes
        self.settled: set[int] = set()  # settled prefixes
        self.variants: set[int] = set()  # (settled prefix, a form of the next piece), and (settled prefix, None)
        self.forked: set[int] = set()  # settled prefixes whose next piece came in two forms
        self.spaced: set[int] = set()  # settled prefixes whose last piece was once written with other spaces
        self.nodes: dict[int, Node] = {}


class Walk:
    """One request. Use once."""

    __slots__ = ("_blamed", "_broken_at", "_exact", "_gain", "_here", "_last", "_line", "_node", "_order", "_passed",
                 "_seen", "_segments", "_settled", "_tally", "_tokens")  # fmt: skip

    def __init__(self, seen: Seen, tally: Tally, *, seed: int, line: int) -> None:
        self._seen = seen
        self._tally = tally
        self._line = line
        self._exact = self._settled = seed
        self._tokens = 0
        self._gain = 0  # tokens that are lost
        self._node = self._broken_at = tally.root
        self._last: Site | None = None  # of the last piece that came in two forms
        self._here: set[Site] = set()  # blamed in this message
        self._blamed: frozenset[Site] = frozenset()
        self._order: list[tuple[Site, int]] = []  # who broke the prefix, and the gain before it
        self._segments: dict[frozenset[Site], int] = {}
        self._passed: set[Site] = set()

    def run(self, pieces: Iterable[Piece | None]) -> None:
        """Count the pieces; None ends a message whose values cannot be moved behind what follows it."""
        rest = iter(pieces)
        broken = self._while_whole(rest)
        self._tally.hit_tokens += self._tokens
        if broken:
            self._while_shared(broken, rest)
            for piece in rest:
                if piece:
                    self._insert(piece)
        self._finish()

    def _while_whole(self, rest: Iterator[Piece | None]) -> Piece | None:
        """Follow the exact prefix as long as it is an old one; returns the first new piece, not counted yet."""
        seen, forked, exact = self._seen.exact, self._seen.forked, self._exact
        for piece in rest:
            if piece is None:
                continue
            after = hash((exact, piece.exact))
            if after not in seen:
                self._exact = exact
                return piece
            exact = after
            self._tokens += piece.tokens
            if piece.kind:
                self._passed.add(piece.site)
                if self._settled in forked:
                    self._last = piece.site
            if piece.settled:
                self._settled = hash((self._settled, piece.settled))
                self._visit(piece)
        return None

    def _while_shared(self, broken: Piece, rest: Iterator[Piece | None]) -> None:
        """Follow the settled prefix as long as it is an old one."""
        first = True
        for piece in itertools.chain((broken,), rest):
            if piece is None:
                if any(site.cause is not Cause.WHITESPACE for site in self._here):
                    return
                continue
            site = self._blame(piece, first=first)
            if not self._insert(piece):
                return
            self._visit(piece)
            if not self._order:
                self._broken_at = self._node
            if site and site not in self._blamed:
                self._blamed |= {site}
                self._here.add(site)
                self._order.append((site, self._gain))
            if piece.kind is not Kind.VOLATILE and piece.settled and self._blamed:
                self._gain += piece.tokens
                self._segments[self._blamed] = self._segments.get(self._blamed, 0) + piece.tokens
            first = False

    def _blame(self, piece: Piece, *, first: bool) -> Site | None:
        """Who made the exact prefix differ here. `first`: it was an old one up to this piece, so somebody did."""
        seen, before = self._seen, self._settled
        if piece.kind is Kind.PLAIN:
            if not first:
                return None
            spaced = hash((before, piece.settled)) in seen.spaced
            return piece.site if spaced or not self._last else self._last
        if hash((before, piece.exact)) in seen.variants:
            # Not this piece alone: an old value behind another old value that it never followed.
            return (piece.site if piece.kind is Kind.VOLATILE else self._last or piece.site) if first else None
        for site, form in piece.forms:
            if hash((before, form)) in seen.variants:
                return site
        return piece.site

    def _insert(self, piece: Piece) -> bool:
        """Move on by one piece and remember it; returns whether the settled prefix is an old one."""
        seen, before = self._seen, self._settled
        self._tokens += piece.tokens
        exact = self._exact = hash((self._exact, piece.exact))
        seen.exact.add(exact)
        if piece.kind:
            self._passed.add(piece.site)
            self._learn(piece)
        if not piece.settled:
            return True
        settled = self._settled = hash((before, piece.settled))
        if piece.kind is Kind.SPACED:
            seen.spaced.add(settled)
        if settled in seen.settled:
            return True
        seen.settled.add(exact if exact == settled else settled)  # one object in both sets
        return False

    def _learn(self, piece: Piece) -> None:
        variants, before = self._seen.variants, self._settled
        form = hash((before, piece.exact))
        if form not in variants:
            any_form = hash((before, None))
            if any_form in variants:
                self._seen.forked.add(before)
            variants.add(any_form)
            variants.add(form)
            variants.update(hash((before, form)) for _, form in piece.forms)
        if before in self._seen.forked:
            self._last = piece.site

    def _visit(self, piece: Piece) -> None:
        """Count this request at the node of its settled prefix, which is at least the second one there."""
        if not piece.settled:
            return
        nodes = self._seen.nodes
        node = nodes.get(self._settled)
        if node is None:
            site = piece.site if piece.kind >= Kind.VOLATILE else None
            node = nodes[self._settled] = Node(self._settled, piece.text, site, piece.tokens, 1)
            self._node.children.append(node)
        node.passes += 1
        self._node = node

    def _finish(self) -> None:
        tally = self._tally
        tally.tokens += self._tokens
        for site in self._passed:
            if site.cause is not Cause.WHITESPACE:
                self._site(site).passes += 1
        if not self._gain:
            return
        tally.gains.update(self._segments)
        self._broken_at.lost_tokens += self._gain
        for site, gained in self._order:
            behind = self._gain - gained
            if behind:
                known = self._site(site)
                known.affected += 1
                known.lost_tokens += behind
                if len(known.lines) < _EXAMPLES:
                    known.lines.append(self._line)

    def _site(self, site: Site) -> SiteTally:
        known = self._tally.sites.get(site)
        if known is None:
            known = self._tally.sites[site] = SiteTally()
        return known
