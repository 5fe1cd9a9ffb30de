"""What is printed, and what check() notices."""

import pytest

from kvtier.residency import Resident
from tests.rigs.cache import (
    CHUNK_BYTES,
    FRAME_BYTES,
    Rig,
    evicted_to_disk,
    key,
)


def test_the_snapshot_tells_fill_and_backlogs():
    rig = evicted_to_disk("ab", n_slots=4, n_frames=10)
    rig.walk(rig.cache.open_chain(), "a")
    rig.offload(rig.cache.open_chain(), "xy")
    stats, gauges = rig.cache.snapshot(1234.5)
    assert stats == rig.stats
    assert stats is not rig.stats
    assert gauges.host_used_bytes == gauges.host_capacity_bytes == 4 * CHUNK_BYTES
    assert gauges.disk_used_bytes == gauges.disk_stored_bytes == 2 * FRAME_BYTES
    assert gauges.disk_capacity_bytes == 10 * FRAME_BYTES
    assert gauges.disk_raw_bytes == 2 * CHUNK_BYTES
    assert gauges.spill_backlog == 2
    assert gauges.promote_backlog == 1
    assert gauges.prefill_tokens_per_s == 1234.5
    assert gauges.disk_on


def test_the_disk_is_off_while_reading_is_switched_off():
    rig = Rig(4, 4)
    rig.cache.disk_readable = False
    assert not rig.cache.snapshot(0.0)[1].disk_on


def test_a_broken_invariant_is_noticed():
    rig = Rig(4, 4)
    rig.request("a")
    resident = rig.host.get(key("a"))
    assert isinstance(resident, Resident)
    resident.dirty = False
    with pytest.raises(AssertionError):
        rig.cache.check()


def test_an_empty_disk_tier_tells_its_capacity():
    gauges = Rig(4, 10).cache.snapshot(0.0)[1]
    assert gauges.disk_capacity_bytes == 10 * FRAME_BYTES
    assert gauges.disk_on
