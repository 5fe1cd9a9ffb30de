"""The prefix tree as a person reads it: runs of pieces joined, rare branches counted instead of shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from kvtier.lint.causes import Site
from kvtier.lint.tally import Node

_MAX_TEXT: Final = 300  # characters of one branch
_MAX_DEPTH: Final = 40
_MAX_CHILDREN: Final = 12


@dataclass(frozen=True, slots=True)
class Branch:
    """A run of the tree that the same requests have."""

    text: str
    site: Site | None  # set: a value that changes from request to request, or a block whose order may
    requests: int
    tokens: int
    lost_tokens: int  # behind it, in requests whose prefix broke in it
    children: tuple[Branch, ...]
    others: int  # requests that go on in ways that are not shown: alone, or too few to show

    def to_tree(self) -> dict[str, Any]:
        """For --json."""
        return {
            "text": self.text,
            "cause": self.site.cause.value if self.site else None,
            "requests": self.requests,
            "tokens": self.tokens,
            "lost_tokens": self.lost_tokens,
            "others": self.others,
            "children": [child.to_tree() for child in self.children],
        }


def view(root: Node, *, min_share: float = 0.005) -> Branch:
    """The tree below `root`, without branches that fewer than `min_share` of all requests (or two of them) have."""
    return _branch(root, max(2, int(root.passes * min_share)), _MAX_DEPTH)


def _branch(node: Node, least: int, depth: int) -> Branch:
    texts, tokens, lost, site = [node.text], node.tokens, node.lost_tokens, node.site
    passes = node.passes
    while not site and len(node.children) == 1 and node.children[0].passes == passes and not node.children[0].site:
        node = node.children[0]
        tokens += node.tokens
        lost += node.lost_tokens
        texts.append(node.text)
    shown = sorted((child for child in node.children if child.passes >= least), key=lambda child: -child.passes)
    shown = shown[:_MAX_CHILDREN] if depth else []
    children = tuple(_branch(child, least, depth - 1) for child in shown)
    text = "".join(c if c.isprintable() or c == "\n" else "?" for c in "\n".join(filter(None, texts)))
    return Branch(
        text=text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]}...",
        site=site,
        requests=passes,
        tokens=tokens,
        lost_tokens=lost,
        children=children,
        others=passes - sum(child.requests for child in children),
    )
