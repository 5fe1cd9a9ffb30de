"""What makes prompts part ways: the causes a report can name, and the rewrite that removes each."""

from __future__ import annotations

import enum
from typing import Final, NamedTuple


class Cause(enum.StrEnum):
    """Why two prompts that could share a prefix do not. The values are stable: they are in the JSON report."""

    TIMESTAMP = "timestamp"
    ID = "id"
    USER = "user"
    COUNTER = "counter"
    IMAGE = "image"
    JSON_KEY_ORDER = "json_key_order"
    WHITESPACE = "whitespace"
    TOOL_ORDER = "tool_order"
    DOCUMENT_ORDER = "document_order"


TITLES: Final[dict[Cause, str]] = {
    Cause.TIMESTAMP: "a time or date",
    Cause.ID: "a request, session or object id",
    Cause.USER: "a user's name or address",
    Cause.COUNTER: "a counter",
    Cause.IMAGE: "an image",
    Cause.JSON_KEY_ORDER: "JSON keys in changing order",
    Cause.WHITESPACE: "whitespace or template differences",
    Cause.TOOL_ORDER: "tools in changing order",
    Cause.DOCUMENT_ORDER: "documents in changing order",
}


class Site(NamedTuple):
    """One place of a prompt where a cause acts: all requests with the same cause, text before it and role."""

    cause: Cause
    label: str  # the text before it on its line, shortened; may be empty
    role: str

    @property
    def shown(self) -> str:
        """The place as a reader knows it: `Current time: ...`."""
        return f"{''.join(c if c.isprintable() else '?' for c in self.label)} ..." if self.label else "..."

    @property
    def rewrite(self) -> str:
        """The change to make to the prompts."""
        return _rewrite(self)


_FIXED: Final = {
    Cause.WHITESPACE: "render every prompt with one template: same line ends, blank lines, spaces and special tokens",
    Cause.TOOL_ORDER: "sort tools by name",
    Cause.DOCUMENT_ORDER: "put retrieved documents in a fixed order (by id, say), without the rank in front",
    Cause.IMAGE: "put images behind the text that does not change",
}
_BEHIND_SYSTEM: Final = "after the system prompt (into the last message: before it, it still cuts off the conversation)"
_PLACES: Final = {
    "system": _BEHIND_SYSTEM,
    "developer": _BEHIND_SYSTEM,
    "tools": "out of the tool definitions",
    "user": "to the end of the message",
}


def _rewrite(site: Site) -> str:
    if fixed := _FIXED.get(site.cause):
        return fixed
    if site.cause is Cause.JSON_KEY_ORDER:
        where = f' in "{site.shown}"' if site.label else ""
        return f"write JSON with sorted keys{where}"
    place = _PLACES.get(site.role, "to the end of the prompt, behind everything that does not change")
    what = f'"{site.shown}"' if site.label else TITLES[site.cause]
    return f"drop {what}, or move it {place}" if site.cause is Cause.ID else f"move {what} {place}"
