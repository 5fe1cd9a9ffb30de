"""Backend: SGLang's calls over real host memory and a real store, without SGLang."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from kvtier.engines.sglang.namespace import rank_of
from kvtier.errors import ConfigError
from kvtier.pages import Pages
from kvtier.store.lmdb import LmdbStore
from kvtier.types import Miss, Source
from tests.rigs.sglang import PAGE, HostPool, MHATokenToKVPoolHost, Rank, WholePagesOnly, hashes, indices, transfer

Start = Callable[..., Rank]
NAMES = [f"page {i}" for i in range(8)]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Each start ends the one before, as a restart does."""
    running: list[Rank] = []

    def begin(**options: object) -> Rank:
        while running:
            running.pop().backend.close()
        running.append(Rank(tmp_path / "disk", monkeypatch, **options))  # type: ignore[arg-type]
        return running[-1]

    yield begin
    while running:
        running.pop().backend.close()


def stored(start: Start, **options: object) -> Rank:
    rank = start(**options)
    assert rank.store(NAMES) == [True] * len(NAMES)
    rank.settle()
    return rank


@pytest.mark.parametrize("layout", ["page_first", "layer_first"])
def test_pages_survive_a_restart_in_every_layout(start: Start, layout: str) -> None:
    stored(start, pools={"kv": HostPool(layout=layout)})
    rank = start(pools={"kv": HostPool(layout=layout)})
    assert rank.backend.batch_exists(hashes([*NAMES, "another"])) == len(NAMES)
    assert rank.load(NAMES) == NAMES


def test_a_pool_that_gives_whole_pages_only_works_too(start: Start) -> None:
    stored(start, pools={"kv": WholePagesOnly()})
    assert start(pools={"kv": WholePagesOnly()}).load(NAMES) == NAMES


def test_v0_fills_flat_tensors_with_what_v1_stored_and_the_other_way_round(start: Start) -> None:
    rank = stored(start)
    like = HostPool()
    like.fill(0, NAMES[1])
    flat = torch.zeros_like(like.get_data_page(0))
    assert rank.backend.get(hashes(NAMES)[1], flat) is flat
    assert torch.equal(flat, like.get_data_page(0))
    like.fill(0, "v0")
    assert rank.backend.set(hashes(["v0"])[0], like.get_data_page(0))
    assert rank.load(["v0"]) == ["v0"]
    assert rank.backend.batch_get(hashes(["nothing"]), [flat]) == [None]


def test_a_tensor_of_another_length_is_refused(start: Start) -> None:
    rank = stored(start)
    assert rank.backend.get(hashes(NAMES)[0], torch.zeros(7)) is None
    assert not rank.backend.set(hashes(["short"])[0], torch.zeros(7))


def test_more_keys_than_pages_are_refused(start: Start) -> None:
    rank = stored(start)
    assert rank.backend.batch_get_v1(hashes(NAMES), indices(3)) == [False] * len(NAMES)
    assert rank.backend.batch_set_v1(hashes(["x", "y"]), indices(3)) == [False] * 2


@pytest.mark.parametrize(
    "other",
    [
        {"pools": {"kv": HostPool(layout="layer_first")}},
        {"settings": {"quantization": "fp8"}},
        {"settings": {"kv_cache_dtype": "fp8_e5m2"}},
        {"settings": {"model_path": "another"}},
        {"settings": {"revision": "another"}},
        {"version": "0.5.21"},
        {"model_name": "served under another name"},
        {"attn_cp_size": 1, "dcp_size": 2},
    ],
    ids=lambda change: "-".join(f"{key}" for key in change),
)
def test_what_shapes_the_bytes_separates_pages(start: Start, other: dict[str, object]) -> None:
    stored(start)
    rank = start(**other)
    assert rank.backend.batch_exists(hashes(NAMES)) == 0
    assert rank.load(NAMES) == [None] * len(NAMES)
    assert stats(rank).miss_tokens[Miss.FOREIGN] == len(NAMES) * PAGE * 2
    assert start().load(NAMES) == NAMES


