"""Why a chunk misses, and how requests are counted."""

from kvtier.store.listing import listings_of
from kvtier.types import Miss, Record
from tests.rigs.cache import FRAME_BYTES, Rig, evicted_to_disk, key


def test_a_chunk_never_seen_is_new():
    assert Rig(4, 4).why("a") is Miss.NEW


def test_a_chunk_evicted_from_host_or_disk_is_evicted():
    rig = Rig(2)
    rig.request("ab")
    rig.request("xy")
    assert rig.why("a") is Miss.EVICTED
    rig = Rig(2, n_frames=4)
    for text in ("ab", "pq", "xy", "mn"):
        rig.request(text)
        rig.spill()
    assert rig.why("p") is Miss.EVICTED


def test_a_chunk_of_another_family_is_foreign():
    rig = Rig(4, n_frames=4)
    assert rig.disk is not None
    rig.disk.load(listings_of([Record(key("a", b"other..."), 0, FRAME_BYTES, 1)]))
    assert rig.why("a") is Miss.FOREIGN


def test_only_the_first_miss_of_a_walk_is_its_reason():
    rig = Rig(2)
    rig.request("ab")
    rig.request("xy")
    chain = rig.cache.open_chain()
    rig.cache.begin_walk(chain)
    rig.cache.lookup(chain, key("new"))
    rig.cache.lookup(chain, key("a"))
    assert chain.miss is Miss.NEW


def test_requests_are_counted_by_source_and_reason():
    rig = evicted_to_disk("a")
    chain = rig.cache.open_chain()
    rig.walk(chain, "a")
    rig.promote(Miss.CORRUPT)
    rig.walk(chain, "a")
    rig.cache.count_request(chain, asked=100, device=10, host=20, disk=30)
    assert rig.stats.requests == 1
    assert rig.stats.asked_tokens == 100
    assert rig.stats.hit_tokens == [10, 20, 30]
    assert rig.stats.miss_tokens[Miss.CORRUPT] == 40
    assert sum(rig.stats.miss_tokens) == 40


def test_a_request_without_a_walk_misses_as_new():
    rig = Rig(4)
    rig.cache.count_request(rig.cache.open_chain(), asked=7, device=0, host=0, disk=0)
    assert rig.stats.miss_tokens[Miss.NEW] == 7
