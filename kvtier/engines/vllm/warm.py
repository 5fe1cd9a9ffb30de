"""Warmer: the host pool made usable piece by piece while the engine serves -> how many of its slots are ready.

Pages of a fresh pool have to be made, and on CUDA pinned, before they are copied to: 1.6 s for 2 GiB, so minutes for a
large pool. The first piece is ready when the engine starts; a thread does the rest, and the scheduler is told how far
it has come. Memory that cannot be had ends it: the pool stays as large as it is, and nothing is touched beyond.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
from vllm.platforms import current_platform
from vllm.v1.kv_offload.cpu import gpu_worker, shared_offload_region
from vllm.v1.kv_offload.cpu.host_register import host_register

from kvtier.engines.vllm.region import why_unpinned
from kvtier.machine import Machine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import torch
    from vllm.v1.kv_offload.cpu.shared_offload_region import SharedOffloadRegion

FIRST_BYTES = 1 << 30
"""Of the pool, ready before the engine starts: about a second. What the first requests leave must find room."""

PIECE_BYTES = 256 << 20
"""Made ready at a time: about 0.2 s, in which the driver may keep others waiting."""

NICENESS = 10
_MADV_POPULATE_WRITE = 23
_PAGE_BYTES = 4096
_STOP_TIMEOUT_S = 5.0


@contextlib.contextmanager
def lazy_region(pin: Callable[[Any], None] = lambda _: None) -> Iterator[None]:
    """What vLLM builds inside makes no pages of the pool, and calls `pin` with the region instead of pinning it all.

    A vLLM that has these functions under other names does both at once as ever.
    """
    ours = (
        (shared_offload_region, "_get_populate_write_fn", lambda _: lambda *_: None),
        (gpu_worker, "pin_mmap_region", pin),
    )
    theirs = [(module, name, getattr(module, name, None)) for module, name, _ in ours]
    try:
        for (module, name, replacement), (_, _, original) in zip(ours, theirs, strict=True):
            if original is not None:
                setattr(module, name, replacement)
        yield
    finally:
        for module, name, original in theirs:
            if original is not None:
                setattr(module, name, original)


def first_slots(n_slots: int, slot_bytes: int) -> int:
    """How many slots are ready when the engine starts; scheduler and workers agree on it without a word."""
    return min(n_slots, max(1, FIRST_BYTES // slot_bytes))


class Warmer:
    """One worker's thread. `n_ready` is read by the worker's main thread."""

    def __init__(
        self, n_slots: int, slot_bytes: int, prepare: Callable[[int, int], None], report: Callable[[str], None]
    ) -> None:
        """`prepare(first, end)` makes slots `[first, end)` usable or raises OSError. `report` is told of the end."""
        self.n_ready = 0
        self._n_slots = n_slots
        self._slot_bytes = slot_bytes
        self._prepare = prepare
        self._report = report
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kvtier-warm", daemon=True)

    def begin(self) -> None:
        """Make the first piece ready on the caller's thread. Raises OSError."""
        first = first_slots(self._n_slots, self._slot_bytes)
        self._prepare(0, first)
        self.n_ready = first

    def go_on(self) -> None:
        """Make the rest ready on a thread of its own."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread after the piece it is at; nothing is touched afterwards."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(_STOP_TIMEOUT_S)

    def _run(self) -> None:
        if hasattr(os, "setpriority"):
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        step = max(1, PIECE_BYTES // self._slot_bytes)
        while self.n_ready < self._n_slots and not self._stopping.is_set():
            end = min(self.n_ready + step, self._n_slots)
            try:
                self._prepare(self.n_ready, end)
            except Exception as error:  # noqa: BLE001 - whatever it was, the engine serves on with what there is
                self._report(
                    f"only {self.n_ready} of {self._n_slots} slots of the host pool could be made ready, and host RAM "
                    f"keeps no more ({error}). Lower host.capacity, free memory, or raise the limit"
                )
                return
            self.n_ready = end


class Populate:
    """Makes the pages of one worker's part of slots. Callable as a Warmer's `prepare`."""

    def __init__(self, region: SharedOffloadRegion, page_bytes: int) -> None:
        """`page_bytes` of each slot are this worker's, after those of the ranks below."""
        self._region = region
        self._page_bytes = page_bytes
        self._offset = (region.rank or 0) * page_bytes
        self._slot_bytes = region.total_size_bytes // region.num_chunks
        self._libc = ctypes.CDLL(None, use_errno=True)  # unlike mmap.madvise, it lets other threads run meanwhile

    def __call__(self, first: int, end: int) -> None:
        """Slots `[first, end)`. Raises OSError when there is no memory for them."""
        base = self._region.base_tensor.data_ptr()
        for slot in range(first, end):
            start = slot * self._slot_bytes + self._offset
            aligned = start // _PAGE_BYTES * _PAGE_BYTES
            length = start + self._page_bytes - aligned
            if self._libc.madvise(
                ctypes.c_void_p(base + aligned), ctypes.c_size_t(length), ctypes.c_int(_MADV_POPULATE_WRITE)
            ):
                code = ctypes.get_errno()
                if code != errno.EINVAL:  # Linux before 5.14 does not know it
                    raise OSError(code, os.strerror(code))
                np.frombuffer(self._region.mmap_obj, dtype=np.uint8)[aligned : aligned + length : _PAGE_BYTES] |= 0


class Pin:
    """Makes the pages of one worker's part of slots, and registers all of each slot with the device's driver."""

    def __init__(self, region: SharedOffloadRegion, populate: Populate, device: torch.device) -> None:
        """`region` is told of what is pinned, and unpins it when it is cleaned up."""
        self._region = region
        self._populate = populate
        self._device = device
        self._slot_bytes = region.total_size_bytes // region.num_chunks

    def __call__(self, first: int, end: int) -> None:
        """Slots `[first, end)`. The first piece may stay unpinned, and so do all others then.

        Raises OSError when a later piece cannot be pinned: copies go by what the first one said.
        """
        region = self._region
        self._populate(first, end)
        if first and not region.is_pinned:
            return
        current_platform.set_device(self._device)  # of this thread; it would be device 0
        address = region.base_tensor.data_ptr() + first * self._slot_bytes
        if host_register(address, (end - first) * self._slot_bytes):
            region.pinned_addresses.append(address)
            region.is_pinned = True
        elif first:
            raise OSError(errno.ENOMEM, why_unpinned(Machine.here(), region.total_size_bytes))
