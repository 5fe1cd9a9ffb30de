"""Epoch: a persistent counter per namespace that a change of weights in a running engine bumps.

Frames of one epoch are never found in another. An epoch in which the engine started from the weights on disk (pristine)
goes on after a restart. An epoch begun by a reset holds KV of weights that only that process knew, so the next start
begins a new one.
"""

from __future__ import annotations

import json
import secrets
from typing import TYPE_CHECKING

from kvtier.files import only_one, replace_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from kvtier.keys import Namespace

NAMESPACES = "namespaces"
"""Folder beside a store in which each namespace has its small files."""


LOCK = "lock"
"""In the folder; held while one process reads an epoch and writes the next."""

TURN_TIMEOUT_S = 1.0
"""How long to wait for that. Who waits in vain goes on in an epoch of its own: cold, never wrong."""


class Epoch:
    """The epoch of one namespace, filed under `folder`. Other processes may have the same namespace open.

    A reset in one of them concerns that one alone: the others go on in the epoch they are in, which is of the weights
    that they have.
    """

    def __init__(self, folder: Path | None, namespace: Namespace) -> None:
        """Read or start the epoch. Without a folder, or with one that cannot be written, it lasts for this process."""
        self._namespace = namespace
        self._file = folder / f"{namespace.base()}.json" if folder is not None else None
        self._number = 0
        self._nonce = ""
        self.persistent = self._file is not None
        self._update(lambda number, pristine: number if pristine else number + 1, pristine=True)

    @property
    def name(self) -> str:
        """What goes into the namespace digest."""
        return f"{self._number}{self._nonce}"

    def bump(self) -> None:
        """Begin an epoch that no frame written so far belongs to."""
        self._nonce = _nonce()  # the file may get lost, and the numbers begin anew: this epoch must not come again
        self._update(lambda number, _: max(number, self._number) + 1, pristine=False)

    def _update(self, following: Callable[[int, bool], int], *, pristine: bool) -> None:
        """Go on with what comes after what the file says, and write that down before any other process reads it."""
        if self._file is None:
            self._number, self._nonce = following(self._number, True), _nonce()
            return
        try:
            self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with only_one(self._file.parent / LOCK, TURN_TIMEOUT_S):
                self._number = following(*self._read(self._file))
                tree = {"epoch": self._number, "pristine": pristine, "namespace": dict(self._namespace.fields)}
                replace_file(self._file, json.dumps(tree, indent=1, sort_keys=True).encode())
        except OSError:
            self.persistent = False
            self._number, self._nonce = following(self._number, True), _nonce()

    @staticmethod
    def _read(file: Path) -> tuple[int, bool]:
        try:
            tree = json.loads(file.read_text())
            return int(tree["epoch"]), tree["pristine"] is True
        except FileNotFoundError:
            return 0, True
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
            # Unreadable: what was written before cannot be told apart any more, so nothing of it may be found.
            return secrets.randbits(48), True


def _nonce() -> str:
    return f"-{secrets.token_hex(8)}"
