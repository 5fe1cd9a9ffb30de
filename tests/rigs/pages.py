"""Pages over a real store, and an engine's own memory to copy from and to. The test is the engine."""

import ctypes
import random
from collections.abc import Callable, Mapping
from pathlib import Path

from kvtier import config as config_module
from kvtier.build import Kvtier, build, frame_room
from kvtier.codec.pieces import Segments
from kvtier.keys import NO_TENANT, Namespace
from kvtier.pages import Pages
from kvtier.pages_cache import PagesCache
from kvtier.transfer.slots import FrameSlots
from kvtier.types import ChunkKey, Geometry

PAGE_BYTES = 16 << 10
KIND = b"kv-pages"
SMALL_KIND, SMALL_BYTES = b"sidecar-", 3000
SEGMENTS = 4


def page(name: str, n_bytes: int = PAGE_BYTES) -> bytes:
    """What the page `name` holds: the same in every process."""
    return random.Random(name).randbytes(n_bytes)


class Memory:
    """A page of the engine's memory in several pieces, not in order."""

    def __init__(self, content: bytes) -> None:
        step = -(-len(content) // SEGMENTS)
        self._pieces = [bytearray(content[i : i + step]) for i in range(0, len(content), step)]

    @property
    def segments(self) -> Segments:
        return [(ctypes.addressof(ctypes.c_char.from_buffer(piece)), len(piece)) for piece in self._pieces]

    @property
    def content(self) -> bytes:
        return b"".join(self._pieces)


class PagesRig:
    """One start of an engine that uses pages."""

    def __init__(
        self,
        folder: Path | None,
        *,
        n_slots: int = 16,
        timeout_s: float = 20.0,
        disk: Mapping[str, object] | None = None,
        namespace: Mapping[str, str] | None = None,
        more: Mapping[str, object] | None = None,
    ) -> None:
        settings: dict[str, object] = {"version": 1, "disk": "off", **(more or {})}
        if folder is not None:
            settings["disk"] = {
                "path": str(folder), "capacity": "64MiB", "write_behind_after": "0s", "load": "always", **(disk or {})
            }  # fmt: skip
        self.reports: list[str] = []
        config = config_module.parse(settings)
        geometry = Geometry(PAGE_BYTES, 16, "bfloat16")
        row_bytes = frame_room(config, geometry)
        self._pool = bytearray(n_slots * row_bytes)
        slots = FrameSlots(memoryview(self._pool), row_bytes)
        self.kvtier: Kvtier = build(
            config,
            geometry,
            slots,
            Namespace(namespace or {"model": "m"}),
            report=self.reports.append,
            emit=lambda line: None,
            make_cache=PagesCache,
        )
        cache = self.kvtier.cache
        assert isinstance(cache, PagesCache)
        self.cache = cache
        self.pages = Pages(
            self.cache, slots, self.kvtier.sealing, self.kvtier.read, n_threads=2,
            get_timeout_s=timeout_s, put_timeout_s=timeout_s,
        )  # fmt: skip
        self.kvtier.before_stop(self.pages.stop)

    def keys(self, names: list[str], kind: bytes = KIND) -> list[ChunkKey]:
        return [ChunkKey(self.kvtier.family + kind + NO_TENANT + name.encode()) for name in names]

    def put(self, names: list[str], kind: bytes = KIND, n_bytes: int = PAGE_BYTES) -> list[bool]:
        memory = [Memory(page(name, n_bytes)) for name in names]
        return self.pages.put(self.keys(names, kind), [m.segments for m in memory])

    def get(self, names: list[str], kind: bytes = KIND, n_bytes: int = PAGE_BYTES) -> tuple[list[object], list[bytes]]:
        """Where each came from or why not, and what its memory holds then; zeros before."""
        memory = [Memory(bytes(n_bytes)) for _ in names]
        got = self.pages.get(self.keys(names, kind), [m.segments for m in memory])
        return list(got), [m.content for m in memory]

    def settle(self, enough: Callable[[], bool] | None = None) -> None:
        """Wait until everything taken over has been written, or `enough`."""
        while not (enough() if enough else self.cache.n_dirty() == 0):
            seen = self.cache.n_changes
            if not (enough() if enough else self.cache.n_dirty() == 0):
                assert self.cache.wait(seen, 20.0)

    def stop(self) -> None:
        self.kvtier.stop()
