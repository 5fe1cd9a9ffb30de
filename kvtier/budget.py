"""WriteBudget: how many bytes may still be written to one disk directory, across restarts and among its engines.

A bucket of `burst` bytes that refills evenly with what a day's budget leaves beside the burst: in no 24 hours can more
than the budget be taken, and of it the burst at once. What is left is kept in a small file under a lock of its own;
engines draw from it in coarse grants, so they rarely meet.
"""

from __future__ import annotations

import json
import math
import threading
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from kvtier.files import only_one, replace_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

FILE: Final = "kvtier-writes.json"
LOCK: Final = "kvtier-writes.lock"

LOCK_WAIT_S: Final = 1.0
"""How long to wait for another process to let go of the account: one that keeps it is stopped, or its disk hangs."""

DAY_S: Final = 86400
MIN_GRANT_BYTES: Final = 64 << 20
MAX_GRANT_BYTES: Final = 1 << 30
GRANTS_PER_BURST: Final = 16
"""A grant is this part of the burst within the bounds above. A process that is killed loses what it had not used of
one; each grant replaces the file, which costs two syncs."""

HOLD_S: Final = 60.0
"""What is left of a grant goes back after so long, or it would come on top of a bucket that has refilled meanwhile."""

RETRY_S: Final = 1.0
"""An empty account is not looked at again before."""


class Account(NamedTuple):
    """What was left, and when."""

    left_bytes: float
    at_s: float  # wall clock


class WriteBudget:
    """The account of one directory. `take` and `give_back` from transfer threads, `left_bytes` from anywhere."""

    def __init__(
        self,
        folder: Path,
        *,
        per_day_bytes: int,
        burst_bytes: int,
        report: Callable[[str], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Open the account in `folder`, which exists. `0 < burst_bytes < per_day_bytes`.

        Where the file cannot be kept, the budget holds for this process alone; `report` is told once.
        """
        self._file = folder / FILE
        self._lock_file = folder / LOCK
        self._per_s = (per_day_bytes - burst_bytes) / (DAY_S + HOLD_S)
        self._burst_bytes = burst_bytes
        self._grant_bytes = min(max(burst_bytes // GRANTS_PER_BURST, MIN_GRANT_BYTES), MAX_GRANT_BYTES)
        self._report = report
        self._told = False
        self._clock = clock
        self._lock = threading.Lock()
        self._granted = 0  # drawn from the account, not yet used
        self._unfiled = 0  # drawn while the file could not be kept
        self._asked_s = 0.0
        self._seen = Account(burst_bytes, clock())
        self._draw(0)

    @property
    def left_bytes(self) -> int:
        """What may be written now, as far as this process knows. Arithmetic only."""
        return self._granted + max(0, int(self._refilled(self._seen, self._clock()).left_bytes))

    def take(self, n_bytes: int) -> bool:
        """Take `n_bytes` before they are written; False if they may not be. Reads and writes a small file at times."""
        with self._lock:
            now = self._clock()
            if self._granted and not 0 <= now - self._asked_s < HOLD_S:
                self._return()
            if self._granted < n_bytes:
                if self.left_bytes < n_bytes and 0 <= now - self._asked_s < RETRY_S:
                    return False
                self._asked_s = now
                self._granted += self._draw(max(n_bytes - self._granted, self._grant_bytes))
            if self._granted < n_bytes:
                return False
            self._granted -= n_bytes
            return True

    def give_back(self, n_bytes: int) -> None:
        """`n_bytes` that were taken were not written."""
        with self._lock:
            self._granted += n_bytes

    def close(self) -> None:
        """Return what was drawn and not used. Nothing may be taken afterwards."""
        with self._lock:
            self._return()

    def _return(self) -> None:
        unused, self._granted = self._granted, 0
        self._draw(-unused)

    def _draw(self, n_bytes: int) -> int:
        """Move up to `n_bytes` out of the account (back into it, if negative); how many it was."""
        try:
            with only_one(self._lock_file, LOCK_WAIT_S):
                filed = self._read()
                account = filed or Account(0, self._clock())
                drawn = self._move(account._replace(left_bytes=account.left_bytes - self._unfiled), n_bytes)
                if drawn or self._unfiled or filed is None:
                    replace_file(self._file, json.dumps(self._seen._asdict()).encode())
                    self._unfiled = 0
                return drawn
        except TimeoutError:  # nothing is written until the other process moves on
            return 0
        except OSError as error:
            if not self._told:
                self._told = True
                self._report(f"{self._file} cannot be kept ({error}); disk.write_budget holds for this process alone")
        drawn = self._move(self._seen, n_bytes)
        self._unfiled += drawn
        return drawn

    def _move(self, account: Account, n_bytes: int) -> int:
        now = self._refilled(account, self._clock())
        drawn = min(n_bytes, max(0, int(now.left_bytes)))
        self._seen = now._replace(left_bytes=min(now.left_bytes - drawn, self._burst_bytes))
        return drawn

    def _read(self) -> Account | None:
        """The account as filed: full when there is none yet, None when it cannot be understood."""
        try:
            tree = json.loads(self._file.read_bytes())
            account = Account(float(tree["left_bytes"]), float(tree["at_s"]))
        except FileNotFoundError:
            return Account(self._burst_bytes, self._clock())
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            return None
        return account if math.isfinite(sum(account)) else None

    def _refilled(self, account: Account, now_s: float) -> Account:
        """The account at `now_s`. A clock that was set back adds nothing."""
        gained = self._per_s * max(0.0, now_s - account.at_s)
        return Account(min(account.left_bytes + gained, self._burst_bytes), now_s)
