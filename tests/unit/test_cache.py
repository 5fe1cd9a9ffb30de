"""TieredCache without bytes or threads: the test is the engine, and carries out the transfers when it says so."""

import pytest

from kvtier.cache import PROMISE_STEPS, QUARANTINE_STEPS, TieredCache
from kvtier.policy.slru import Slru
from kvtier.residency import Chain, Promotion, Resident
from kvtier.tiers.disk import DiskTier
from kvtier.tiers.host import HostTier
from kvtier.types import ChunkKey, Lookup, Miss, Record, Source

HIT, PENDING, MISS = Lookup.HIT, Lookup.PENDING, Lookup.MISS
FAMILY = b"family-1"
CHUNK_BYTES = 100
FRAME_BYTES = 10


def key(name: str, family: bytes = FAMILY) -> ChunkKey:
    return ChunkKey(family + bytes(8) + name.encode())


def keys(names: str) -> list[ChunkKey]:
    return [key(name) for name in names]


def names(found: list[ChunkKey]) -> str:
    return "".join(k[16:].decode() for k in found)


class Rig:
    """A cache of a few slots and frames, and what an engine and the transfer threads do with it."""

    def __init__(
        self, n_slots: int, n_frames: int = 0, *, write_behind_after_s: float | None = 0.0, lru: bool = False
    ) -> None:
        self.now = 0.0
        self.jobs: list[Promotion] = []
        self.deleted: list[tuple[int, ChunkKey]] = []
        self.n_wakes = 0
        self.host = HostTier(n_slots, CHUNK_BYTES, Slru(n_slots, protected=0, ghosts=0) if lru else Slru(n_slots))
        self.disk = DiskTier(1, n_frames * FRAME_BYTES, lambda n: n, Slru(n_frames)) if n_frames else None
        if self.disk is not None:
            self.disk.set_family(FAMILY)
        self.cache = TieredCache(
            self.host,
            self.disk,
            clock=lambda: self.now,
            submit_promotion=self.jobs.append,
            wake_spiller=self.wake,
            delete_frame=lambda shard, k: self.deleted.append((shard, k)),
            write_behind_after_s=write_behind_after_s,
        )
        self.stats = self.cache.stats

    def wake(self) -> None:
        self.n_wakes += 1

    # ---- the engine

    def walk(self, chain: Chain, text: str) -> str:
        """Lookups head first until the first MISS, as letters: H, P, M."""
        assert self.cache.begin_walk(chain)
        out = ""
        for k in keys(text):
            answer = self.cache.lookup(chain, k)
            out += answer.name[0]
            if answer is MISS:
                break
        return out

    def offload(self, chain: Chain, text: str) -> str:
        """Offer `text`; the copies land at once. Returns what was taken."""
        offload = self.cache.begin_offload(chain, keys(text))
        self.cache.end_offload(offload.keys)
        return names(offload.keys)

    def onload(self, chain: Chain, text: str, *, failed: bool = False) -> list[int] | None:
        slots = self.cache.begin_onload(chain, keys(text))
        if slots is not None:
            self.cache.end_onload(keys(text), failed=failed)
        return slots

    def request(self, text: str) -> str:
        """A whole request: hits are loaded, the rest is computed and stored. Returns what the last walk answered."""
        chain = self.cache.open_chain()
        answers = self.walk(chain, text)
        while "P" in answers:
            self.promote()
            answers = self.walk(chain, text)
        if n_hits := answers.count("H"):
            self.onload(chain, text[:n_hits])
        self.offload(chain, text[n_hits:])
        self.cache.close_chain(chain)
        self.cache.check()
        return answers

    # ---- the transfer threads

    def promote(self, failure: Miss | None = None) -> None:
        while self.jobs:
            self.cache.promoted(self.jobs.pop(0), failure)

    def spill(self, *, max_chunks: int = 100, ok: bool = True) -> str:
        """One round of the spill thread."""
        batch = self.cache.next_spills(max_chunks, idle=True)
        for resident in batch:
            placement = self.cache.place(resident.key, FRAME_BYTES)
            self.cache.spilled(resident, placement, ok=ok and placement is not None)
        return names([resident.key for resident in batch])

    # ---- what is where

    def on_host(self) -> str:
        """Coldest first."""
        return names(list(self.host.policy.victims()))

    def on_disk(self) -> str:
        assert self.disk is not None
        return names(list(self.disk.policy.victims()))

    def why(self, text: str) -> Miss | None:
        """Why a new request for `text` misses."""
        chain = self.cache.open_chain()
        assert self.walk(chain, text).endswith("M")
        self.cache.close_chain(chain)
        return chain.miss


