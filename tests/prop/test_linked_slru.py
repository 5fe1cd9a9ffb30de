"""LinkedSlru decides as Slru does, whatever is done to both."""

from hypothesis import given
from hypothesis import strategies as st

from kvtier.policy.linked import LinkedSlru
from kvtier.policy.slru import Slru
from kvtier.residency import Link
from kvtier.types import ChunkKey

CALLS = st.tuples(st.sampled_from(["use", "use", "use", "refresh", "evict", "drop", "resize"]), st.integers(0, 11))


@given(
    st.integers(0, 8), st.sampled_from([0.0, 0.3, 0.9]), st.sampled_from([None, 0, 2]), st.lists(CALLS, max_size=120)
)
def test_both_have_the_same_victims_and_remember_the_same(capacity, protected, ghosts, calls):
    plain = Slru(capacity, protected=protected, ghosts=ghosts)
    linked: LinkedSlru[Link] = LinkedSlru(capacity, protected=protected, ghosts=ghosts)
    for call, n in calls:
        key = ChunkKey(b"%d" % n)
        present = key in linked.entries
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


def test_an_entry_that_left_holds_no_other():
    policy: LinkedSlru[Link] = LinkedSlru(4)
    links = [Link(ChunkKey(b"%d" % n)) for n in range(3)]
    for link in links:
        policy.enter(link)
    policy.remove(links[1].key, evicted=True)
    assert not hasattr(links[1], "colder")
    assert not hasattr(links[1], "hotter")
    assert [*policy.entries.values()] == [links[0], links[2]]
