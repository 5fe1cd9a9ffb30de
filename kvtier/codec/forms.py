"""The two forms of the byte planes: values <-> low bytes and a zstd section of the high ones. The same bytes from both.

Native code (`_planes.c`) needs a compiler when kvtier is installed, and python-zstandard's cffi module, through which
it reaches zstd; without either, numpy does the same in more passes. GB/s of KV for each second of this thread's
processor time, captured bf16 KV of SmolLM2-135M, chunks of 2.8 MiB in and out of slots that no cache holds, 2026-11-21:
                                  split   decode and join
  numpy, two passes each            6.3            1.82
  native, one pass after zstd      10.9     1.96 to 2.19
  native, zstd block by block      10.9     2.42 to 2.55
  native, without zstd             10.9     3.62 to 3.77
Of the others `zstd` alone takes 0.30 s/GB, which is 3.3 GB/s.
"""

from __future__ import annotations

import threading
from functools import cache
from importlib import import_module
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from kvtier.codec import entropy
from kvtier.errors import FrameCorruptError

EXTENSION: Final = "kvtier.codec._planes"
INTERFACE: Final = 5
"""Of the extension; one of another number was left behind by an earlier build."""

_U16: Final = np.dtype("<u2")
_UNSIGNED: Final = 1 << 64


Values = memoryview | npt.NDArray[np.uint8]
"""Bytes in a row, or an array of up to three dimensions of which only the last must be without gaps, and even."""


class Form(Protocol):
    """Splits and joins whole values. Holds no state of any one chunk; safe on any thread; gives the GIL away."""

    name: str

    def split(self, values: Values, low: memoryview, high: memoryview) -> None:
        """Fill `low` and `high`, each half as long as `values`."""
        ...

    def join(self, low: memoryview, section: memoryview, out: Values) -> None:
        """Fill `out`, not empty and twice as long as `low`, whose high bytes `section` holds as one zstd frame.

        FrameCorruptError unless `section`, which may be hostile, decodes to just as many bytes as `low` has.
        """
        ...


@cache
def best_form() -> Form:
    """Native code where there is any."""
    try:
        return native_form(import_module(EXTENSION))
    except ImportError:
        return NumpyForm()


def native_form(extension: Any) -> Form:
    """The form over the module `_planes`. ImportError, which says why, where it cannot work."""
    if extension.INTERFACE != INTERFACE:
        raise ImportError(f"{EXTENSION} is of another build of kvtier: install kvtier again")
    zstd = import_module("zstandard._cffi")
    try:
        return NativeForm(extension, zstd)
    except AttributeError as error:
        raise ImportError(f"this python-zstandard does not offer what native code needs: {error}") from error


def describe() -> str:
    """The form in use here, and what keeps the faster one away; for people."""
    try:
        return native_form(import_module(EXTENSION)).name
    except ImportError as error:
        return f"{NumpyForm.name} ({error})"


class NativeForm:
    """One pass; what was decoded is joined while the cache has it. zstd does what is not plain literals."""

    name = "native"

    def __init__(self, extension: Any, zstd: Any) -> None:
        """`extension` is `_planes`; `zstd` is python-zstandard's cffi module."""
        self._split, self._join = extension.split, extension.join
        self._ffi, self._lib = zstd.ffi, zstd.lib
        self._functions = tuple(
            self._address(self._ffi.addressof(self._lib, name))
            for name in (
                "ZSTD_decompressBegin",
                "ZSTD_nextSrcSizeToDecompress",
                "ZSTD_decompressContinue",
                "ZSTD_isError",
            )
        )
        self._of_thread = threading.local()

    def split(self, values: Values, low: memoryview, high: memoryview) -> None:
        """As `Form` says."""
        self._split(values, low, high)

    def join(self, low: memoryview, section: memoryview, out: Values) -> None:
        """As `Form` says."""
        entropy.check_declared(section, len(low))
        outcome = self._join(self._functions, self._context(), low, section, entropy.scratch(len(low)).data, out)
        if outcome:
            raise FrameCorruptError(f"compressed part of {len(section)} bytes does not decode: {self._reason(outcome)}")

    def _context(self) -> int:
        """Address of this thread's zstd context."""
        try:
            address: int = self._of_thread.address
        except AttributeError:
            self._of_thread.owner = self._ffi.gc(self._lib.ZSTD_createDCtx(), self._lib.ZSTD_freeDCtx)
            address = self._of_thread.address = self._address(self._of_thread.owner)
        return address

    def _address(self, pointer: Any) -> int:
        return int(self._ffi.cast("uintptr_t", pointer))

    def _reason(self, outcome: int) -> str:
        if outcome > 0:
            return "it ends early" if outcome == 1 else "it holds more than it declares"
        return str(self._ffi.string(self._lib.ZSTD_getErrorName(outcome % _UNSIGNED)).decode())


class NumpyForm:
    """Whole-array passes."""

    name = "numpy"

    def split(self, values: Values, low: memoryview, high: memoryview) -> None:
        """As `Form` says.

        A narrowing cast of 16-bit values runs at 6 GB/s and more, a strided byte copy at 1.2. The high bytes are the
        narrowing of the same bytes seen one byte later; the last one would read past the end, so it goes alone.
        """
        raw = _array(values)
        shape = (*raw.shape[:-1], raw.shape[-1] // 2)
        lower, upper = (np.frombuffer(plane, dtype=np.uint8).reshape(shape) for plane in (low, high))
        np.copyto(lower, raw.view(_U16), casting="unsafe")
        np.copyto(upper[..., :-1], raw[..., 1:-1].view(_U16), casting="unsafe")
        upper[..., -1] = raw[..., -1]

    def join(self, low: memoryview, section: memoryview, out: Values) -> None:
        """As `Form` says.

        The high bytes widened to 16 bits one byte later, then the low ones into the zeros between: 4.4 GB/s out of
        cache; multiplying by 256 and adding 3.2, writing with a stride of two 1.2 to 3.3. In pieces that stay in cache
        it is 5.0, but each numpy call gives the GIL away, and beside a busy scheduler getting it back costs more.
        """
        high = entropy.scratch(len(low))
        entropy.decompress_into(section, high.data)
        raw = _array(out)
        shape = (*raw.shape[:-1], raw.shape[-1] // 2)
        upper = high.reshape(shape)
        raw[..., 0] = 0
        np.copyto(raw[..., 1:-1].view(_U16), upper[..., :-1])
        raw[..., -1] = upper[..., -1]
        values = raw.view(_U16)
        np.bitwise_or(values, np.frombuffer(low, dtype=np.uint8).reshape(shape), out=values)


def _array(values: Values) -> npt.NDArray[np.uint8]:
    return values if isinstance(values, np.ndarray) else np.frombuffer(values, dtype=np.uint8)