def evicted_to_disk(text: str, *, n_slots: int = 8, n_frames: int = 20, lru: bool = False) -> Rig:
    """A rig whose disk has `text` and whose host pool is full of others."""
    rig = Rig(n_slots, n_frames, lru=lru)
    for part in [text[i : i + n_slots] for i in range(0, len(text), n_slots)]:
        rig.request(part)
        rig.spill()
    filler = "0123456789"[:n_slots]
    assert rig.disk is not None
    rig.request(filler)
    for k in keys(filler):
        resident = rig.host.get(k)
        assert resident is not None
        rig.cache._clean(resident)  # never to be spilled: not what the test is about
    assert rig.host.n_free == 0
    return rig


# ---- hits and promises ----------------------------------------------------------------------------------------------


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


# ---- uses and order -------------------------------------------------------------------------------------------------


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


# ---- room -----------------------------------------------------------------------------------------------------------


def test_a_prefix_longer_than_the_pool_promotes_its_longest_head():
    rig = evicted_to_disk("abcdefghijklmnop", n_slots=8, n_frames=30)
    chain = rig.cache.open_chain()
    assert rig.walk(chain, "abcdefghijklmnop") == "PPPPPPPM"
    assert chain.miss is Miss.GATE
    rig.promote()
    assert rig.walk(chain, "abcdefghijklmnop") == "HHHHHHHM"
    assert len(rig.onload(chain, "abcdefg") or ()) == 7


def test_promotions_leave_an_eighth_of_the_pool_to_stores():
    rig = evicted_to_disk("abcdefghijklmnop", n_slots=8, n_frames=30)
    rig.walk(rig.cache.open_chain(), "abcdefghijklmnop")
    assert rig.offload(rig.cache.open_chain(), "x") == "x"
    assert rig.why("ijk") is Miss.GATE


def test_a_chain_never_loses_its_own_chunks_to_its_own_tail():
    rig = Rig(4)
    chain = rig.cache.open_chain()
    assert rig.offload(chain, "abcdef") == "abcd"
    assert rig.offload(chain, "ghi") == ""
    assert set(rig.on_host()) == set("abcd")
    assert rig.stats.store_refused_chunks == 5


def test_a_chain_that_grows_in_steps_keeps_its_head():
    rig = Rig(4)
    chain = rig.cache.open_chain()
    for name in "abcdef":
        rig.offload(chain, name)
    assert set(rig.on_host()) == set("abcd")


def test_refused_chunks_are_the_tail_and_may_be_evicted_by_the_next_request():
    rig = Rig(4)
    rig.request("abcdef")
    assert rig.request("vwxyz") == "M"
    assert set(rig.on_host()) == set("vwxy")


def test_a_clean_chunk_is_evicted_before_a_dirty_one_that_is_a_little_colder():
    rig = Rig(4, n_frames=10, write_behind_after_s=None)
    for name in "abcd":
        rig.request(name)
    resident = rig.host.get(key("b"))
    assert resident is not None
    resident.spilling = True
    rig.cache.spilled(resident, rig.cache.place(resident.key, FRAME_BYTES), ok=True)
    rig.offload(rig.cache.open_chain(), "x")
    assert set(rig.on_host()) == set("acdx")
    assert rig.stats.host_dropped_chunks == 0


def test_evicting_a_dirty_chunk_is_counted_as_dropped():
    rig = Rig(2, n_frames=10)
    rig.request("ab")
    rig.request("xy")
    assert rig.stats.host_evicted_chunks == 2
    assert rig.stats.host_dropped_chunks == 2
    assert set(rig.spill()) == set("xy")


def test_without_a_disk_tier_nothing_is_dirty_and_nothing_counts_as_dropped():
    rig = Rig(2)
    rig.request("ab")
    rig.request("xy")
    assert rig.stats.host_evicted_chunks == 2
    assert rig.stats.host_dropped_chunks == 0
    assert rig.cache.n_dirty() == 0
    assert rig.cache.next_spills(8, idle=True) == []


