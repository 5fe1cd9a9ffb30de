"""The load gate over a throttled store, with the real cache and mover: it follows the disk, and costs next to nothing.

Time is virtual: reads take what the test says, prefill takes TOKEN_S a token, and both go on at once. What is compared
is the time from a request's arrival to the end of its prefill, with the time it takes to prefill all of it.
"""

import itertools
import random
import threading
from collections.abc import Callable, Iterator

import pytest

from kvtier.helper.depot import READS_AHEAD
from kvtier.observe.rate import PrefillRate
from kvtier.policy.gate import PROBE_EVERY_S, LoadGate
from kvtier.store.memory import MemoryStore
from kvtier.testing.faults import Fault
from kvtier.transfer.probe import LoadProbe
from kvtier.types import ChunkKey, Lookup
from tests.rigs.mover import CHUNK_BYTES, FRAME_BYTES, Rig, content, key, until

TOKENS = 100
TOKEN_S = 1e-3
N_CHUNKS = 6
N_PROMPTS = 12
PLAIN_S = N_CHUNKS * TOKENS * TOKEN_S
"""A prompt without kvtier."""

FAST_S, SLOW_S = 0.01, 0.5
"""A read; a chunk takes 0.1 s to recompute."""


class Time:
    """The rig's clock, moved by the engine alone, and only while every read that can be under way is. Reads sleep."""

    def __init__(self, rig: Rig, n_lanes: int) -> None:
        self._rig = rig
        self._asleep: dict[int, float] = {}  # until when, by thread
        self._turn = threading.Condition()
        self.n_reading: Callable[[], int] = lambda: min(n_lanes, rig.cache._n_promoting)
        self.stalls_until_s = 0.0

    def sleep(self, seconds: float) -> None:
        me = threading.get_ident()
        with self._turn:
            self._asleep[me] = max(self._rig.clock.now, self.stalls_until_s) + seconds
            assert self._turn.wait_for(lambda: me not in self._asleep, 20)

    def pass_until(self, until_s: float, done: Callable[[], bool] = lambda: False) -> None:
        """Let reads end one by one, in the order of time, until it is `until_s` or `done`."""
        while True:
            until(lambda: len(self._asleep) >= self.n_reading())
            if done():
                return
            with self._turn:
                first = min(self._asleep, key=self._asleep.__getitem__, default=None)
                if first is None or self._asleep[first] > until_s:
                    self._rig.clock.now = max(self._rig.clock.now, until_s)
                    return
                self._rig.clock.now = self._asleep.pop(first)
                self._turn.notify_all()


class Server:
    """An engine with one prompt at a time, over prompts that all are on disk and mostly not in host memory."""

    def __init__(self, n_lanes: int) -> None:
        store = MemoryStore(1, 100 * FRAME_BYTES)
        self.rig = Rig(store, n_slots=16, n_promote_threads=n_lanes)
        self.n_lanes = n_lanes
        self.prefill = PrefillRate()
        self.gate = LoadGate(
            chunk_bytes=CHUNK_BYTES, tokens_per_chunk=TOKENS, prefill=self.prefill, n_lanes=self.n_lanes
        )
        self.rig.cache._gate = self.gate
        self.time = Time(self.rig, self.n_lanes)
        self.rig.store._sleep = self.time.sleep
        self.loaded: list[bool] = []
        self._prompts = itertools.cycle([[key(f"{p} {c}") for c in range(N_CHUNKS)] for p in range(N_PROMPTS)])
        for _ in range(N_PROMPTS):  # computed and stored
            self.request()
            self.rig.settle()
        self.loaded.clear()

    @property
    def now(self) -> float:
        return self.rig.clock.now

    def disk(self, read_s: float) -> None:
        """How long a chunk takes from now on where all threads read; each of their reads takes so many times that."""
        self.rig.store.heal()
        self.rig.store.inject(Fault(method="read", slow_s=read_s * self.n_lanes))

    def stall(self, stall_s: float) -> None:
        """No read ends before `stall_s` from now."""
        self.time.stalls_until_s = self.now + stall_s

    def requests(self, n: int) -> float:
        """Mean time of `n` requests, as a share of what they take without kvtier."""
        return sum(self.request() for _ in range(n)) / n / PLAIN_S

    def request(self) -> float:
        """Seconds until the prompt is in the device's memory."""
        began_s, keys, cache = self.now, next(self._prompts), self.rig.cache
        chain = cache.open_chain()
        assert cache.begin_walk(chain, N_CHUNKS)
        while True:
            n_hits = self._walk(chain, keys)
            if n_hits is not None:
                break
            while not cache.begin_walk(chain, N_CHUNKS):
                self.time.pass_until(self.now + 0.01, lambda: not chain.pending)
        self.loaded.append(n_hits == N_CHUNKS)
        if n_hits:
            slots = cache.begin_onload(chain, keys[:n_hits])
            assert slots is not None
            assert all(bytes(self.rig.slots[s]) == content(k) for s, k in zip(slots, keys, strict=False))
            cache.end_onload(keys[:n_hits])
        if n_computed := (N_CHUNKS - n_hits) * TOKENS:
            self.prefill.step_scheduled(self.now, n_computed)
            self.time.pass_until(self.now + n_computed * TOKEN_S)
            self.prefill.step_done(self.now)
        took_s = self.now - began_s
        offload = cache.begin_offload(chain, keys)
        for k, slot in zip(offload.keys, offload.slots, strict=True):
            self.rig.slots[slot][:] = content(k)
        cache.end_offload(offload.keys)
        cache.close_chain(chain)
        self.time.pass_until(self.now + 0.1)  # decoding
        return took_s

    def _walk(self, chain, keys: list[ChunkKey]) -> int | None:
        answers = []
        for k in keys:
            answers.append(self.rig.cache.lookup(chain, k))
            if answers[-1] is Lookup.MISS:
                break
        return None if Lookup.PENDING in answers else answers.count(Lookup.HIT)


