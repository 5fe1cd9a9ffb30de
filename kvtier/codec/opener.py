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
from typing import Any, Protocol

from kvtier.codec import entropy
from kvtier.codec.forms import EXTENSION, INTERFACE, Values
from kvtier.types import FilePages


class Opener(Protocol):
    """Safe on any thread; gives the GIL away once."""

    def __call__(self, head: bytes, frame: memoryview | FilePages, out: Values, /, *, yields: bool = False) -> bool:
        """Whether `frame` begins with `head`, its checksum agrees, and `out` was filled from it exactly.

        If not, what `out` holds is undefined, unless the checksum does not agree: then `out` is as it was. Blocks for
        as long as the medium does; if it `yields`, the threads that share its processor run first when it is done.
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
        self._open = extension.open_frame
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

    def __call__(self, head: bytes, frame: memoryview | FilePages, out: Values, /, *, yields: bool = False) -> bool:
        if isinstance(frame, FilePages):
            place, memory = (frame.descriptor, frame.offset, frame.skip, frame.n_bytes), frame.memory
        else:
            place, memory = (-1, 0, 0, len(frame)), frame
        scratch = entropy.scratch((out.nbytes + 1) // 2).data
        opened: bool = self._open(self._functions, self._state(), head, place, memory, scratch, out, yields)
        return opened

    def _state(self) -> int:
        """Address of this thread's state of the hash."""
        try:
            state: _State = self._of_thread.state
        except AttributeError:
            state = self._of_thread.state = _State(self._create())
            # Not at the interpreter's exit as well: a daemon thread may be using it still.
            weakref.finalize(state, self._free, state.address).atexit = False
        return state.address


class _State:
    """Freed with the thread that has it."""

    def __init__(self, address: int | None) -> None:
        if not address:
            raise MemoryError
        self.address = address