@pytest.mark.parametrize("mla", [False, True], ids=["mha", "mla"])
@pytest.mark.parametrize("what", ["tp", "pp", "attn_cp"])
def test_a_rank_finds_what_another_stored_only_where_both_hold_the_same(start: Start, what: str, mla: bool) -> None:
    first, second = ({f"{what}_rank": rank, f"{what}_size": 2, "is_mla_model": mla} for rank in (0, 1))
    stored(start, **first)
    assert start(**second).load(NAMES) == (NAMES if mla and what == "tp" else [None] * len(NAMES))
    assert start(**{**first, f"{what}_size": 4}).load(NAMES) == [None] * len(NAMES)
    assert start(**first).load(NAMES) == NAMES


def stats(rank: Rank):  # type: ignore[no-untyped-def]
    snapshot = rank.backend.snapshot()
    return snapshot[0]


def sidecars() -> dict[str, HostPool]:
    return {"kv": HostPool(), "swa": HostPool(layers=1), "mamba": HostPool(layers=7)}


def test_pools_of_other_sizes_go_through_v2_and_keep_apart(start: Start) -> None:
    rank = start(pools=sidecars())
    for name, pool in rank.pools.items():
        for i, page in enumerate(NAMES):
            pool.fill(i * PAGE, f"{name} {page}")
    assert rank.backend.batch_set_v2([transfer(name, NAMES) for name in rank.pools]) == {
        name: [True] * len(NAMES) for name in rank.pools
    }
    rank.settle()
    rank = start(pools=sidecars())
    done = rank.backend.batch_get_v2([transfer(name, NAMES) for name in rank.pools])
    assert done == {name: [True] * len(NAMES) for name in rank.pools}
    for name in rank.pools:
        assert all(rank.holds(i, f"{name} {page}", name) for i, page in enumerate(NAMES))
    assert rank.backend.held_of(hashes([*NAMES, "x"]), "mamba") == [True] * len(NAMES) + [False]


def test_a_pool_that_was_never_registered_has_nothing(start: Start) -> None:
    rank = start()
    assert rank.backend.batch_get_v2([transfer("indexer", NAMES)]) == {"indexer": [False] * len(NAMES)}
    assert rank.backend.batch_set_v2([transfer("indexer", NAMES)]) == {"indexer": [False] * len(NAMES)}


def test_ranks_that_hold_the_same_kv_share_it_and_keep_their_own_mamba_state_and_draft(start: Start) -> None:
    storage = start(tp_rank=1, tp_size=1, is_mla_model=True).backend._storage
    assert "tp" not in rank_of(storage, replicated=True)
    assert rank_of(storage, replicated=False)["tp"] == 1
    pools = sidecars() | {"draft": MHATokenToKVPoolHost()}
    first, second = (start(pools=pools, tp_rank=rank, tp_size=1, is_mla_model=True) for rank in (0, 1))
    kinds = [{name: pool.kind for name, pool in rank.backend._pools.items()} for rank in (first, second)]
    assert kinds[0]["kv"] == kinds[1]["kv"]
    assert kinds[0]["mamba"] != kinds[1]["mamba"]
    assert kinds[0]["draft"] != kinds[1]["draft"]


def test_a_tenant_cannot_be_told_apart_before_0_5_20_so_that_is_refused(start: Start) -> None:
    with pytest.raises(ConfigError, match=r"0\.5\.19 leaves LoRA adapter and cache_salt out.*0\.5\.20 or later"):
        start(version="0.5.19")


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        ({"confg": "x"}, "unknown key `confg`; did you mean `config`?"),
        ({"path": "/nvme"}, "unknown key `path`; kvtier reads `config`"),
        ({"config": "/nowhere.yaml"}, "/nowhere.yaml: cannot read it"),
        ({"kvtier": {"disk": {"capacty": "1GiB"}}}, "did you mean `disk.capacity`?"),
        ({"kvtier": {}, "config": "a.yaml"}, "exclude each other"),
    ],
)
def test_a_bad_configuration_is_refused_with_the_remedy(start: Start, extra: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says.replace("?", r"\?")):
        start(extra=extra)


def test_a_yaml_file_of_kvtier_is_named_by_config(start: Start, tmp_path: Path) -> None:
    yaml = tmp_path / "kvtier.yaml"
    yaml.write_text("host: {capacity: 1MiB}\ndisk: {path: d, capacity: 64MiB, load: never}\n")
    rank = start(extra={"config": str(yaml)})
    rank.store(NAMES)
    assert (tmp_path / "d" / "kvtier-store.json").exists()


