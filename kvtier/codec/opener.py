"""Opener: a plain frame of byte planes -> its values: read from its file, verified and decoded in one native call.

It knows the frames that this build writes and no others. To anything else, damage above all, it says no, and frame.py
goes the long way, which also knows what is wrong. GB/s are in docs/performance.md, "Cold reads".
"""

from __future__ import annotations

import ctypes
import threading
import weakref
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, Protocol

from kvtier.codec import entropy
from kvtier.codec.forms import EXTENSION, INTERFACE, Values
from kvtier.codec.scratch import PageScratch
from kvtier.types import FilePages

if TYPE_CHECKING:
    from collections.abc import Sequence


PLACES: Final = 3
"""Frames of a thread that are in memory or on their way there at a time. More of them are further from the processors'
caches, into which whoever reads for a virtual machine copies them: docs/performance.md, "What a promotion gives"."""

PLACES_BYTES: Final = 32 << 20
"""Memory for them, of each thread; one frame fits in any case."""

Wanted = tuple[FilePages, bytes, Values]
"""A frame in a file, what it begins with, and where its values go."""


class Opener(Protocol):
    """Safe on any thread; gives the GIL away once a call."""

    def open(self, head: bytes, frame: memoryview, out: Values, /) -> bool:
        """Whether `frame` begins with `head`, its checksum agrees, and `out` was filled from it exactly.

        If not, what `out` holds is undefined, unless the checksum does not agree: then `out` is as it was.
        """
        ...

    def read(self, frames: Sequence[Wanted], /, *, yields: bool) -> list[bool]:
        """Of each, as `open`, once it has been read; up to 16, none shorter than a header and half of `out`.

        The disk is asked for several while others are opened. Blocks for as long as it takes; if it `yields`, the
        threads that share its processor run first after each.
        """
        ...


@cache
def best_opener() -> Opener | None:
    """Native code where there is any."""
    try:
        return native_opener(import_module(EXTENSION))
    except (ImportError, OSError, AttributeError):
        return None


def native_opener(extension: Any) -> Opener:
    """Over the module `_planes`. ImportError, OSError or AttributeError where it cannot work."""
    if extension.INTERFACE != INTERFACE:
        raise ImportError(f"{EXTENSION} is of another build of kvtier: install kvtier again")
    return _NativeOpener(extension, ctypes.CDLL(import_module("xxhash._xxhash").__file__))


class _NativeOpener:
    """XXH3 is the one in python-xxhash."""

    def __init__(self, extension: Any, xxhash: ctypes.CDLL) -> None:
        self._open, self._read, self._new_reads = extension.open_frame, extension.read_frames, extension.new_reads
        # On x86 it also comes in a form for the very processor: 45 GB/s of what is in its cache, and not 25.
        update = getattr(xxhash, "XXH3_128bits_update_dispatch", xxhash.XXH3_128bits_update)
        self._functions = tuple(
            ctypes.cast(function, ctypes.c_void_p).value
            for function in (xxhash.XXH3_128bits_reset, update, xxhash.XXH3_128bits_digest)
        )
        self._create, self._free = xxhash.XXH3_createState, xxhash.XXH3_freeState
        self._create.restype = ctypes.c_void_p
        self._free.argtypes = (ctypes.c_void_p,)
        self._of_thread = threading.local()

    def open(self, head: bytes, frame: memoryview, out: Values, /) -> bool:
        """See `Opener`."""
        scratch = entropy.scratch((out.nbytes + 1) // 2).data
        opened: bool = self._open(self._functions, self._mine().state, head, frame, scratch, out)
        return opened

    def read(self, frames: Sequence[Wanted], /, *, yields: bool) -> list[bool]:
        """See `Opener`."""
        mine = self._mine()
        place_bytes = max(pages.length for pages, _, _ in frames)
        memory = mine.memory.room(place_bytes * max(1, min(PLACES, PLACES_BYTES // place_bytes)))
        scratch = entropy.scratch((max(out.nbytes for _, _, out in frames) + 1) // 2).data
        opened: list[bool] = self._read(
            self._functions, mine.state, mine.reads, list(frames), memory, place_bytes, scratch, yields
        )
        return opened

    def _mine(self) -> _OfThread:
        try:
            mine: _OfThread = self._of_thread.mine
        except AttributeError:
            mine = self._of_thread.mine = _OfThread(self._create(), self._new_reads())
            # Not at the interpreter's exit as well: a daemon thread may be using it still.
            weakref.finalize(mine, self._free, mine.state).atexit = False
        return mine


class _OfThread:
    """What is not safe to share and costly to make anew for each frame. Freed with the thread that has it."""

    def __init__(self, state: int | None, reads: object) -> None:
        if not state:
            raise MemoryError
        self.state = state  # of the hash: its address
        self.reads = reads
        self.memory = PageScratch()
