"""LoadsFirst: promotions go, spills give way, but not for so long that a host pool of dirty chunks stands still."""

from __future__ import annotations

import threading

GIVE_WAY_S = 0.02
"""Longest that a step of a spill waits for promotions: under endless ones it still writes some 40 chunks a second."""


class LoadsFirst:
    """Counts promotions that are queued or under way. Any thread; every call but `give_way` is a microsecond."""

    def __init__(self) -> None:
        self._n_loads = 0
        self._changed = threading.Condition(threading.Lock())

    def began(self) -> None:
        """A promotion was queued."""
        with self._changed:
            self._n_loads += 1

    def ended(self) -> None:
        """A promotion that had begun has ended, however."""
        with self._changed:
            self._n_loads -= 1
            if not self._n_loads:
                self._changed.notify_all()

    def none_within(self, timeout_s: float) -> bool:
        """Wait until there is none; False after `timeout_s`."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._n_loads, max(0.0, timeout_s))

    def give_way(self) -> bool:
        """Called before each step of a spill: wait until there is no promotion, or GIVE_WAY_S. Whether it waited."""
        if not self._n_loads:
            return False
        with self._changed:
            self._changed.wait_for(lambda: not self._n_loads, GIVE_WAY_S)
        return True