def test_replaced_weights_find_nothing_that_was_stored_before(start: Start) -> None:
    rank = stored(start)
    rank.backend.weights_changed()
    assert rank.backend.batch_exists(hashes(NAMES)) == 0
    rank.store(["new weights"])
    assert rank.load(["new weights"]) == ["new weights"]
    rank.settle()
    assert start().backend.batch_exists(hashes(["new weights"])) == 0, "the next start has the weights on disk"


def test_while_a_copy_cannot_be_stopped_replaced_weights_find_nothing_either(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    rank = stored(start)
    monkeypatch.setattr("kvtier.engines.sglang.backend.QUIET_TIMEOUT_S", 0.02)
    opened = rank.backend._open
    assert opened is not None
    with opened.pages._putting:
        rank.backend.weights_changed()
        assert rank.backend.batch_exists(hashes(NAMES)) == 0
        assert rank.load(NAMES) == [None] * len(NAMES)
    assert rank.backend.batch_exists(hashes(NAMES)) == 0


def test_clear_forgets_this_server_and_storing_goes_on(start: Start) -> None:
    rank = stored(start)
    rank.backend.clear()
    assert rank.backend.batch_exists(hashes(NAMES)) == 0
    rank.store(["later"])
    rank.settle()
    assert start().load(["later"]) == ["later"]


def test_no_method_raises_into_sglang(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    rank = stored(start)

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("a bug")

    for method in ("get", "put", "n_held", "quiet"):
        monkeypatch.setattr(Pages, method, fail)
    backend, keys = rank.backend, hashes(NAMES)
    assert backend.batch_exists(keys) == 0
    assert backend.exists(keys[0]) is False
    assert backend.batch_get_v1(keys, indices(8)) == [False] * 8
    assert backend.batch_set_v1(keys, indices(8)) == [False] * 8
    assert backend.batch_get_v2([transfer("kv", NAMES)]) == {"kv": [False] * 8}
    assert backend.batch_set_v2([transfer("kv", NAMES)]) == {"kv": [False] * 8}
    page = rank.pools["kv"].get_data_page(0)
    assert backend.get(keys[0], page) is None
    assert backend.batch_get(keys, [page] * 8) == [None] * 8
    assert backend.set(keys[0], page) is False
    backend.clear()
    backend.weights_changed()
    assert stats(rank).engine_errors >= 10


def test_asked_tokens_are_hit_or_missed_each_once(start: Start) -> None:
    stored(start)
    rank = start()
    keys = hashes([*NAMES, "new 1", "new 2"])
    n = rank.backend.batch_exists(keys)
    rank.backend.batch_get_v1(keys[:n], indices(n))
    counted = stats(rank)
    assert counted.requests == 1
    assert counted.asked_tokens == len(keys) * PAGE
    assert counted.hit_tokens[Source.DISK] == len(NAMES) * PAGE
    assert counted.miss_tokens[Miss.NEW] == 2 * PAGE


def test_a_backend_without_a_usable_disk_starts_and_has_nothing(start: Start, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    rank = start(disk={"path": str(tmp_path / "file")})
    rank.store(NAMES)
    assert rank.backend.batch_exists(hashes(["unknown"])) == 0
    rank.backend.close()
    rank.backend.close()


def test_a_pool_that_cannot_be_understood_leaves_the_server_without_a_backend(start: Start) -> None:
    class Strange(HostPool):
        def get_page_buffer_meta(self, indices: torch.Tensor) -> tuple[list[int], list[int]]:
            raise RuntimeError("another SGLang")

    rank = start(pools={"kv": Strange()})
    assert rank.backend.batch_exists(hashes(NAMES)) == 0
    assert rank.load(NAMES) == [None] * len(NAMES)


def test_pages_of_few_tokens_are_warned_of(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    start()
    assert "every 4 tokens become a frame of their own on disk; --page-size 64" in caplog.text


def test_calls_to_a_disk_that_hangs_end_in_time(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    stored(start)
    free = threading.Event()
    read = LmdbStore.read

    def hang(self: LmdbStore, *args: object) -> object:
        free.wait()
        return read(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(LmdbStore, "read", hang)
    monkeypatch.setattr("kvtier.engines.sglang.backend.GET_TIMEOUT_S", 0.05)
    rank = start()
    try:
        assert rank.load(NAMES) == [None] * len(NAMES)
        assert rank.backend.batch_exists(hashes(NAMES)) == 0
    finally:
        free.set()
