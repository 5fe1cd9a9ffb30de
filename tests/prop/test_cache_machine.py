"""TieredCache under any interleaving of engine and transfer threads, against dictionaries of what every slot and every
frame holds. The machine plays both sides, failures included; no threads, no bytes: a slot holds the name of its chunk.
"""

import random
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kvtier.cache import PROMISE_STEPS, QUARANTINE_STEPS, TieredCache
from kvtier.policy.linked import LinkedSlru
from kvtier.policy.slru import Slru
from kvtier.residency import Placement, Promotion, Resident, State
from kvtier.tiers.disk import DiskTier
from kvtier.tiers.host import HostTier
from kvtier.types import ChunkKey, Found, Lookup, Miss
from tests.rigs.machine import OUTCOMES, TROUBLES, Copy, Purse, Request, frame_bytes

SHARD_BYTES, MAX_REQUESTS = 60, 5
OVERWRITTEN = ChunkKey(b"half written")
STEPS = [1, 1, 1, 20, 2 * PROMISE_STEPS]
texts = st.text("ab", min_size=1, max_size=5)
picks = st.integers(0, 1 << 30)


@pytest.fixture(autouse=True)
def room_is_made_for_several_frames_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvtier.tiers.disk.GROUP_SHARE", 1.0)  # a dozen frames make room as many do


class CacheMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.slots: dict[int, ChunkKey] = {}
        self.store: dict[tuple[int, ChunkKey], ChunkKey] = {}
        self.requests: list[Request] = []
        self.onloads: list[Copy] = []
        self.offloads: list[Copy] = []
        self.orphans: list[Copy] = []  # copies that a reset left behind
        self.promotions: list[Promotion] = []
        self.deletes: list[tuple[int, ChunkKey]] = []
        self.owed: dict[int, list[ChunkKey]] = {}
        self.sealed: list[tuple[Resident, Placement, ChunkKey]] = []  # the spill thread's batch, placed and not written
        self.chosen: list[Resident] = []  # its batch before that
        self.generation = 0
        self.step = 0
        self.now = 0.0

    @initialize(
        n_slots=st.integers(1, 9),
        n_shards=st.sampled_from([2, 2, 1, 1, 0]),
        write_behind=st.sampled_from([True, True, False]),
        admit_share=st.sampled_from([1.0, 1.0, 0.5, 0.0]),
        budget=st.sampled_from([None, None, 300]),
        max_under_way=st.sampled_from([1, 2, 100]),
    )
    def build(
        self,
        n_slots: int,
        n_shards: int,
        *,
        write_behind: bool,
        admit_share: float,
        budget: int | None,
        max_under_way: int,
    ) -> None:
        self.host = HostTier(n_slots, 1, Slru(n_slots))
        self.disk = DiskTier(n_shards, SHARD_BYTES, lambda n: n, LinkedSlru(1)) if n_shards else None
        if self.disk is not None:
            self.disk.set_family(self.family)
        self.cache = TieredCache(
            self.host,
            self.disk,
            clock=lambda: self.now,
            submit_promotion=self.submitted,
            wake_spiller=lambda: None,
            delete_frame=lambda shard, key: self.deletes.append((shard, key)),
            write_behind_after_s=1.0 if write_behind else None,
            admit_share=admit_share,
            budget=Purse(budget) if budget is not None else None,
            max_under_way=max_under_way,
        )

    @precondition(lambda self: self.host.n_slots < 12)
    @rule()
    def grow(self) -> None:
        self.cache.grow_host(self.host.n_slots + 1)

    @property
    def family(self) -> bytes:
        return b"family%02d" % self.generation

    def keys(self, text: str) -> list[ChunkKey]:
        """Chained: a chunk's key stands for all text up to its end."""
        return [ChunkKey(self.family + bytes(16) + text[: i + 1].encode()) for i in range(len(text))]

    def submitted(self, job: Promotion) -> None:
        self.promotions.append(job)
        self.overwrite(job.resident.slot)

    def overwrite(self, slot: int) -> None:
        """`slot` was handed out for writing: nobody else may be at it."""
        assert slot not in self.slots_in_use()
        self.slots[slot] = OVERWRITTEN

    def slots_in_use(self) -> list[int]:
        """Slots at which a copy, a seal or a promotion is, or for which there is a promise to keep."""
        copies = [slot for copy in self.onloads + self.offloads + self.orphans for slot in copy.slots]
        promised = {r.slot for request in self.requests for r in self.kept(request).values() if r.state is State.READY}
        spilling = [r.slot for r in self.chosen] + [r.slot for r, _, _ in self.sealed]
        return copies + spilling + list(promised)

    def kept(self, request: Request) -> dict[ChunkKey, Resident]:
        """The promises that must hold now."""
        return request.promised if self.step - request.seen_step < PROMISE_STEPS else {}

    def broken(self, key: ChunkKey) -> None:
        """The chunk failed: no promise of it holds any more."""
        for request in self.requests:
            request.promised.pop(key, None)
            if key in request.hits:
                request.hits.clear()

    # ---- the engine

    @precondition(lambda self: len(self.requests) < MAX_REQUESTS)
    @rule(text=texts, n_device=st.integers(0, 2))
    def open(self, text: str, n_device: int) -> None:
        self.requests.append(Request(text, min(n_device, len(text)), self.cache.open_chain(), seen_step=self.step))

    @precondition(lambda self: self.requests)
    @rule(pick=picks, n_at_once=st.integers(0, 3))
    def walk(self, pick: int, n_at_once: int = 0) -> None:
        request = self.requests[pick % len(self.requests)]
        request.promised = self.kept(request)
        request.seen_step = self.step
        request.hits.clear()
        if request.loading:
            return
        if not self.cache.begin_walk(request.chain):
            assert request.chain.pending > 0
            return
        answers = []
        keys = self.keys(request.text)[request.n_device :]
        found = self.cache.lookup_prefix(request.chain, keys, n_at_once=n_at_once) if n_at_once else None
        for key in keys:
            before = self.host.get(key)
            answer = self.cache.lookup(request.chain, key)
            resident = self.host.get(key)
            if answer is Lookup.MISS:
                assert request.chain.miss is not None
                assert before is None or before.spoilt
                break
            answers.append(answer)
            if resident is None:
                assert key in request.chain.waiting
                continue
            assert (answer is Lookup.HIT) == (resident.state is State.READY)
            assert answer is not Lookup.HIT or self.slots[resident.slot] == key
            request.promised[key] = resident
        assert found in (None, Found(len(answers), Lookup.PENDING in answers))
        if Lookup.PENDING not in answers:
            request.hits = keys[: len(answers)]

    @precondition(lambda self: any(request.hits for request in self.requests))
    @rule(pick=picks)
    def begin_onload(self, pick: int) -> None:
        ready = [request for request in self.requests if request.hits]
        request = ready[pick % len(ready)]
        if self.step - request.seen_step >= PROMISE_STEPS:
            return  # vLLM loads in the step of the walk; here a while may pass, but not that long
        keys = request.hits
        slots = self.cache.begin_onload(request.chain, keys)
        assert slots is not None
        assert [self.slots[slot] for slot in slots] == keys
        self.onloads.append(Copy(request, keys, slots))
        request.n_offered = max(request.n_offered, request.n_device + len(keys))
        request.hits, request.promised, request.loading = [], {}, True

    @precondition(lambda self: self.onloads)
    @rule(pick=picks, failed=st.sampled_from([False, False, True]))
    def end_onload(self, pick: int, *, failed: bool) -> None:
        copy = self.onloads.pop(pick % len(self.onloads))
        assert [self.slots[slot] for slot in copy.slots] == copy.keys
        self.cache.end_onload(copy.keys, failed=failed)
        copy.request.loading = False
        if failed:
            for key in copy.keys:
                self.broken(key)

    @precondition(lambda self: len(self.requests) < MAX_REQUESTS)
    @rule(text=texts, n_device=st.integers(0, 2))
    def open_and_walk(self, text: str, n_device: int) -> None:
        self.open(text, n_device)
        self.walk(len(self.requests) - 1)

    @precondition(lambda self: len(self.requests) < MAX_REQUESTS and self.only_on_disk())
    @rule(pick=picks)
    def ask_for_what_is_only_on_disk(self, pick: int) -> None:
        found = self.only_on_disk()
        text = found[pick % len(found)][24:].decode()
        self.open_and_walk(text, len(text) - 1)

    def only_on_disk(self) -> list[ChunkKey]:
        frames = self.disk.frames() if self.disk is not None else ()
        return [f.key for f in frames if f.ready and f.key.startswith(self.family) and f.key not in self.host]

    @rule(text=texts)
    def whole_request(self, text: str) -> None:
        """Without a walk, as one whose prefix the device has: all of it is offered. Makes rich states likely."""
        self.requests.append(Request(text, len(text), self.cache.open_chain(), seen_step=self.step))
        self.begin_offload(len(self.requests) - 1, len(text))
        self.end_offload(len(self.offloads) - 1, failed=False)
        self.close(len(self.requests) - 1)

    @precondition(lambda self: self.requests)
    @rule(pick=picks, n=st.integers(1, 7))
    def begin_offload(self, pick: int, n: int) -> None:
        request = self.requests[pick % len(self.requests)]
        keys = self.keys(request.text)[request.n_offered : request.n_offered + n]
        request.n_offered += len(keys)
        own = [key for key in request.chain.used if key in self.host]
        absent = [key for key in keys if key not in self.host]
        offload = self.cache.begin_offload(request.chain, keys)
        assert offload.keys == absent[: len(offload.keys)], "what is left out is the tail"
        assert all(key in self.host for key in own), "a chain lost its own chunks to its own tail"
        for slot in offload.slots:
            self.overwrite(slot)
        assert len(set(offload.slots)) == len(offload.slots)
        self.offloads.append(Copy(request, offload.keys, offload.slots))

    @precondition(lambda self: self.offloads)
    @rule(pick=picks, failed=st.sampled_from([False, False, False, True]))
    def end_offload(self, pick: int, *, failed: bool) -> None:
        copy = self.offloads.pop(pick % len(self.offloads))
        for key, slot in zip(copy.keys, copy.slots, strict=True):
            assert self.slots[slot] is OVERWRITTEN
            if failed:
                self.broken(key)
            else:
                self.slots[slot] = key
        self.cache.end_offload(copy.keys, failed=failed)

    @precondition(lambda self: self.requests)
    @rule(pick=picks)
    def close(self, pick: int) -> None:
        request = self.requests.pop(pick % len(self.requests))
        self.cache.close_chain(request.chain)
        assert request.chain.pending == 0
        assert not request.chain.promises

    @rule(n=st.sampled_from(STEPS))
    def steps(self, n: int) -> None:
        for _ in range(n):
            self.step += 1
            self.orphans = [copy for copy in self.orphans if copy.ends_step is None or copy.ends_step > self.step]
            self.cache.step_ended()

    @rule(really=st.integers(0, 9))
    def reset(self, really: int) -> None:
        if really != 9:
            return
        for copy in self.onloads + self.offloads:
            copy.ends_step = self.step + QUARANTINE_STEPS
            self.orphans.append(copy)
        self.onloads, self.offloads = [], []
        self.generation += 1
        self.cache.reset(self.family)
        for request in self.requests:
            assert request.chain.pending == 0
            request.hits, request.promised, request.loading = [], {}, False

    # ---- the promote threads

    @precondition(lambda self: self.promotions)
    @rule(pick=picks, trouble=st.sampled_from(TROUBLES))
    def promote(self, pick: int, trouble: Miss | None) -> None:
        job = self.promotions.pop(pick % len(self.promotions))
        key, slot = job.resident.key, job.resident.slot
        assert self.slots[slot] is OVERWRITTEN
        held = self.store.get((job.frame.shard, key))
        assert held is not None, "a frame that is being read was deleted"
        assert held == key
        if trouble is None:
            self.slots[slot] = held
        else:
            self.broken(key)
        self.cache.promoted(job, trouble)

    # ---- the spill thread

    @precondition(lambda self: not self.chosen and not self.sealed)
    @rule(n=st.integers(1, 4), idle=st.booleans())
    def choose_spills(self, n: int, *, idle: bool) -> None:
        self.chosen = self.cache.next_spills(n, idle=idle)
        assert len(self.chosen) <= n

    @precondition(lambda self: not self.chosen and not self.sealed)
    @rule()
    def whole_spill_round(self) -> None:
        self.now += 1.0
        self.choose_spills(4, idle=True)
        if self.chosen:
            self.seal(len(self.chosen))
        while self.sealed:
            self.write("ok")

    @precondition(lambda self: self.chosen)
    @rule(n=st.integers(1, 4))
    def seal(self, n: int) -> None:
        batch, self.chosen = self.chosen[:n], self.chosen[n:]
        assert all(self.slots[resident.slot] == resident.key for resident in batch)
        placements = self.cache.place_all([(r, frame_bytes(r.key)) for r in batch])
        for resident, placement in zip(batch, placements, strict=True):
            if placement is None:
                self.cache.spilled(resident, None, ok=False)
                continue
            assert all(shard == placement.frame.shard for shard, _ in placement.evicted)
            self.owed.setdefault(placement.frame.shard, []).extend(key for _, key in placement.evicted)
            self.sealed.append((resident, placement, resident.key))

    @precondition(lambda self: self.sealed and not self.chosen)
    @rule(outcome=st.sampled_from(OUTCOMES))
    def write(self, outcome: str) -> None:
        shard = self.sealed[0][1].frame.shard
        items = [item for item in self.sealed if item[1].frame.shard == shard]
        self.sealed = [item for item in self.sealed if item[1].frame.shard != shard]
        self.write_shard(shard, {placement.frame.key: sealed for _, placement, sealed in items}, outcome)
        for item in items:
            full = outcome == "full" and item is items[-1]
            self.cache.spilled(item[0], item[1], ok=outcome == "ok", full=full)

    @precondition(lambda self: self.disk is not None and not self.sealed)
    @rule(outcome=st.sampled_from(OUTCOMES))
    def delete_owed(self, outcome: str) -> None:
        self.take_deletes()
        for shard in list(self.owed):
            self.write_shard(shard, {}, outcome)

    def take_deletes(self) -> None:
        for shard, key in self.deletes:
            self.owed.setdefault(shard, []).append(key)
        self.deletes.clear()

    def write_shard(self, shard: int, puts: dict[ChunkKey, ChunkKey], outcome: str) -> None:
        """What the spill thread does with a shard, and what a store does then."""
        self.take_deletes()
        owed = self.owed.pop(shard, [])
        if outcome != "error":
            for key in owed:
                self.store.pop((shard, key), None)
        if outcome in {"ok", "error after the fact"}:
            self.store.update({(shard, key): sealed for key, sealed in puts.items()})
        if outcome.startswith("error"):
            self.owed[shard] = owed + list(puts)
        assert sum(frame_bytes(key) for at, key in self.store if at == shard) <= SHARD_BYTES

    @rule(readable=st.sampled_from([True, True, True, False]), writable=st.sampled_from([True, True, True, False]))
    def switch(self, *, readable: bool, writable: bool) -> None:
        self.cache.disk_readable, self.cache.disk_writable = readable, writable

    @rule(seconds=st.sampled_from([0.5, 20.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    # ---- what must hold after every step

    @invariant()
    def tiers_and_promises_agree(self) -> None:
        self.cache.check()

    @invariant()
    def no_more_slots_than_there_are(self) -> None:
        held = {r.slot for r in self.host.residents()}
        assert len(held) == len(self.host)
        assert len(self.host) + self.host.n_free <= self.host.n_slots
        assert self.host.used_bytes <= self.host.capacity_bytes

    @invariant()
    def every_readable_slot_holds_its_chunk(self) -> None:
        for resident in self.host.residents():
            if resident.state is State.READY:
                assert self.slots[resident.slot] == resident.key

    @invariant()
    def promised_chunks_stay(self) -> None:
        for request in self.requests:
            for key, resident in self.kept(request).items():
                assert self.host.get(key) is resident
                assert resident.pinned

    @invariant()
    def nobody_waits_for_nothing(self) -> None:
        if not self.promotions and not self.offloads:
            assert all(request.chain.pending == 0 for request in self.requests)

    @invariant()
    def the_disk_tier_stays_within_its_capacity(self) -> None:
        if self.disk is not None:
            assert self.disk.used_bytes <= self.disk.capacity_bytes

    @invariant()
    def every_committed_frame_is_in_the_store(self) -> None:
        for frame in self.disk.frames() if self.disk is not None else ():
            if frame.ready:
                assert self.store[frame.shard, frame.key] == frame.key

    @invariant()
    def nothing_of_an_earlier_family_is_in_host(self) -> None:
        assert all(r.key.startswith(self.family) for r in self.host.residents())

    def teardown(self) -> None:
        """When all that is under way has ended, no slot is lost, nobody waits, and index and store agree."""
        if not hasattr(self, "cache"):
            return
        self.cache.disk_writable = True
        while self.promotions:
            self.promote(0, None)
        while self.onloads:
            self.end_onload(0, failed=False)
        while self.offloads:
            self.end_offload(0, failed=False)
        if self.chosen:
            self.seal(len(self.chosen))
        while self.sealed:
            self.write("ok")
        while self.requests:
            self.close(0)
        self.steps(QUARANTINE_STEPS + 1)
        self.cache.check()
        assert len(self.host) + self.host.n_free == self.host.n_slots
        assert not any(resident.pinned for resident in self.host.residents())
        if self.disk is None:
            return
        assert not any(frame.pins for frame in self.disk.frames())
        self.delete_owed("ok")
        assert self.owed == {}
        assert set(self.store) == {(frame.shard, frame.key) for frame in self.disk.frames()}


TestCacheMachine = CacheMachine.TestCase
TestCacheMachine.settings = settings(
    max_examples=100,
    stateful_step_count=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


def random_step(machine: CacheMachine, rng: random.Random) -> None:
    """One rule, likelier where the cache has something to decide."""
    m = machine
    text = "".join(rng.choices("ab", k=rng.randint(1, 5)))
    pick, room = rng.randrange(1 << 30), len(m.requests) < MAX_REQUESTS
    failed = rng.random() < 0.1
    moves: list[tuple[int, object, Callable[[], None]]] = [
        (4, room, lambda: m.open_and_walk(text, rng.choice([0, 0, 0, 1, 2]))),
        (6, room and m.only_on_disk(), lambda: m.ask_for_what_is_only_on_disk(pick)),
        (4, m.requests, lambda: m.walk(pick)),
        (8, any(request.hits for request in m.requests), lambda: m.begin_onload(pick)),
        (6, m.onloads, lambda: m.end_onload(pick, failed=failed)),
        (3, m.requests, lambda: m.begin_offload(pick, rng.randint(1, 5))),
        (6, m.offloads, lambda: m.end_offload(pick, failed=failed)),
        (3, m.requests, lambda: m.close(pick)),
        (2, True, lambda: m.whole_request(text)),
        (2, True, lambda: m.steps(rng.choice(STEPS))),
        (1, rng.random() < 0.1, lambda: m.reset(9)),
        (6, m.promotions, lambda: m.promote(pick, rng.choice(TROUBLES))),
        (3, not m.chosen and not m.sealed, lambda: m.choose_spills(rng.randint(1, 4), idle=True)),
        (6, m.chosen, lambda: m.seal(rng.randint(1, 4))),
        (6, m.sealed and not m.chosen, lambda: m.write(rng.choice(OUTCOMES))),
        (1, m.disk is not None and not m.sealed, lambda: m.delete_owed(rng.choice(OUTCOMES))),
        (1, True, lambda: m.switch(readable=rng.random() < 0.9, writable=rng.random() < 0.9)),
        (1, True, lambda: m.wait(1.0)),
    ]
    possible = [(weight, move) for weight, allowed, move in moves if allowed]
    rng.choices([move for _, move in possible], [weight for weight, _ in possible])[0]()


@pytest.mark.parametrize("seed", range(12))
def test_long_runs_reach_what_short_ones_do_not(seed: int):
    rng = random.Random(seed)
    machine = CacheMachine()
    machine.build(
        rng.randint(1, 9),
        rng.choice([1, 1, 2]),
        write_behind=rng.random() < 0.8,
        admit_share=rng.choice([1.0, 0.5]),
        budget=rng.choice([None, 3000]),
        max_under_way=rng.choice([1, 2, 100]),
    )
    for _ in range(2000):
        random_step(machine, rng)
        for rule_that_holds in machine.invariants:
            rule_that_holds.function(machine)
    machine.teardown()
    assert machine.cache.stats.host_evicted_chunks