@pytest.fixture(params=[1, 2 + READS_AHEAD], ids=["one read at a time", "a read of each thread"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    server = Server(request.param)
    yield server
    server.time.pass_until(server.now + 1e6)
    assert server.rig.mover.stop()
    server.rig.cache.check()


def test_on_a_slow_disk_requests_take_what_they_take_without_kvtier(server: Server):
    server.disk(SLOW_S)
    assert server.request() <= 2.02 * PLAIN_S  # somebody has to find out
    assert server.requests(300) == pytest.approx(1.0, abs=1e-3)
    assert not any(server.loaded)


def test_a_slow_disk_that_a_probe_has_seen_costs_not_even_the_first_request(server: Server):
    server.disk(SLOW_S)
    disk = server.rig.disk
    probe = LoadProbe(
        server.rig.store,
        disk.sample(8),
        CHUNK_BYTES,
        n_threads=server.n_lanes,
        n_processors=server.n_lanes,
        tell=server.rig.cache.assume_load_rate,
        clock=server.rig.clock,
    )
    promotes, server.time.n_reading = server.time.n_reading, lambda: sum(t.is_alive() for t in probe._threads)
    probe.start()
    server.time.pass_until(server.now + 60.0)
    assert probe.stop()
    server.time.n_reading = promotes
    assert server.request() == pytest.approx(PLAIN_S)
    assert server.requests(100) <= 1.05


def test_on_a_fast_disk_requests_load(server: Server):
    server.disk(FAST_S)
    assert server.requests(100) <= 0.2
    assert all(server.loaded)


def test_a_disk_that_becomes_slow_costs_one_request_and_then_nothing(server: Server):
    server.disk(FAST_S)
    server.requests(20)
    server.disk(SLOW_S)
    server.loaded.clear()
    assert server.request() <= 2.02 * PLAIN_S
    assert server.requests(100) == pytest.approx(1.0, abs=1e-3)
    assert not any(server.loaded)
    assert server.rig.stats.gave_up_requests == 1


def test_a_disk_that_recovers_is_used_again(server: Server):
    server.disk(SLOW_S)
    server.requests(20)
    server.disk(FAST_S)
    since_s = server.now
    while not server.request() < 0.5 * PLAIN_S:
        assert server.now - since_s < 2 * PROBE_EVERY_S
    server.loaded.clear()
    server.requests(50)
    assert all(server.loaded)


def test_hiccups_of_a_fast_disk_change_nothing(server: Server):
    rng = random.Random(1)
    server.disk(FAST_S)
    server.requests(10)
    server.loaded.clear()
    for _ in range(60):
        server.disk(FAST_S)
        if rng.random() < 0.1:
            server.rig.store.heal()
            server.rig.store.inject(Fault(method="read", after=rng.randrange(N_CHUNKS), times=1, slow_s=0.3))
        server.request()
    assert server.loaded.count(True) >= 58


@pytest.mark.parametrize("stall_s", [0.5 * PLAIN_S, 0.8 * PLAIN_S])
def test_stalls_that_are_over_before_a_request_is_computed_cost_their_time_and_no_more(server: Server, stall_s: float):
    server.disk(FAST_S)
    server.requests(10)
    server.loaded.clear()
    for _ in range(20):
        server.stall(stall_s)
        assert server.request() < PLAIN_S
        server.requests(5)
    assert all(server.loaded)
    assert server.rig.stats.gave_up_requests == 0


def test_after_a_stall_that_was_not_worth_waiting_for_the_disk_is_used_again_in_seconds(server: Server):
    server.disk(FAST_S)
    server.requests(10)
    for _ in range(3):
        stalled_s = server.now
        server.stall(2 * PLAIN_S)
        assert server.request() <= 2.02 * PLAIN_S
        while not server.request() < 0.5 * PLAIN_S:
            assert server.now - stalled_s < 10
        server.requests(20)


@pytest.mark.parametrize("mean_s", [0.09, 0.1, 0.11])
def test_near_the_break_even_requests_neither_flap_nor_lose(server: Server, mean_s: float):
    rng = random.Random(2)
    server.disk(mean_s)
    server.requests(10)
    server.loaded.clear()
    took_s = 0.0
    for _ in range(200):
        server.disk(mean_s * rng.uniform(0.8, 1.2))
        took_s += server.request()
    n_changes = sum(a != b for a, b in itertools.pairwise(server.loaded))
    assert n_changes <= 10
    assert took_s <= 200 * PLAIN_S * 1.05


def test_probes_of_a_slow_disk_are_few_and_nobody_waits_for_them(server: Server):
    server.disk(SLOW_S)
    server.requests(80)  # somebody found out, and probes have become rare
    before_s, before = server.now, server.rig.stats.probed_chunks
    server.requests(300)
    n_probes = server.rig.stats.probed_chunks - before
    assert 3 <= n_probes <= (server.now - before_s) / PROBE_EVERY_S + 1
    assert server.rig.stats.gave_up_requests == 1
