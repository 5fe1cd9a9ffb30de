"""Breaker: keeps a failing medium out of the way, and tries it again later and later."""

from __future__ import annotations

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0
TRIP_AFTER = 3
"""Failures in a row that switch the tier off."""


class Breaker:
    """Counts failures in a row. Used by one thread, or under its owner's lock."""

    def __init__(self) -> None:
        self._failures = 0
        self._pause_s = FIRST_PAUSE_S
        self._until_s = 0.0

    def allows(self, now_s: float) -> bool:
        """Whether to try now."""
        return now_s >= self._until_s

    def succeeded(self) -> None:
        """A call worked: all is forgiven."""
        self._failures = 0
        self._pause_s = FIRST_PAUSE_S

    def failed(self, now_s: float) -> bool:
        """A call failed; True if that switched the tier off, from now on for the next pause.

        Calls that were under way when it was switched off may fail too: they say nothing new.
        """
        self._failures += 1
        if self._failures < TRIP_AFTER or not self.allows(now_s):
            return False
        self._until_s = now_s + self._pause_s
        self._pause_s = min(self._pause_s * 2, LONGEST_PAUSE_S)
        return True
