"""find_hits: what several pools have together, against trying every length."""

import random

from kvtier.engines.sglang.hits import KV, find_hits


def by_trial(n_kv: int, pools: list[tuple[str, bool, int, list[bool]]]) -> list[int]:
    def fits(n: int) -> bool:
        for _, trailing, n_trailing, held in pools:
            first = max(0, n - max(1, n_trailing)) if trailing else 0
            if not all(held[first:n]):
                return False
        return True

    return [n for n in range(1, n_kv + 1) if fits(n)]


def test_the_restorable_lengths_are_those_that_every_pool_can_restore() -> None:
    rng = random.Random(1)
    for _ in range(500):
        n_kv = rng.randrange(9)
        pools = [
            (f"pool {i}", rng.random() < 0.5, rng.randrange(4), [rng.random() < 0.8 for _ in range(n_kv)])
            for i in range(rng.randrange(3))
        ]
        held = {name: pages for name, _, _, pages in pools}
        hits = find_hits(n_kv, [pool[:3] for pool in pools], held.__getitem__)
        assert hits.restorable == by_trial(n_kv, pools)
        assert hits.n_pages == max(hits.restorable, default=0)


def test_each_pool_tells_how_far_it_alone_would_reach() -> None:
    held = {"swa": [True, True, False, True, True, False]}
    hits = find_hits(6, [("swa", True, 2)], held.__getitem__)
    assert hits.by_pool == {KV: 6, "swa": 5}
    assert hits.restorable == [1, 2, 5]
