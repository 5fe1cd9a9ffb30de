"""Prior: one measured rate kept beside a namespace, so that a restarted engine need not learn it again.

A rate that cannot be read or written is only unknown; nothing depends on it but the first decisions of the load gate.
"""

from __future__ import annotations

import contextlib
import math
import os
from typing import TYPE_CHECKING

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
        temporary = self._file.with_name(f"{self._file.name}.tmp")
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(fd, "w") as out:
                out.write(f"{value:.1f}\n")
            temporary.replace(self._file)
            self._written = value
