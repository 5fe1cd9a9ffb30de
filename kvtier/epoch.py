"""Epoch: a persistent counter per namespace that a change of weights in a running engine bumps.

Frames of one epoch are never found in another. An epoch in which the engine started from the weights on disk (pristine)
goes on after a restart. An epoch begun by a reset holds KV of weights that only that process knew, so the next start
begins a new one.
"""

from __future__ import annotations

import json
import secrets
from typing import TYPE_CHECKING

from kvtier.files import replace_file

if TYPE_CHECKING:
    from pathlib import Path

    from kvtier.keys import Namespace

NAMESPACES = "namespaces"
"""Folder beside a store in which each namespace has its small files."""


class Epoch:
    """The epoch of one namespace, filed under `folder`. Used by one engine process at a time."""

    def __init__(self, folder: Path | None, namespace: Namespace) -> None:
        """Read or start the epoch. Without a folder, or with one that cannot be written, it lasts for this process."""
        self._namespace = namespace
        self._file = folder / f"{namespace.base()}.json" if folder is not None else None
        self.persistent = self._file is not None
        number, pristine = self._read()
        self._number = number if pristine else number + 1
        self._nonce = ""
        self._write(pristine=True)

    @property
    def name(self) -> str:
        """What goes into the namespace digest."""
        return f"{self._number}{self._nonce}"

    def bump(self) -> None:
        """Begin an epoch that no frame written so far belongs to."""
        self._number += 1
        self._nonce = _nonce()  # the file may get lost, and the numbers begin anew: this epoch must not come again
        self._write(pristine=False)

    def _read(self) -> tuple[int, bool]:
        if self._file is None:
            return 0, True
        try:
            tree = json.loads(self._file.read_text())
            return int(tree["epoch"]), tree["pristine"] is True
        except FileNotFoundError:
            return 0, True
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
            # Unreadable: what was written before cannot be told apart any more, so nothing of it may be found.
            return secrets.randbits(48), True

    def _write(self, *, pristine: bool) -> None:
        if self._file is None:
            self._nonce = _nonce()
            return
        tree = {"epoch": self._number, "pristine": pristine, "namespace": dict(self._namespace.fields)}
        try:
            self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            replace_file(self._file, json.dumps(tree, indent=1, sort_keys=True).encode())
        except OSError:
            self.persistent = False
            self._nonce = _nonce()


def _nonce() -> str:
    return f"-{secrets.token_hex(8)}"
