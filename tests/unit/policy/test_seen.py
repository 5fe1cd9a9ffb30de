"""Seen: what it must remember, what it must forget, and how rarely it is wrong."""

from kvtier.policy.seen import Seen
from kvtier.types import ChunkKey


def keys(start: int, n: int) -> list[ChunkKey]:
    return [ChunkKey(b"key-%d" % i) for i in range(start, start + n)]


def filled(n_keys: int, added: list[ChunkKey]) -> Seen:
    seen = Seen(n_keys)
    for key in added:
        seen.add(key)
    return seen


def test_the_last_keys_are_remembered_for_certain():
    added = keys(0, 10_000)
    for n_added in (500, 1000, 1500, 2000, 9_999):
        seen = filled(1000, added[:n_added])
        assert all(key in seen for key in added[:n_added][-1000:])


def test_what_came_by_long_ago_is_forgotten():
    seen = filled(1000, keys(0, 10_000))
    assert sum(key in seen for key in keys(0, 7_000)) < 7_000 * 0.02


def test_a_key_that_never_came_by_is_rarely_taken_for_one_that_did():
    seen = filled(1000, keys(0, 2_000))
    assert sum(key in seen for key in keys(50_000, 10_000)) < 10_000 * 0.02


def test_one_key_is_enough_to_remember():
    assert ChunkKey(b"a") in filled(1, [ChunkKey(b"b"), ChunkKey(b"a")])
