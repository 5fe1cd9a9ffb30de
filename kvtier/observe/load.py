"""LoadRate and CopyRate: transfers in, seconds per byte out. What it takes to bring KV up, from disk and to the device.

Both are medians over the last few samples, so that one stray sample moves nothing and a lasting change is followed.
"""

from __future__ import annotations

from collections import deque

WINDOW = 5
"""Samples remembered: three that agree carry the median."""

SAMPLE_BYTES = 16 << 20
"""One sample of loading is at least so many landed bytes, since single chunks vary with what the page cache holds..."""

SAMPLE_S = 0.05
"""...or so much time in which something was loading: a slow disk must be noticed before many bytes have landed."""

FASTER = 1.5
"""A sample that beats the estimate by this factor is news to somebody who holds the disk to be slow."""

COPY_PRIOR_BYTES_PER_S = 10e9
"""Host memory to device, until the engine has reported a copy. Deliberately low: PCIe 3.0 x16 carries 15.8 by its
standard, and one H200 over PCIe 5.0 took 51 to 55 GB/s from pinned memory (2026-11-20)."""

MIN_COPY_BYTES = 1 << 20
"""Copies that end together and are smaller measure how long it takes to start one."""


class LoadRate:
    """Bytes landed in host memory per second in which at least one load was under way. Under the cache's lock.

    So the wait in the queue, contention between threads, and decoding are in it; idle time is not.
    """

    def __init__(self) -> None:
        self.byte_s = 0.0  # seconds per byte; 0 until known
        self.n_under_way = 0
        self.got_faster = False  # the newest sample beats the estimate before it
        self._busy_since_s = 0.0
        self._busy_s = 0.0
        self._landed_bytes = 0
        self._samples: deque[float] = deque(maxlen=WINDOW)

    @property
    def bytes_per_s(self) -> float:
        """0 until known."""
        return 1 / self.byte_s if self.byte_s else 0.0

    def assume(self, bytes_per_s: float) -> None:
        """Start from a probe's result, unless loads have been measured meanwhile. Counts as one sample."""
        if not self._samples and bytes_per_s > 0:
            self._add(1 / bytes_per_s)

    def no_faster_than(self, byte_s: float) -> None:
        """Somebody waited in vain: what was measured before is no longer so, and this is the first sample since."""
        if byte_s > self.byte_s:
            self._samples.clear()
            self._add(byte_s)

    def started(self, now_s: float, *, alone: bool = False) -> None:
        """A load was queued. `alone`: it is a sample by itself; bytes that landed just before are not part of it."""
        if alone:
            self._landed_bytes, self._busy_s = 0, 0.0
        if self.n_under_way == 0:
            self._busy_since_s = now_s
        self.n_under_way += 1

    def ended(self, now_s: float, n_bytes: int, *, alone: bool = False) -> None:
        """A load ended with `n_bytes` landed, 0 if it failed. `alone`: there will be no more of them soon."""
        self.n_under_way -= 1
        self._landed_bytes += n_bytes
        self._busy_s += now_s - self._busy_since_s
        self._busy_since_s = now_s
        enough = alone or self._landed_bytes >= SAMPLE_BYTES or self._busy_s >= SAMPLE_S
        if enough and self._landed_bytes > 0 and self._busy_s > 0:
            self._add(self._busy_s / self._landed_bytes)
            self._landed_bytes, self._busy_s = 0, 0.0

    def _add(self, byte_s: float) -> None:
        before = self.byte_s or byte_s
        self._samples.append(byte_s)
        self.byte_s = _median(self._samples)
        self.got_faster = byte_s * FASTER < before


class CopyRate:
    """Bytes per second from host memory to the device, as the engine reports them. One thread."""

    def __init__(self) -> None:
        self.byte_s = 1 / COPY_PRIOR_BYTES_PER_S
        self._samples: deque[float] = deque(maxlen=WINDOW)

    @property
    def bytes_per_s(self) -> float:
        """Measured, or the prior."""
        return 1 / self.byte_s

    def copied(self, n_bytes: int, took_s: float) -> None:
        """Copies of `n_bytes` in sum took `took_s`."""
        if n_bytes >= MIN_COPY_BYTES and took_s > 0:
            self._samples.append(took_s / n_bytes)
            self.byte_s = _median(self._samples)


def _median(samples: deque[float]) -> float:
    """The slower of the two in the middle where there are two."""
    return sorted(samples)[len(samples) // 2]