@pytest.mark.parametrize("n_slots", [1, 2, 3, 4])
def test_a_pool_of_a_few_slots_serves_what_fits(n_slots: int):
    rig = Rig(n_slots, n_frames=40)
    assert rig.request("abcdef") == "M"
    assert rig.request("abcdef") == "H" * n_slots + "M"
    rig.spill()
    rig.request("uvwxyz")
    rig.spill()
    chain = rig.cache.open_chain()
    n_promoted = int(n_slots * 0.875)
    assert rig.walk(chain, "abcdef") == "P" * n_promoted + "M"
    rig.promote()
    assert rig.walk(chain, "abcdef") == "H" * n_promoted + "M"
    rig.cache.check()


def test_a_chunk_offered_twice_in_one_call_takes_one_slot():
    rig = Rig(4)
    offload = rig.cache.begin_offload(rig.cache.open_chain(), keys("aba"))
    assert names(offload.keys) == "ab"
    assert rig.host.n_free == 2


# ---- down -----------------------------------------------------------------------------------------------------------


def test_a_stored_chunk_is_dirty_until_it_is_on_disk():
    rig = Rig(4, n_frames=10)
    rig.request("ab")
    assert rig.cache.n_dirty() == 2
    assert rig.n_wakes
    assert set(rig.spill()) == set("ab")
    assert rig.cache.n_dirty() == 0
    assert rig.stats.spilled_chunks == 2
    assert rig.stats.spill_raw_bytes == 2 * CHUNK_BYTES
    assert rig.stats.spill_stored_bytes == 2 * FRAME_BYTES
    assert rig.spill() == ""


def test_without_write_behind_only_the_cold_end_is_spilled():
    rig = Rig(16, n_frames=50, write_behind_after_s=None)
    rig.request("abcdefghijklmnop")
    assert rig.spill() == "po"


def test_the_cold_end_is_spilled_before_there_is_an_eviction():
    rig = Rig(16, n_frames=50, write_behind_after_s=None)
    rig.request("abcdefghijklmno")
    assert rig.spill() == "o"  # one slot is free: two of sixteen are to be free or clean
    rig.request("xy")
    assert rig.stats.host_dropped_chunks == 0


def test_a_chunk_that_has_rested_is_written_behind():
    rig = Rig(16, n_frames=50, write_behind_after_s=2.0)
    rig.request("ab")
    rig.now = 1.0
    rig.request("cd")
    assert rig.spill() == ""
    rig.now = 2.0
    assert set(rig.spill()) == set("ab")
    rig.now = 3.0
    assert set(rig.spill()) == set("cd")


def test_chunks_of_a_busy_engine_rest_ten_times_as_long():
    rig = Rig(16, n_frames=50, write_behind_after_s=2.0)
    rig.request("ab")
    rig.now = 19.9
    assert rig.cache.next_spills(8, idle=False) == []
    rig.now = 20.0
    assert len(rig.cache.next_spills(8, idle=False)) == 2


def test_a_round_takes_no_more_chunks_than_asked_for_and_none_twice():
    rig = Rig(16, n_frames=50)
    rig.request("abcdef")
    first, second = rig.cache.next_spills(4, idle=True), rig.cache.next_spills(4, idle=True)
    assert len(first) == 4
    assert {r.key for r in first} | {r.key for r in second} == set(keys("abcdef"))
    assert len(second) == 2


def test_a_chunk_that_is_being_spilled_is_not_evicted():
    rig = Rig(2, n_frames=10)
    rig.request("ab")
    (resident,) = rig.cache.next_spills(1, idle=True)
    assert len(rig.offload(rig.cache.open_chain(), "xyz")) == 1
    assert names([resident.key]) in rig.on_host()
    rig.cache.spilled(resident, rig.cache.place(resident.key, FRAME_BYTES), ok=True)
    assert rig.offload(rig.cache.open_chain(), "y") == "y"


def test_a_spill_that_failed_is_tried_again_three_times_in_all():
    rig = Rig(4, n_frames=10)
    rig.request("a")
    for _ in range(3):
        assert rig.spill(ok=False) == "a"
    assert rig.spill() == ""
    assert rig.stats.spill_failed_chunks == 3
    assert rig.on_disk() == ""
    assert rig.request("a") == "H"


