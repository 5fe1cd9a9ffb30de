"""What a lookup promises, and for how long."""

from kvtier.cache import PROMISE_STEPS
from kvtier.types import Miss
from tests.rigs.cache import HIT, Rig, evicted_to_disk, key, keys, names


def test_a_stored_chunk_hits_and_an_unknown_one_misses():
    rig = Rig(8)
    rig.request("abc")
    assert rig.walk(rig.cache.open_chain(), "abcd") == "HHHM"


def test_a_chunk_that_is_being_stored_is_pending_until_it_has_landed():
    rig = Rig(8)
    writer, reader = rig.cache.open_chain(), rig.cache.open_chain()
    rig.cache.begin_offload(writer, keys("ab"))
    assert rig.walk(reader, "ab") == "PP"
    assert not rig.cache.begin_walk(reader)
    rig.cache.end_offload(keys("ab"))
    assert rig.walk(reader, "ab") == "HH"


def test_a_store_that_failed_leaves_nothing_and_nobody_waits():
    rig = Rig(8)
    writer, reader = rig.cache.open_chain(), rig.cache.open_chain()
    rig.cache.begin_offload(writer, keys("ab"))
    rig.walk(reader, "ab")
    rig.cache.end_offload(keys("ab"), failed=True)
    assert rig.walk(reader, "ab") == "M"
    assert rig.host.n_free == 8
    rig.cache.check()


def test_a_promised_chunk_is_not_evicted_until_it_is_loaded():
    rig = Rig(4)
    rig.request("abcd")
    chain = rig.cache.open_chain()
    assert rig.walk(chain, "ab") == "HH"
    rig.request("wxyz")
    assert set(rig.on_host()) == set("abwx")
    assert rig.onload(chain, "ab") is not None
    rig.request("mnop")
    assert set(rig.on_host()) == set("mnop")


def test_a_chunk_that_is_being_loaded_is_not_evicted():
    rig = Rig(2)
    rig.request("ab")
    chain = rig.cache.open_chain()
    rig.walk(chain, "a")
    rig.cache.begin_onload(chain, keys("a"))
    rig.cache.close_chain(chain)
    assert rig.offload(rig.cache.open_chain(), "xyz") == "x"
    rig.cache.end_onload(keys("a"))
    assert rig.offload(rig.cache.open_chain(), "y") == "y"
    assert rig.why("a") is Miss.EVICTED


def test_closing_a_chain_takes_its_promises_back():
    rig = Rig(2)
    rig.request("ab")
    chain = rig.cache.open_chain()
    rig.walk(chain, "ab")
    rig.cache.close_chain(chain)
    assert rig.offload(rig.cache.open_chain(), "xy") == "xy"


def test_promises_of_a_request_that_is_not_looked_up_any_more_expire():
    rig = Rig(2)
    rig.request("ab")
    chain = rig.cache.open_chain()
    rig.walk(chain, "ab")
    for _ in range(PROMISE_STEPS):
        rig.cache.step_ended()
    assert rig.offload(rig.cache.open_chain(), "xy") == ""
    for _ in range(64):  # expired promises are looked for every 64 steps
        rig.cache.step_ended()
    assert rig.offload(rig.cache.open_chain(), "xy") == "xy"
    rig.cache.check()


def test_promises_of_a_request_that_is_looked_up_every_step_do_not_expire():
    rig = Rig(2)
    rig.request("ab")
    chain = rig.cache.open_chain()
    for _ in range(2 * PROMISE_STEPS):
        assert rig.walk(chain, "ab") == "HH"
        rig.cache.step_ended()
    assert rig.offload(rig.cache.open_chain(), "xy") == ""


def test_waiting_for_a_promotion_keeps_the_promises_alive():
    rig = evicted_to_disk("abc")
    chain = rig.cache.open_chain()
    assert rig.walk(chain, "abc") == "PPP"
    for _ in range(2 * PROMISE_STEPS):
        assert not rig.cache.begin_walk(chain)
        rig.cache.step_ended()
    rig.promote()
    assert rig.cache.begin_walk(chain)
    assert rig.onload(chain, "abc") is not None


def test_loading_a_chunk_that_is_not_there_is_refused_and_takes_the_promises_back():
    rig = Rig(2)
    rig.request("ab")
    chain = rig.cache.open_chain()
    rig.walk(chain, "ab")
    assert rig.cache.begin_onload(chain, keys("abc")) is None
    assert rig.offload(rig.cache.open_chain(), "xy") == "xy"
    rig.cache.check()


def test_slots_of_a_load_come_in_the_order_of_its_keys():
    rig = Rig(4)
    offload = rig.cache.begin_offload(rig.cache.open_chain(), keys("abcd"))
    rig.cache.end_offload(offload.keys)
    slot_of = dict(zip(names(offload.keys), offload.slots, strict=True))
    chain = rig.cache.open_chain()
    rig.walk(chain, "abcd")
    assert rig.onload(chain, "dbca") == [slot_of[name] for name in "dbca"]


def test_chunks_that_many_requests_wait_for_do_not_block_the_cold_end():
    rig = Rig(600)
    text = [f"{i:03}" for i in range(600)]
    chain = rig.cache.open_chain()
    offload = rig.cache.begin_offload(chain, [key(t) for t in text])
    rig.cache.end_offload(offload.keys)
    rig.cache.close_chain(chain)
    waiting = rig.cache.open_chain()
    for k in list(rig.host.policy.victims())[:300]:
        assert rig.cache.lookup(waiting, k) is HIT
    disk_less = rig.cache.open_chain()
    assert len(rig.cache.begin_offload(disk_less, keys("xyz")).keys) == 3
    rig.cache._make_room(disk_less, 1, 1)
    assert rig.host.n_free == 1  # found at the first look
