"""How long a prefix can be restored when several pools must each have their part of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

KV = "kv"


class Hits(NamedTuple):
    """Lengths in pages."""

    n_pages: int  # the longest prefix that can be restored whole
    by_pool: dict[Any, int]  # how far each pool alone would reach
    restorable: list[int]  # every length that can be restored, ascending


def find_hits(n_kv: int, wanted: Sequence[tuple[Any, bool, int]], held_of: Callable[[Any], Sequence[bool]]) -> Hits:
    """Combine what the pools have of a prefix of which `n_kv` pages of KV are here.

    Each of `wanted` is a pool, whether it needs only the last pages of the prefix (a sliding window, a recurrent state)
    rather than all, and how many. `held_of` says which of the first `n_kv` pages a pool has.
    """
    by_pool: dict[Any, int] = {KV: n_kv} if n_kv else {}
    restorable = list(range(1, n_kv + 1))
    for name, trailing, n_trailing in wanted:
        if not restorable:
            break
        runs = _runs(held_of(name))
        if trailing:
            n_last = max(1, n_trailing)
            fit = {n for n in range(1, n_kv + 1) if runs[n - 1] >= min(n, n_last)}
        else:
            fit = {n for n in range(1, n_kv + 1) if runs[n - 1] == n}
        reach = max(fit, default=0)
        if reach:
            by_pool[name] = reach
        restorable = [n for n in restorable if n in fit]
    return Hits(restorable[-1] if restorable else 0, by_pool, restorable)


def _runs(held: Sequence[bool]) -> list[int]:
    """For each page, how many held ones in a row end with it."""
    runs: list[int] = []
    for here in held:
        runs.append((runs[-1] if runs else 0) + 1 if here else 0)
    return runs
