"""Where a build keeps its store when a newer one has laid out the directory: in a folder there, within what is left."""

from __future__ import annotations

from pathlib import Path

from kvtier.errors import StoreError
from kvtier.store.directory import LOCK
from kvtier.store.manifest import DIRECTORY_FORMAT, MIN_CAPACITY_BYTES
from kvtier.store.private import DirectoryLock


def room_beside(directory: Path, capacity_bytes: int) -> tuple[Path, int]:
    """The folder for a store of this format in `directory`, and how much of `capacity_bytes` what is there leaves it.

    Raises StoreError when that is too little, or when the newer build is running and may yet fill the capacity.
    """
    with DirectoryLock(directory / LOCK) as lock:
        if not lock.acquire():
            raise StoreError(f"{directory} is in use by a newer version of kvtier, which may need all of the capacity")
    folder = directory / f"format-{DIRECTORY_FORMAT}"
    try:
        files = [path for path in directory.rglob("*") if not path.is_relative_to(folder)]
        left_bytes = capacity_bytes - sum(path.lstat().st_blocks * 512 for path in files)
    except OSError as error:
        raise StoreError(f"{directory} cannot be read: {error.strerror}") from error
    if left_bytes < MIN_CAPACITY_BYTES:
        raise StoreError(
            f"{directory}: a newer version of kvtier leaves {max(0, left_bytes)} bytes of the capacity, too few for a "
            f"store beside its own; delete that, or raise `disk.capacity`"
        )
    return folder, left_bytes
