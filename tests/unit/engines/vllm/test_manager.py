"""The manager between vLLM's calls and the cache, with no engine: the test makes vLLM's calls."""

from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm", reason="the engine is not installed")

from vllm.distributed.kv_transfer.kv_connector.v1.offloading.scheduler import OffloadingConnectorScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.kv_offload.base import LookupResult, ReqContext

from kvtier import config
from kvtier.build import build
from kvtier.engines.vllm.manager import KVTierManager
from kvtier.engines.vllm.metadata import ImpossibleLoadSpec
from kvtier.engines.vllm.scheduler import WholeChunksScheduler
from kvtier.keys import Namespace
from kvtier.types import Found, Geometry

CHUNK_BYTES = 4096


class Vllm:
    """A manager of `n_slots` slots and no disk, and requests by name."""

    def __init__(self, n_slots: int) -> None:
        pool = memoryview(bytearray(n_slots * CHUNK_BYTES))
        geometry = Geometry(CHUNK_BYTES, 16, "bfloat16")
        self.kvtier = build(
            config.parse({"disk": "off"}), geometry, pool, Namespace({}), report=lambda _: None, emit=lambda _: None
        )
        self.manager = KVTierManager(self.kvtier, 16)
        self._requests: dict[str, Any] = {}

    def request(self, name: str) -> Any:
        if name not in self._requests:
            self._requests[name] = ReqContext(name)
            self.manager.on_new_request(self._requests[name])
        return self._requests[name]

    def store(self, name: str, keys: list[bytes]) -> list[int]:
        """Slots that were given to `keys`, once they are full."""
        output: Any = self.manager.prepare_store(keys, self.request(name))
        self.manager.complete_store(output.keys_to_store, self.request(name))
        return [int(slot) for slot in output.store_spec.block_ids]

    def load(self, name: str, keys: list[bytes]) -> Any:
        """Begin a load without asking first."""
        return self.manager.prepare_load(keys, self.request(name))


@pytest.fixture
def vllm() -> Iterator[Vllm]:
    engine = Vllm(n_slots=1)
    yield engine
    engine.manager.shutdown()


def test_a_load_that_was_impossible_leaves_the_pins_of_others_alone(vllm: Vllm) -> None:
    [slot] = vllm.store("first", [b"a"])
    assert vllm.manager.lookup(b"a", vllm.request("reads")) is LookupResult.HIT
    assert list(vllm.load("reads", [b"a"]).block_ids) == [slot]
    assert isinstance(vllm.load("too late", [b"a", b"gone"]), ImpossibleLoadSpec)
    vllm.manager.mark_failed([b"a", b"gone"], vllm.request("too late"))
    vllm.manager.complete_load([b"a", b"gone"], vllm.request("too late"))
    assert vllm.store("writes", [b"b"]) == []  # the only slot is being read
    vllm.manager.complete_load([b"a"], vllm.request("reads"))
    assert vllm.store("writes", [b"b"]) == [slot]


def test_a_failed_load_is_not_found_again(vllm: Vllm) -> None:
    vllm.store("first", [b"a"])
    assert vllm.manager.lookup(b"a", vllm.request("reads")) is LookupResult.HIT
    vllm.load("reads", [b"a"])
    vllm.manager.mark_failed([b"a"], vllm.request("reads"))
    vllm.manager.complete_load([b"a"], vllm.request("reads"))
    assert vllm.manager.lookup(b"a", vllm.request("reads")) is LookupResult.MISS


def test_a_prefix_is_found_up_to_the_first_chunk_that_is_missing(vllm: Vllm) -> None:
    vllm.store("first", [b"a"])
    assert vllm.manager.lookup_prefix([b"a", b"b", b"a"], vllm.request("reads")) == Found(1, pending=False)


