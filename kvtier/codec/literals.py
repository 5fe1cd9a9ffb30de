"""zstd as a Huffman coder: bytes -> an ordinary zstd frame made without looking for matches.

KV bytes have a skewed histogram and hardly any repeats: all the gain is in zstd's literal coding, and the search for
matches is a cost. zstd has a switch for literals alone, which python-zstandard does not offer in its own classes; its
cffi module does. Where that module cannot be imported, the search is kept as short as the classes allow.

Measured on captured bf16 KV of SmolLM2-135M, chunks of 2.8 MiB, one of two shared Xeon cores, zstandard 0.25, GB/s of
KV per second of CPU, only the high bytes through zstd (2026-11-21):
                                                     ratio    in     out
  level 1, min_match 7, hash_log 6                   1.4606   1.17   2.57
  the same, literals alone, target_length 16         1.4551   1.82   3.05
  ... target_length 131072                           1.4548   2.13   3.15
  ... and window_log 15                              1.4557   2.10   2.95
  ... and window_log 13                              1.4733   1.66   2.35
fp16 gives 1.152 instead of 1.153, fp8 e4m3 1.174 as before.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, Final, Protocol

import zstandard

from kvtier.errors import StoreError

LEVEL: Final = 1
MIN_MATCH: Final = 7
HASH_LOG: Final = 6

TARGET_LENGTH: Final = 1 << 17
"""For zstd's fastest strategy: bytes it steps over after each look for a match. A block has no more."""


class Compressor(Protocol):
    """Of one thread; not to be shared."""

    def compress_into(self, source: memoryview, out: memoryview) -> int:
        """One zstd frame of `source`, not empty, at the front of `out`, which has room; returns bytes written."""
        ...


def compressor() -> Compressor:
    """The fastest there is here."""
    try:
        _cffi = import_module("zstandard._cffi")  # needs cffi, which may not be there
    except ImportError:
        return ShortSearch()
    return LiteralsOnly(_cffi.ffi, _cffi.lib)


class LiteralsOnly:
    """zstd's own one-pass call, straight from the source into `out`. Releases the GIL."""

    def __init__(self, ffi: Any, lib: Any) -> None:
        self._ffi, self._lib = ffi, lib
        self._context = ffi.gc(lib.ZSTD_createCCtx(), lib.ZSTD_freeCCtx)
        for parameter, value in (
            (lib.ZSTD_c_compressionLevel, LEVEL),
            (lib.ZSTD_c_minMatch, MIN_MATCH),
            (lib.ZSTD_c_hashLog, HASH_LOG),
            (lib.ZSTD_c_targetLength, TARGET_LENGTH),
            (lib.ZSTD_c_literalCompressionMode, 1),  # ZSTD_ps_enable: without, a target length switches it off
        ):
            self._checked(lib.ZSTD_CCtx_setParameter(self._context, parameter, value))

    def compress_into(self, source: memoryview, out: memoryview) -> int:
        """As `Compressor` says."""
        target = self._ffi.from_buffer(out, require_writable=True)
        return self._checked(
            self._lib.ZSTD_compress2(self._context, target, len(out), self._ffi.from_buffer(source), len(source))
        )

    def _checked(self, code: int) -> int:
        if self._lib.ZSTD_isError(code):
            raise StoreError(f"zstd: {self._ffi.string(self._lib.ZSTD_getErrorName(code)).decode()}")
        return code


class ShortSearch:
    """python-zstandard's classes: a table of 2^6 entries and matches of 7 bytes or more. Releases the GIL."""

    def __init__(self) -> None:
        parameters = zstandard.ZstdCompressionParameters.from_level(LEVEL, min_match=MIN_MATCH, hash_log=HASH_LOG)
        self._compressor = zstandard.ZstdCompressor(compression_params=parameters)

    def compress_into(self, source: memoryview, out: memoryview) -> int:
        """As `Compressor` says."""
        written: int = self._compressor.stream_reader(source, size=len(source)).readinto(out)
        return written
