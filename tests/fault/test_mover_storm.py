"""All faults at once: no wrong byte, no exception, no slot left pinned, no thread left behind."""

import random

import pytest

from kvtier.errors import StoreError, StoreFullError
from kvtier.store.memory import MemoryStore
from kvtier.testing.faults import Fault
from tests.rigs.mover import DAMAGE, FRAME_BYTES, Rig, until


@pytest.mark.parametrize("seed", range(6))
def test_no_storm_of_faults_gives_a_wrong_byte_or_leaves_anything_pinned(seed: int):
    rng = random.Random(seed)
    rig = Rig(MemoryStore(rng.choice([1, 3]), 20 * FRAME_BYTES), n_slots=rng.choice([1, 2, 4, 8]))
    errors: list[Exception] = [StoreError("no medium"), StoreFullError("no room"), OSError(5, "Input/output error")]
    for _ in range(60):
        if rng.random() < 0.4:
            method = rng.choice(["write", "write", "read", "sync"])
            kinds: list[Fault] = [Fault(method=method, times=rng.randint(1, 4), error=rng.choice(errors))]
            if method == "write":
                kinds.append(Fault(method="write", times=2, error=StoreError("answer lost"), done=True))
            if method == "read":
                kinds.append(Fault(method="read", times=2, change=rng.choice([*DAMAGE.values()])))
            rig.store.inject(rng.choice(kinds))
        if rng.random() < 0.1:
            rig.store.heal()
        if rng.random() < 0.3:
            rig.clock.now += rng.choice([1.0, 70.0])
        rig.request(rng.choice("ab") + "".join(rng.sample("cdefghijkl", k=rng.randint(0, 7))))
    rig.store.heal()
    after_round = rig.n_rounds + 3  # then what was under way has had its trouble too

    def calm() -> bool:
        rig.clock.now += 100.0
        rig.mover.wake_spiller()
        return rig.n_rounds > after_round and rig.cache.disk_readable and rig.cache.disk_writable

    until(calm)
    rig.check_all_quiet()
    assert rig.mover.stop()