def test_a_prefix_in_a_request_that_cannot_be_looked_up_is_a_miss(vllm: Vllm) -> None:
    vllm.store("first", [b"a"])
    broken: Any = [b"a", None]
    assert vllm.manager.lookup_prefix(broken, vllm.request("reads")) == Found(0, pending=False)
    assert vllm.kvtier.cache.stats.engine_errors == 1


class Walk(WholeChunksScheduler):
    """vLLM's scheduler half, of which there is only what walks a prefix; it hears of hits if it is to describe them."""

    def __init__(self, manager: KVTierManager, *, describes: bool = False) -> None:
        self.manager = manager
        self.hits: list[bytes] = []
        self._events_tracker: Any = SimpleNamespace(
            self_describing_enabled=describes, record_lookup=lambda *what: self.hits.append(what[-1])
        )


@pytest.mark.parametrize("prefix", [[b"x"], [b"a"], [b"a", b"x", b"a"], [b"a", b"b"], [b"a", b"c"], [b"c", b"x"], []])
def test_vllm_is_told_of_a_prefix_what_asking_for_each_chunk_would_have_told_it(prefix: list[bytes]) -> None:
    engine = Vllm(n_slots=3)
    try:
        engine.store("first", [b"a", b"b"])
        engine.manager.prepare_store([b"c"], engine.request("is storing"))
        walk: Any = Walk(engine.manager)
        ours = walk._maximal_prefix_lookup(prefix, engine.request("asks"), None, None, 0)
        by_vllm: Any = OffloadingConnectorScheduler._maximal_prefix_lookup
        assert ours == by_vllm(walk, prefix, engine.request("asks too"), None, None, 0)
    finally:
        engine.manager.shutdown()


def test_a_vllm_that_describes_what_hits_hears_of_each_chunk(vllm: Vllm) -> None:
    vllm.store("first", [b"a"])
    walk: Any = Walk(vllm.manager, describes=True)
    assert walk._maximal_prefix_lookup([b"a", b"x"], vllm.request("asks"), None, None, 0) == 1
    assert walk.hits == [b"a"]


def step(vllm: Vllm, n_tokens: dict[str, int], *, guessed: Sequence[str] = ()) -> None:
    """A step of requests that have computed 1,000 tokens so far; in `guessed`, those that check speculative tokens."""
    output = SchedulerOutput.make_empty()
    cached = output.scheduled_cached_reqs
    cached.req_ids, cached.num_computed_tokens = list(n_tokens), [1000] * len(n_tokens)
    output.num_scheduled_tokens = n_tokens
    output.scheduled_spec_decode_tokens = {name: [0] * (n_tokens[name] - 1) for name in guessed}
    vllm.manager.step_scheduled(output)
    vllm.manager.step_done()


def test_how_fast_prompts_are_computed_is_measured_at_steps_that_compute_prompts(vllm: Vllm) -> None:
    rate = vllm.kvtier.prefill_rate
    decoding = {f"d{n}": 4 for n in range(100)}
    step(vllm, decoding, guessed=list(decoding))
    step(vllm, dict.fromkeys(decoding, 1))
    assert rate.cost is None
    step(vllm, decoding | {"p": 512}, guessed=list(decoding))
    assert rate.cost is not None
    assert rate.cost.context == 1000 + 512 // 2


def test_the_pool_is_as_large_as_all_workers_have_made_ready():
    kvtier = build(
        config.parse({"disk": "off"}),
        Geometry(CHUNK_BYTES, 16, "bfloat16"),
        memoryview(bytearray(8 * CHUNK_BYTES)),
        Namespace({}),
        report=lambda _: None,
        emit=lambda _: None,
        n_ready_slots=2,
    )
    manager = KVTierManager(kvtier, 16, n_workers=2)
    assert kvtier.cache.host.n_slots == 2
    manager.pool_grew({0: 8})
    assert kvtier.cache.host.n_slots == 2
    manager.pool_grew({1: 5})
    assert kvtier.cache.host.n_slots == 5
    manager.pool_grew({1: 8})
    assert kvtier.cache.host.n_slots == 8
    kvtier.stop()
