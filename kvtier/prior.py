"""Prior: one measured rate kept beside a namespace, so that a restarted engine need not learn it again.

A rate that cannot be read or written is only unknown; nothing depends on it but the first decisions of the load gate.
"""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING

from kvtier.files import replace_file

if TYPE_CHECKING:
    from pathlib import Path

    from kvtier.keys import Namespace

WORTH_WRITING = 1.25
"""A rate is written when it has moved by this factor since."""


class Prior:
    """A positive number in a file. `save` is called from one thread."""

    def __init__(self, folder: Path, namespace: Namespace, name: str) -> None:
        """Keep it in `folder`, which exists, as `<namespace>.<name>`."""
        self._file = folder / f"{namespace.base()}.{name}"
        self._written = self.load()

    def load(self) -> float:
        """The number last saved, 0 if there is none."""
        try:
            value = float(self._file.read_text())
        except (OSError, ValueError):
            return 0.0
        return value if math.isfinite(value) and value > 0 else 0.0

    def save(self, value: float) -> None:
        """Write it if it has changed enough to matter. Never raises OSError."""
        if value <= 0 or 1 / WORTH_WRITING < value / (self._written or math.inf) < WORTH_WRITING:
            return
        with contextlib.suppress(OSError):
            replace_file(self._file, f"{value:.1f}\n".encode())
            self._written = value