def test_nothing_is_spilled_while_writing_is_switched_off():
    rig = Rig(4, n_frames=10)
    rig.request("a")
    rig.cache.disk_writable = False
    assert rig.spill() == ""
    rig.cache.disk_writable = True
    assert rig.spill() == "a"


def test_evictions_from_disk_are_counted():
    rig = Rig(4, n_frames=3)
    for name in "abcde":
        rig.request(name)
        rig.spill()
    assert rig.stats.disk_evicted_chunks == 2
    assert rig.on_disk() == "cde"


def test_a_chunk_stored_again_while_it_is_on_disk_is_clean():
    rig = evicted_to_disk("ab", n_slots=2)
    chain = rig.cache.open_chain()
    rig.offload(chain, "ab")
    assert rig.cache.n_dirty() == 0
    rig.cache.check()


# ---- up -------------------------------------------------------------------------------------------------------------


def test_a_chunk_on_disk_is_promoted_and_its_frame_kept():
    rig = evicted_to_disk("ab")
    chain = rig.cache.open_chain()
    assert rig.walk(chain, "ab") == "PP"
    rig.promote()
    assert rig.walk(chain, "ab") == "HH"
    assert chain.sources == {key("a"): Source.DISK, key("b"): Source.DISK}
    assert set("ab") <= set(rig.on_disk())
    assert rig.stats.promoted_chunks == 2
    assert rig.stats.promote_stored_bytes == 2 * FRAME_BYTES


def test_a_promoted_chunk_is_clean_and_not_written_again():
    rig = evicted_to_disk("ab")
    assert rig.request("ab") == "HH"
    assert rig.cache.n_dirty() == 0
    written = rig.stats.spilled_chunks
    rig.request("qrstuvwx")
    assert rig.stats.host_dropped_chunks == 0
    assert rig.spill()
    assert rig.stats.spilled_chunks == written + 8
    assert rig.request("ab") == "HH"


def test_two_requests_share_one_promotion():
    rig = evicted_to_disk("ab")
    one, other = rig.cache.open_chain(), rig.cache.open_chain()
    assert rig.walk(one, "ab") == "PP"
    assert rig.walk(other, "ab") == "PP"
    assert len(rig.jobs) == 2
    rig.promote()
    assert rig.walk(one, "ab") == rig.walk(other, "ab") == "HH"
    assert other.sources[key("a")] is Source.HOST


def test_a_promotion_goes_on_when_its_request_is_gone():
    rig = evicted_to_disk("ab")
    chain = rig.cache.open_chain()
    rig.walk(chain, "ab")
    rig.cache.close_chain(chain)
    rig.promote()
    assert rig.walk(rig.cache.open_chain(), "ab") == "HH"
    rig.cache.check()


@pytest.mark.parametrize("failure", [Miss.CORRUPT, Miss.FOREIGN, Miss.LOAD_FAILED, Miss.EVICTED])
def test_a_failed_promotion_is_a_miss_with_its_reason_and_the_frame_is_deleted(failure: Miss):
    rig = evicted_to_disk("abc")
    chain = rig.cache.open_chain()
    rig.walk(chain, "abc")
    job_a, job_b, job_c = rig.jobs
    rig.cache.promoted(job_a, None)
    rig.cache.promoted(job_b, failure)
    rig.cache.promoted(job_c, None)
    assert chain.pending == 0
    assert rig.walk(chain, "abc") == "HM"
    assert chain.miss is failure
    assert rig.deleted == [(0, key("b"))]
    assert "b" not in rig.on_disk() + rig.on_host()
    rig.cache.check()


def test_failed_promotions_are_counted_by_kind():
    rig = evicted_to_disk("abc")
    rig.walk(rig.cache.open_chain(), "abc")
    for job, failure in zip(rig.jobs, (Miss.CORRUPT, Miss.FOREIGN, Miss.LOAD_FAILED), strict=True):
        rig.cache.promoted(job, failure)
    assert (rig.stats.corrupt_frames, rig.stats.foreign_frames, rig.stats.load_errors) == (1, 1, 1)
    assert rig.stats.promoted_chunks == 0


