"""What counts as a use, and who is hottest afterwards."""

from tests.rigs.cache import Rig, evicted_to_disk, names


def test_one_request_counts_one_use_of_a_chunk():
    rig = Rig(10)
    rig.request("ab")
    chain = rig.cache.open_chain()
    rig.offload(chain, "x")
    for _ in range(3):
        rig.walk(chain, "x")
        rig.onload(chain, "x")
        rig.offload(chain, "x")
    rig.cache.close_chain(chain)
    assert names(list(rig.host.policy._protected)) == ""
    rig.request("x")
    assert names(list(rig.host.policy._protected)) == "x"


def test_storing_a_chunk_that_is_there_is_a_use_of_it():
    rig = Rig(10)
    rig.request("ab")
    rig.offload(rig.cache.open_chain(), "a")
    assert names(list(rig.host.policy._protected)) == "a"


def test_a_request_that_has_ended_leaves_its_head_hottest():
    rig = Rig(8)
    rig.request("abcd")
    assert rig.on_host() == "dcba"


def test_heads_outlive_tails_while_the_request_still_runs():
    rig = Rig(4)
    rig.offload(rig.cache.open_chain(), "abcd")
    rig.offload(rig.cache.open_chain(), "xy")
    assert set(rig.on_host()) == set("abxy")


def test_the_head_is_hottest_when_the_tail_came_from_disk():
    rig = evicted_to_disk("abcd", lru=True)
    rig.request("ab")
    rig.request("wxyz")
    chain = rig.cache.open_chain()
    assert rig.walk(chain, "abcd") == "HHPP"
    rig.promote()
    assert rig.walk(chain, "abcd") == "HHHH"
    rig.onload(chain, "abcd")
    assert rig.on_host().endswith("dcba")  # while it still runs
    rig.cache.close_chain(chain)
    assert rig.on_host().endswith("dcba")


def test_a_request_that_was_aborted_while_it_waited_leaves_its_head_hottest():
    rig = Rig(8)
    rig.request("abc")
    chain = rig.cache.open_chain()
    rig.walk(chain, "abc")
    rig.cache.close_chain(chain)
    assert rig.on_host() == "cba"


def test_a_request_keeps_its_frames_hot_on_disk_even_if_host_always_has_them():
    rig = Rig(20, n_frames=4)
    rig.request("ab")
    rig.spill()
    rig.request("xy")
    rig.spill()
    rig.request("ab")
    rig.request("pq")
    rig.spill()
    assert set(rig.on_disk()) == set("abpq")
