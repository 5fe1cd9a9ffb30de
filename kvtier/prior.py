"""Prior: what was measured, kept beside a namespace, so that a restarted engine need not learn it again.

What cannot be read or written is only unknown; nothing depends on it but the first decisions of the load gate.
"""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING

from kvtier.files import replace_file

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from kvtier.keys import Namespace

WORTH_WRITING = 1.25
"""Numbers are written when one of them has moved by this factor since."""


class Prior:
    """Some numbers in a file, none of them negative. `save` is called from one thread."""

    def __init__(self, folder: Path, namespace: Namespace, name: str, n: int) -> None:
        """Keep `n` of them in `folder`, which exists, as `<namespace>.<name>`."""
        self._file = folder / f"{namespace.base()}.{name}"
        self._n = n
        self._written = self.load()

    def load(self) -> tuple[float, ...] | None:
        """The numbers last saved."""
        try:
            numbers = tuple(float(word) for word in self._file.read_text().split())
        except (OSError, ValueError):
            return None
        return numbers if len(numbers) == self._n and all(math.isfinite(x) and x >= 0 for x in numbers) else None

    def save(self, numbers: Sequence[float]) -> None:
        """Write them if they have changed enough to matter. Never raises OSError."""
        if self._written is not None and all(map(_close, numbers, self._written)):
            return
        with contextlib.suppress(OSError):
            replace_file(self._file, (" ".join(f"{x:.4g}" for x in numbers) + "\n").encode())
            self._written = tuple(numbers)


def _close(a: float, b: float) -> bool:
    return a == b or (min(a, b) > 0 and max(a, b) / min(a, b) < WORTH_WRITING)