def test_all_who_waited_for_a_failed_promotion_learn_its_reason():
    rig = evicted_to_disk("a")
    one, other = rig.cache.open_chain(), rig.cache.open_chain()
    rig.walk(one, "a")
    rig.walk(other, "a")
    rig.promote(Miss.CORRUPT)
    for chain in (one, other):
        assert rig.walk(chain, "a") == "M"
        assert chain.miss is Miss.CORRUPT


def test_a_chunk_whose_promotion_failed_is_stored_again_and_spilled():
    rig = evicted_to_disk("a")
    chain = rig.cache.open_chain()
    rig.walk(chain, "a")
    rig.promote(Miss.CORRUPT)
    assert rig.offload(chain, "a") == "a"
    assert rig.spill() == "a"
    assert "a" in rig.on_disk()


def test_a_frame_that_was_not_looked_at_stays_on_disk():
    rig = evicted_to_disk("a")
    chain = rig.cache.open_chain()
    rig.walk(chain, "a")
    rig.promote(Miss.GATE)
    assert rig.deleted == []
    assert rig.stats.load_errors == 0
    assert rig.walk(chain, "a") == "P"


def test_while_reading_is_switched_off_chunks_on_disk_are_failed_loads():
    rig = evicted_to_disk("a")
    rig.cache.disk_readable = False
    assert rig.why("a") is Miss.LOAD_FAILED
    assert "a" in rig.on_disk()


def test_a_frame_that_is_being_read_is_not_evicted():
    rig = Rig(8, n_frames=2)
    rig.request("ab")
    rig.spill()
    rig.request("01234567")
    rig.walk(rig.cache.open_chain(), "ab")
    assert rig.cache.place(key("x"), FRAME_BYTES) is None
    rig.promote()
    placement = rig.cache.place(key("x"), FRAME_BYTES)
    assert placement is not None
    assert len(placement.evicted) == 1


# ---- failed loads ---------------------------------------------------------------------------------------------------


def test_a_failed_load_drops_its_chunks_from_all_tiers():
    rig = evicted_to_disk("ab")
    chain = rig.cache.open_chain()
    rig.walk(chain, "ab")
    rig.promote()
    rig.walk(chain, "ab")
    rig.onload(chain, "ab", failed=True)
    assert rig.walk(chain, "ab") == "M"
    assert chain.miss is Miss.LOAD_FAILED
    assert sorted(rig.deleted) == [(0, key("a")), (0, key("b"))]
    assert rig.stats.load_errors == 2
    rig.cache.check()


def test_a_slot_is_not_reused_while_another_load_from_it_is_under_way():
    rig = Rig(2)
    rig.request("ab")
    one, other = rig.cache.open_chain(), rig.cache.open_chain()
    for chain in (one, other):
        rig.walk(chain, "a")
        rig.cache.begin_onload(chain, keys("a"))
    rig.cache.end_onload(keys("a"), failed=True)
    assert rig.walk(rig.cache.open_chain(), "a") == "M"
    assert rig.offload(rig.cache.open_chain(), "axy") == "x"
    rig.cache.end_onload(keys("a"))
    assert rig.offload(rig.cache.open_chain(), "y") == "y"
    rig.cache.check()


def test_a_chunk_dropped_while_it_was_being_spilled_does_not_stay_on_disk():
    rig = Rig(4, n_frames=10)
    rig.request("a")
    (resident,) = rig.cache.next_spills(1, idle=True)
    placement = rig.cache.place(resident.key, FRAME_BYTES)
    chain = rig.cache.open_chain()
    rig.walk(chain, "a")
    rig.onload(chain, "a", failed=True)
    rig.cache.spilled(resident, placement, ok=True)
    assert rig.on_disk() == ""
    assert rig.deleted == [(0, key("a"))]
    assert rig.host.n_free == 4
    rig.cache.check()


def test_a_chunk_dropped_while_it_was_being_spilled_and_stored_again_is_spilled_again():
    rig = Rig(4, n_frames=10)
    rig.request("a")
    (resident,) = rig.cache.next_spills(1, idle=True)
    placement = rig.cache.place(resident.key, FRAME_BYTES)
    chain = rig.cache.open_chain()
    rig.walk(chain, "a")
    rig.onload(chain, "a", failed=True)
    assert rig.offload(chain, "a") == "a"
    rig.cache.spilled(resident, placement, ok=True)
    rig.cache.check()
    assert rig.spill() == "a"
    assert rig.on_disk() == "a"
    rig.cache.check()


