from kvtier.store.listing import coldest_first, listings_of, records_of
from kvtier.types import ChunkKey, Record


def record(key: bytes, shard: int = 0, n_bytes: int = 1, written_ns: int = 0) -> Record:
    return Record(ChunkKey(key), shard, n_bytes, written_ns)


def test_a_listing_says_what_the_records_said():
    records = [record(b"a1", 3, 70_000, 2), record(b"b2", 3, 1 << 40, 1 << 62)]
    (listing,) = listings_of(records)
    assert (listing.shard, listing.key_bytes, listing.keys) == (3, 2, b"a1b2")
    assert list(listing.records()) == records


def test_each_shard_and_each_length_of_key_has_a_listing_of_its_own():
    records = [record(b"a", 0), record(b"b", 1), record(b"cc", 1), record(b"d", 0)]
    listings = list(listings_of(records))
    assert sorted((listing.shard, listing.keys) for listing in listings) == [(0, b"ad"), (1, b"b"), (1, b"cc")]
    assert sorted(records_of(listings)) == sorted(records)


def test_nothing_has_no_listing():
    assert list(listings_of([])) == []
    assert coldest_first([], b"f").keys == []


def test_frames_of_all_shards_come_in_the_order_of_their_age():
    records = [record(b"f1", 0, 10, 30), record(b"f2", 1, 20, 10), record(b"f3", 0, 30, 20)]
    keys, shards, sizes = coldest_first(listings_of(records), b"f")
    assert (keys, list(shards), list(sizes)) == ([b"f2", b"f3", b"f1"], [1, 0, 0], [20, 30, 10])


def test_those_of_another_family_come_first():
    records = [record(b"mine1", written_ns=1), record(b"other", written_ns=9), record(b"min", written_ns=8)]
    assert coldest_first(listings_of(records), b"mine").keys == [b"min", b"other", b"mine1"]


def test_of_equal_age_the_one_listed_first_comes_first():
    keys = [b"%03d" % n for n in range(100)]
    assert coldest_first(listings_of(map(record, keys)), b"").keys == keys
