"""The helper process dies, hangs or cannot start: requests go on without it, the tier comes back. Real processes."""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kvtier.helper import depot as depot_module
from kvtier.helper.depot import HelperDepot
from kvtier.helper.life import Life
from kvtier.residency import Promotion
from kvtier.store.listing import records_of
from kvtier.store.lmdb import LmdbStore
from kvtier.transfer.mover import PROMOTE_NICENESS, SPILL_NICENESS
from kvtier.types import Lookup, Source
from tests.rigs.built import until
from tests.rigs.helped import Engine, alive, running

pytestmark = pytest.mark.usefixtures("stop_all")


def test_chunks_go_to_disk_and_come_back_through_the_helper_and_after_a_restart(tmp_path: Path) -> None:
    engine = Engine(tmp_path / "kv")
    engine.spilled(range(40))
    assert engine.request(range(12)) == [Source.DISK] * 12
    engine.settled()
    engine.stop()
    running.remove(engine)
    assert Engine(tmp_path / "kv").request(range(12)) == [Source.DISK] * 12


def test_the_engines_process_opens_no_store_of_its_own(tmp_path: Path) -> None:
    Engine(tmp_path / "kv").spilled(range(8))
    assert "shard-" not in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGBUS, signal.SIGSEGV, signal.SIGTERM])
def test_a_helper_that_dies_is_replaced_and_what_was_on_disk_is_found_again(
    tmp_path: Path, sign: signal.Signals
) -> None:
    engine = Engine(tmp_path / "kv")
    engine.spilled(range(40))
    os.kill(engine.life.pid, sign)
    until(lambda: engine.cache.stats.helper_restarts)
    engine.settled()
    assert engine.request(range(12)) == [Source.DISK] * 12
    assert [f"killed by signal {sign.value}" in line for line in engine.reports].count(True) == 1
    assert engine.cache.stats.tier_off == 1


def test_a_page_of_a_tree_that_cannot_be_read_ends_the_helper_and_not_the_engine(tmp_path: Path) -> None:
    """Scenario: the map of a shard loses its pages, as when the device cannot give them: SIGBUS for who looks."""
    engine = Engine(tmp_path / "kv")
    engine.spilled(range(40))
    shard = next((tmp_path / "kv").glob("shard-*.lmdb"))
    os.truncate(shard, 0)
    until(lambda: engine.cache.stats.helper_restarts)
    engine.settled()
    assert any(f"killed by signal {signal.SIGBUS.value}" in line for line in engine.reports)
    assert any("set aside" in line for line in engine.reports)
    engine.spilled(range(100, 140))
    assert engine.request(range(100, 112)) == [Source.DISK] * 12