# ---- why a chunk misses ---------------------------------------------------------------------------------------------


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
    rig.disk.load(
        [
            Record(
                key(
                    "a",
                    b"other...",
                ),
                0,
                FRAME_BYTES,
                1,
            )
        ]
    )
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


# ---- reset ----------------------------------------------------------------------------------------------------------


def test_after_a_reset_nothing_stored_before_is_found():
    rig = Rig(8, n_frames=20)
    rig.request("abcd")
    rig.spill()
    rig.request("ef")
    rig.cache.reset(b"family-2")
    assert len(rig.host) == 0
    assert rig.host.n_free == 8
    assert rig.cache.n_dirty() == 0
    chain = rig.cache.open_chain()
    assert rig.cache.lookup(chain, key("a", b"family-2")) is MISS
    assert chain.miss is Miss.FOREIGN
    rig.cache.check()


def test_slots_of_copies_in_flight_are_quarantined_over_a_reset():
    rig = Rig(4)
    rig.request("a")
    chain = rig.cache.open_chain()
    rig.walk(chain, "a")
    rig.cache.begin_onload(chain, keys("a"))
    rig.cache.begin_offload(chain, keys("bc"))
    rig.cache.reset(b"family-2")
    assert rig.host.n_free == 1
    for _ in range(QUARANTINE_STEPS - 1):
        rig.cache.step_ended()
    assert rig.host.n_free == 1
    rig.cache.step_ended()
    assert rig.host.n_free == 4
    rig.cache.check()


def test_completions_that_come_after_a_reset_change_nothing():
    rig = Rig(4)
    rig.request("a")
    chain = rig.cache.open_chain()
    rig.walk(chain, "a")
    rig.cache.begin_onload(chain, keys("a"))
    rig.cache.begin_offload(chain, keys("b"))
    rig.cache.reset(b"family-2")
    rig.cache.end_onload(keys("a"), failed=True)
    rig.cache.end_offload(keys("b"))
    assert len(rig.host) == 0
    assert rig.host.n_free == 2
    rig.cache.check()


def test_promotions_under_way_over_a_reset_free_their_slots_and_nobody_waits():
    rig = evicted_to_disk("ab", n_slots=4)
    chain = rig.cache.open_chain()
    rig.walk(chain, "ab")
    rig.cache.reset(b"family-2")
    assert chain.pending == 0
    assert rig.host.n_free == 2
    good, bad = rig.jobs
    rig.cache.promoted(good, None)
    rig.cache.promoted(bad, Miss.CORRUPT)
    assert rig.host.n_free == 4
    assert chain.pending == 0
    assert not rig.cache.begin_walk(chain) or rig.cache.lookup(chain, key("a", b"family-2")) is MISS
    rig.cache.check()


def test_a_spill_under_way_over_a_reset_frees_its_slot_and_leaves_no_frame():
    rig = Rig(2, n_frames=10)
    rig.request("a")
    (resident,) = rig.cache.next_spills(1, idle=True)
    placement = rig.cache.place(resident.key, FRAME_BYTES)
    rig.cache.reset(b"family-2")
    assert rig.host.n_free == 1
    rig.cache.spilled(resident, placement, ok=True)
    assert rig.host.n_free == 2
    assert rig.on_disk() == ""
    assert rig.deleted == [(0, key("a"))]


def test_a_chunk_spilling_and_loading_over_a_reset_keeps_its_slot_until_both_have_ended():
    rig = Rig(1, n_frames=10)
    rig.request("a")
    (resident,) = rig.cache.next_spills(1, idle=True)
    chain = rig.cache.open_chain()
    rig.walk(chain, "a")
    rig.cache.begin_onload(chain, keys("a"))
    rig.cache.reset(b"family-2")
    for _ in range(QUARANTINE_STEPS):
        rig.cache.step_ended()
    assert rig.host.n_free == 0
    rig.cache.spilled(resident, None, ok=False)
    assert rig.host.n_free == 1


# ---- what is printed ------------------------------------------------------------------------------------------------


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
