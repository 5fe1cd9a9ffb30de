"""LinkedSlru decides as Slru does, whatever is done to both."""

from hypothesis import given
from hypothesis import strategies as st

from kvtier.policy.linked import LinkedSlru
from kvtier.policy.slru import Slru
from kvtier.types import ChunkKey

CALLS = st.tuples(st.sampled_from(["use", "use", "use", "refresh", "evict", "drop", "resize"]), st.integers(0, 11))


@given(
    st.integers(0, 8), st.sampled_from([0.0, 0.3, 0.9]), st.sampled_from([None, 0, 2]), st.lists(CALLS, max_size=120)
)
def test_both_have_the_same_victims_and_remember_the_same(capacity, protected, ghosts, calls):
    plain = Slru(capacity, protected=protected, ghosts=ghosts)
    linked = LinkedSlru(capacity, protected=protected, ghosts=ghosts)
    for call, n in calls:
        key = ChunkKey(b"%d" % n)
        present = key in linked.rows
        for policy in (plain, linked):
            if call == "resize":
                policy.resize(n)
            elif not present:
                if call == "use":
                    policy.insert(key)
            elif call == "use":
                policy.touch(key)
            elif call == "refresh":
                policy.refresh(key)
            else:
                policy.remove(key, evicted=call == "evict")
        linked.check()
        plain.check()
        assert list(linked.victims()) == list(plain.victims())
        assert len(linked) == len(plain)
        assert [linked.remembers(ChunkKey(b"%d" % n)) for n in range(12)] == [
            plain.remembers(ChunkKey(b"%d" % n)) for n in range(12)
        ]


def test_rows_are_used_again_and_belong_to_one_key():
    policy = LinkedSlru(4)
    rows = [policy.enter(ChunkKey(b"%d" % n)) for n in range(3)]
    policy.remove(ChunkKey(b"1"), evicted=True)
    assert policy.enter(ChunkKey(b"9")) == rows[1]
    assert policy.rows == {b"0": rows[0], b"2": rows[2], b"9": rows[1]}
    assert policy.n_rows == max(rows) + 1
    policy.check()


@given(st.lists(st.integers(0, 30), max_size=20), st.lists(CALLS, max_size=30))
def test_keys_that_enter_together_are_ordered_as_if_one_by_one(numbers, calls):
    keys = [ChunkKey(b"%d" % n) for n in numbers]
    together, each = LinkedSlru(8), LinkedSlru(8)
    if not together.enter_all(keys):
        assert len(set(keys)) < len(keys)
        assert len(together) == 0
        together.check()
        return
    for key in keys:
        each.enter(key)
    assert together.rows == each.rows
    for _, n in calls:
        for policy in (together, each):
            key = ChunkKey(b"%d" % n)
            policy.touch(key) if key in policy.rows else policy.insert(key)
    assert list(together.victims()) == list(each.victims())
    together.check()