@pytest.mark.parametrize("n", range(1, 24))
def test_a_helper_killed_at_any_message_costs_misses_and_nothing_else(
    tmp_path: Path, n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = HelperDepot._take
    seen: list[str] | None = None

    def counted(depot: HelperDepot, life: Life, message: list[Any]) -> None:
        if seen is not None:
            seen.append(message[0])
            if len(seen) == n:
                os.kill(life.pid, signal.SIGKILL)
        take(depot, life, message)

    monkeypatch.setattr(HelperDepot, "_take", counted)
    engine = Engine(tmp_path / "kv")
    engine.spilled(range(32))
    seen = []
    for first in range(0, 400, 12):
        engine.request(range(first % 48, first % 48 + 12))
        if engine.cache.stats.helper_restarts:
            break
    until(lambda: engine.cache.stats.helper_restarts, f"only {len(seen)} messages")
    engine.settled()
    engine.spilled(range(100, 140))
    assert engine.request(range(100, 112)) == [Source.DISK] * 12
    engine.settled()


def test_promotions_under_way_when_the_helper_dies_end_as_misses_and_give_their_slots_back(tmp_path: Path) -> None:
    engine = Engine(tmp_path / "kv")
    engine.spilled(range(40))
    os.kill(engine.life.pid, signal.SIGSTOP)
    chain = engine.cache.open_chain()
    keys = engine.keys(range(12))
    assert engine.cache.begin_walk(chain)
    assert [engine.cache.lookup(chain, key) for key in keys] == [Lookup.PENDING] * 12
    os.kill(engine.life.pid, signal.SIGKILL)
    until(lambda: not chain.pending)
    assert [engine.cache.lookup(chain, key) for key in keys] == [Lookup.MISS] * 12
    engine.cache.close_chain(chain)
    engine.settled()


def test_chunks_that_were_being_spilled_are_written_by_the_next_helper(tmp_path: Path) -> None:
    engine = Engine(tmp_path / "kv")
    os.kill(engine.life.pid, signal.SIGSTOP)
    engine.request(range(12))
    os.kill(engine.life.pid, signal.SIGKILL)
    engine.settled()
    engine.spilled(range(100, 132))
    assert engine.request(range(12)) == [Source.DISK] * 12


def test_a_helper_that_does_not_answer_is_killed_and_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(depot_module, "PING_S", 0.05)
    engine = Engine(tmp_path / "kv")
    os.kill(engine.life.pid, signal.SIGSTOP)
    until(lambda: engine.cache.stats.helper_restarts)
    engine.settled()
    assert any("does not answer" in line for line in engine.reports)


def test_stopping_beside_a_helper_that_does_not_answer_is_over_in_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(depot_module, "STOP_TIMEOUT_S", 0.3)
    engine = Engine(tmp_path / "kv")
    pid = engine.life.pid
    os.kill(pid, signal.SIGSTOP)
    began_s = time.monotonic()
    engine.stop()
    running.remove(engine)
    assert time.monotonic() - began_s < 5.0
    assert not alive(pid)


@pytest.fixture
def without_helper(monkeypatch: pytest.MonkeyPatch) -> Callable[[Engine], contextlib.AbstractContextManager[None]]:
    """An engine loses its helper, and no other can be started while the context lasts."""

    @contextlib.contextmanager
    def deprived(engine: Engine) -> Iterator[None]:
        with monkeypatch.context() as patch:
            patch.setattr("sys.executable", "/nonexistent/python")
            os.kill(engine.life.pid, signal.SIGKILL)
            until(lambda: sum("stays off" in line for line in engine.reports) >= 2)
            yield

    return deprived


def test_while_no_helper_can_be_had_requests_go_on_and_later_the_tier_comes_back(
    tmp_path: Path, without_helper: Callable[[Engine], contextlib.AbstractContextManager[None]]
) -> None:
    engine = Engine(tmp_path / "kv")
    engine.spilled(range(40))
    with without_helper(engine):
        assert engine.request(range(12)) == []
    engine.settled()
    assert engine.request(range(16, 28)) == [Source.DISK] * 12


def test_frames_that_left_the_store_while_no_helper_ran_leave_the_index(
    tmp_path: Path, without_helper: Callable[[Engine], contextlib.AbstractContextManager[None]]
) -> None:
    engine = Engine(tmp_path / "kv")
    engine.spilled(range(40))
    with without_helper(engine):
        _purge(tmp_path / "kv")
    engine.settled()
    until(lambda: not len(engine.cache.disk or ()))


def _purge(folder: Path) -> None:
    store = LmdbStore.attach(folder)
    for record in list(records_of(store.scan())):
        store.write(record.shard, [], [record.key])
    store.close()


def test_an_engine_killed_outright_takes_its_helper_with_it(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            engine = Engine(tmp_path / "kv")
            engine.spilled(range(8))
            os.write(writer, b"%d\n" % engine.life.pid)
            time.sleep(60)
        finally:
            os._exit(1)
    os.close(writer)
    with os.fdopen(reader) as said:
        helper = int(said.readline())
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    until(lambda: not alive(helper))
    assert Engine(tmp_path / "kv").request(range(8)) == [Source.DISK] * 8


def test_ctrl_c_reaches_the_engine_and_not_its_helper(tmp_path: Path) -> None:
    engine = Engine(tmp_path / "kv")
    assert os.getpgid(engine.life.pid) != os.getpgid(0)


@pytest.mark.parametrize(("model_on_processors", "policy"), [(False, os.SCHED_IDLE), (True, os.SCHED_OTHER)])
def test_the_helper_takes_what_processors_have_left_unless_the_model_leaves_none(
    tmp_path: Path, policy: int, *, model_on_processors: bool
) -> None:
    engine = Engine(tmp_path / "kv", model_on_processors=model_on_processors)
    threads = [int(thread.name) for thread in Path(f"/proc/{engine.life.pid}/task").iterdir()]
    assert len(threads) > 4
    assert {os.sched_getscheduler(thread) for thread in threads} == {policy}
    assert os.getsid(engine.life.pid) == os.getsid(0), "in another session it would compete as an equal"


def test_beside_a_model_on_processors_spills_step_back_further_than_promotions(tmp_path: Path) -> None:
    engine = Engine(tmp_path / "kv", model_on_processors=True)
    threads = [int(thread.name) for thread in Path(f"/proc/{engine.life.pid}/task").iterdir()]
    own = os.getpriority(os.PRIO_PROCESS, 0)
    assert {os.getpriority(os.PRIO_PROCESS, thread) for thread in threads} == {own, PROMOTE_NICENESS, SPILL_NICENESS}


def test_a_key_is_neither_in_the_arguments_nor_in_the_environment_of_the_helper(tmp_path: Path) -> None:
    secret = os.urandom(32)
    (tmp_path / "key").write_bytes(secret)
    (tmp_path / "key").chmod(0o600)
    engine = Engine(tmp_path / "kv", keys={"integrity": {"hmac_key_file": str(tmp_path / "key")}})
    (tmp_path / "key").unlink()
    engine.spilled(range(40))
    process = Path(f"/proc/{engine.life.pid}")
    for place in ("cmdline", "environ"):
        seen = (process / place).read_bytes()
        assert secret not in seen
        assert secret.hex().encode() not in seen
    os.kill(engine.life.pid, signal.SIGKILL)
    until(lambda: engine.cache.stats.helper_restarts)
    engine.settled()
    assert engine.request(range(8)) == [Source.DISK] * 8, "the next one has the key too"


def test_nothing_is_sent_to_a_slot_that_was_given_back_meanwhile(tmp_path: Path) -> None:
    engine = Engine(tmp_path / "kv")
    engine.spilled(range(20))
    depot = engine.depot
    resident = next(iter(engine.cache.host.residents()))
    frame = next((engine.cache.disk or pytest.fail("no disk")).frames())
    sent: list[Any] = []
    depot._post_to = type("Spy", (), {"send": lambda _, messages: bool(sent.append(messages)) or True})()  # type: ignore[assignment]
    depot._promotions[999] = Promotion(resident, frame)
    del depot._promotions[999]  # as when a dead helper's were ended
    depot._post_all([("promote", 999, 0, frame.key, frame.shard)])
    assert not any(messages for messages in sent)
    depot._post_to = engine.life
