"""Borrowed: the `with` block of one read of an LMDB shard, and what keeps the frame's bytes while it lasts."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Generic, Protocol, TypeVar

from kvtier.store.direct import PageRun
from kvtier.store.lmdb_index import PAGE_HEADER_BYTES, Entry, is_page_of
from kvtier.types import ChunkKey


class _Transaction(Protocol):
    def abort(self) -> None: ...


_Txn = TypeVar("_Txn", bound=_Transaction)


class _Shard(Protocol[_Txn]):
    page_bytes: int

    def begin(self) -> _Txn: ...

    def find(self, txn: _Txn, key: ChunkKey) -> Entry | memoryview | None: ...


class Borrowed(Generic[_Txn]):
    """Entered and left on one thread."""

    __slots__ = ("_frame", "_key", "_read_pages", "_run", "_shard", "_txn")

    def __init__(self, shard: _Shard[_Txn], key: ChunkKey, read_pages: Callable[[Entry], PageRun]) -> None:
        """Find `key` in `shard`; `read_pages` is for frames in pages of their own."""
        self._shard = shard
        self._key = key
        self._read_pages = read_pages

    def __enter__(self) -> memoryview | None:
        self._run: PageRun | None = None
        self._txn: _Txn | None = self._shard.begin()
        try:
            found = self._shard.find(self._txn, self._key)
            self._frame = self._copy(found) if isinstance(found, Entry) else found
        except BaseException:
            self._end()
            raise
        return self._frame

    def _copy(self, entry: Entry) -> memoryview:
        """The frame read from its own pages, which only have to stay what they are until then."""
        self._run = self._read_pages(entry)
        self._end()
        if not is_page_of(self._run.view, entry.page, entry.n_bytes, self._shard.page_bytes):
            return memoryview(b"")
        return self._run.view[PAGE_HEADER_BYTES:]

    def _end(self) -> None:
        if self._txn is not None:
            self._txn.abort()
            self._txn = None

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _tb: TracebackType | None
    ) -> None:
        # An array over the view may still hang on the traceback of an error; it then dies with that.
        with suppress(BufferError):
            if self._frame is not None:
                self._frame.release()
            if self._run is not None:
                self._run.close()
        self._end()
