"""A cache directory for people: where stores lie below it, and which names its key families have. Looks only."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kvtier.epoch import NAMESPACES
from kvtier.errors import StoreError
from kvtier.keys import Namespace
from kvtier.store.manifest import MANIFEST
from kvtier.usage import SUFFIX, read_usage

if TYPE_CHECKING:
    from collections.abc import Mapping

_MAX_EPOCHS = 4096
_MAX_FILE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Named:
    """One namespace in one epoch: what the first bytes of its keys stand for."""

    name: str  # of the namespace, as its files are called
    fields: Mapping[str, str | int]
    epoch: int
    current: bool  # an engine of this namespace reuses it; older epochs are never found again
    usage: Mapping[str, int]

    @property
    def model(self) -> str:
        """The last part of the model's path or name."""
        return Path(str(self.fields.get("model", "?"))).name or "?"

    @property
    def answers_to(self) -> tuple[str, ...]:
        """What people may call it."""
        return self.name, self.model, str(self.fields.get("model", ""))

    @property
    def dtype(self) -> str:
        """Of the KV."""
        configured, _, own = str(self.fields.get("kv_dtype", "")).partition(" ")
        return own if configured == "auto" and own else configured or "?"

    @property
    def chunk_bytes(self) -> int | None:
        """Uncompressed bytes of one chunk, where the namespace says."""
        n_bytes = self.fields.get("chunk_bytes")
        return n_bytes if isinstance(n_bytes, int) else None


def find_stores(path: Path) -> list[Path]:
    """The stores at `path` and one level below it. StoreError when there is none."""
    try:
        below = sorted(child for child in path.iterdir() if child.is_dir()) if path.is_dir() else []
        found = [folder for folder in (path, *below) if (folder / MANIFEST).is_file()]
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from error
    if not found:
        raise StoreError(f"{path}: no kvtier cache there; name the directory of `disk.path`, or the YAML file")
    return found


def read_names(store: Path) -> dict[bytes, Named]:
    """Key family -> its name, for all that the files beside a store tell. Epochs that a reset began stay unnamed."""
    names: dict[bytes, Named] = {}
    folder = store / NAMESPACES
    for file in sorted(folder.glob("*.json")) if folder.is_dir() else ():
        try:
            with file.open("rb") as content:
                tree = json.loads(content.read(_MAX_FILE_BYTES))
            namespace = Namespace(dict(tree["namespace"]))
            newest, pristine = int(tree["epoch"]), tree["pristine"] is True
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
            continue
        usage = read_usage(folder / (namespace.base() + SUFFIX))
        for epoch in range(max(0, newest - _MAX_EPOCHS), newest + 1):
            current = epoch == newest and pristine
            names[namespace.family(str(epoch))] = Named(
                namespace.base(), namespace.fields, epoch, current, usage if current else {}
            )
    return names
