"""The helper process dies, hangs or cannot start: requests go on without it, the tier comes back. Real processes."""

import contextlib
import mmap
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kvtier.depot import SharedPool
from kvtier.helper import depot as depot_module
from kvtier.helper.depot import HelperDepot
from kvtier.helper.life import Life
from kvtier.keys import Namespace
from kvtier.residency import Promotion
from kvtier.store.directory import LOCK
from kvtier.store.listing import records_of
from kvtier.store.lmdb import LmdbStore
from kvtier.store.manifest import MANIFEST
from kvtier.store.private import DirectoryLock
from kvtier.transfer.mover import PROMOTE_NICENESS, SPILL_NICENESS
from kvtier.types import Lookup, Source
from tests.rigs.built import BuiltEngine, until

CHUNK_BYTES = 16 << 10
N_SLOTS = 16


class Engine(BuiltEngine):
    """One start of an engine whose pool can be shared."""

    def __init__(
        self,
        folder: Path,
        *,
        disk: dict[str, object] | None = None,
        keys: dict[str, object] | None = None,
        model_on_processors: bool = True,  # a helper that runs when nothing else does may wait longer than a test
    ):
        settings = {"path": str(folder), "capacity": "32MiB", "write_behind_after": "0s", "load": "always"}
        self.fd = os.memfd_create("pool")
        os.ftruncate(self.fd, N_SLOTS * CHUNK_BYTES)
        super().__init__(
            {"disk": {**settings, **(disk or {})}, **(keys or {})},
            SharedPool(memoryview(mmap.mmap(self.fd, 0)), self.fd),
            CHUNK_BYTES,
            Namespace({"model": "m"}),
            model_on_processors=model_on_processors,
        )
        running.append(self)

    @property
    def depot(self) -> HelperDepot:
        return next(depot for depot in depots if depot._work is self.cache)

    @property
    def life(self) -> Life:
        return self.depot._the_life

    @property
    def is_back(self) -> bool:
        return self.cache.disk_readable and self.cache.disk_writable

    def settled(self) -> None:
        """Nothing is on its way, nothing is pinned, and the index is what the store holds."""
        until(lambda: self.is_back and not self.cache.n_dirty() and not self.cache._n_promoting)
        self.cache.check()
        assert not any(resident.pinned for resident in self.cache.host.residents())
        assert not self.depot._promotions
        assert not self.depot._spills

    def stop(self) -> None:
        super().stop()
        os.close(self.fd)


running: list[Engine] = []
depots: list[HelperDepot] = []


@pytest.fixture(autouse=True)
def stop_all(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    start = HelperDepot.start

    def noted(depot: HelperDepot, *arguments: Any) -> None:
        depots.append(depot)
        start(depot, *arguments)

    monkeypatch.setattr(HelperDepot, "start", noted)
    monkeypatch.setattr(depot_module, "FIRST_PAUSE_S", 0.02)
    yield
    while running:
        running.pop().stop()
    while depots:
        assert not alive(depots.pop()._the_life.pid)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


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


def test_an_engine_for_which_no_helper_can_be_started_serves_and_later_the_tier_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(tmp_path / "kv")
    with monkeypatch.context() as patch:
        patch.setattr("sys.executable", "/nonexistent/python")
        engine = Engine(tmp_path / "kv")
        until(lambda: sum("stays off" in line for line in engine.reports) >= 2)
        assert engine.request(range(100, 112)) == []
    assert engine.cache.stats.tier_off == 1
    assert any("its helper process cannot be started" in line for line in engine.reports)
    engine.settled()
    assert engine.request(range(12)) == [Source.DISK] * 12


@pytest.fixture
def killed_at_once(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[int], None]], None]:
    """Have the next helper killed, from another thread, when what is given has returned for its pid."""

    def arm(wait: Callable[[int], None]) -> None:
        begin = Life.__init__

        def watched(life: Life, *arguments: Any, **named: Any) -> None:
            monkeypatch.setattr(Life, "__init__", begin)
            begin(life, *arguments, **named)

            def kill() -> None:
                wait(life.pid)
                os.kill(life.pid, signal.SIGKILL)

            threading.Thread(target=kill).start()

        monkeypatch.setattr(Life, "__init__", watched)

    return arm


def test_a_helper_killed_before_it_does_anything_is_followed_by_another(
    tmp_path: Path, killed_at_once: Callable[[Callable[[int], None]], None]
) -> None:
    filled(tmp_path / "kv")
    killed_at_once(lambda _: None)
    has_its_tier_in_the_end(Engine(tmp_path / "kv"))


def test_a_helper_killed_while_it_opens_the_store_is_followed_by_another(
    tmp_path: Path, killed_at_once: Callable[[Callable[[int], None]], None]
) -> None:
    """Scenario: it waits for the directory, which another process is laying out, and gets no further."""
    filled(tmp_path / "kv")
    other = DirectoryLock(tmp_path / "kv" / LOCK)
    assert other.acquire()

    killed_at_once(lambda pid: until(lambda: has_open(pid, LOCK)))
    try:
        engine = Engine(tmp_path / "kv")
        assert engine.request(range(200, 212)) == []
    finally:
        other.release()
    has_its_tier_in_the_end(engine)


def test_an_engine_does_not_wait_long_for_a_store_that_takes_long_to_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scenario: another process lays the directory out for longer than a start may take."""
    filled(tmp_path / "kv")
    monkeypatch.setattr(depot_module, "OPEN_WAIT_S", 0.2)
    other = DirectoryLock(tmp_path / "kv" / LOCK)
    assert other.acquire()
    try:
        engine = Engine(tmp_path / "kv")
        assert engine.request(range(200, 212)) == []
        until(lambda: any("takes longer than" in line for line in engine.reports))
    finally:
        other.release()
    engine.settled()
    assert engine.request(range(12)) == [Source.DISK] * 12


@pytest.mark.parametrize(("name", "nth"), [("open", 1), ("scan", 1), ("scan", 2), ("start", 1)])
def test_a_helper_killed_at_any_call_of_the_start_is_followed_by_another(
    tmp_path: Path, name: str, nth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scenario: the store is to be opened, its index was read in no part or in one, the threads are to start."""
    filled(tmp_path / "kv")
    call = Life.call
    seen: list[str] = []

    def counted(life: Life, called: str, *arguments: Any, **named: Any) -> Any:
        seen.append(called)
        if called == name and seen.count(name) == nth:
            os.kill(life.pid, signal.SIGKILL)
            life.wait()
        return call(life, called, *arguments, **named)

    monkeypatch.setattr(Life, "call", counted)
    has_its_tier_in_the_end(Engine(tmp_path / "kv"))
    assert seen.count(name) > nth


def test_what_a_newer_build_laid_out_is_left_alone_when_the_helper_dies_over_it(
    tmp_path: Path, killed_at_once: Callable[[Callable[[int], None]], None]
) -> None:
    (tmp_path / "kv").mkdir(mode=0o700)
    (tmp_path / "kv" / MANIFEST).write_text('{"format": 99}')
    killed_at_once(lambda _: None)
    engine = Engine(tmp_path / "kv")
    assert engine.cache.disk is None
    assert "directory format 99" in engine.reports[-1]
    assert [file.name for file in (tmp_path / "kv").iterdir()] == [MANIFEST]


def has_open(pid: int, name: str) -> bool:
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # closed by now
            if descriptor.readlink().name == name:
                return True
    return False


def filled(folder: Path) -> None:
    """An engine was here and left chunks 0 to 39."""
    engine = Engine(folder)
    engine.spilled(range(40))
    engine.stop()
    running.remove(engine)
    depots.clear()


def has_its_tier_in_the_end(engine: Engine) -> None:
    assert engine.cache.disk is not None
    until(lambda: engine.cache.stats.helper_restarts)
    engine.settled()
    assert (engine.cache.stats.helper_restarts, engine.cache.stats.tier_off) == (1, 1)
    assert [f"killed by signal {signal.SIGKILL.value}" in line for line in engine.reports].count(True) == 1
    assert engine.request(range(12)) == [Source.DISK] * 12
    engine.spilled(range(100, 140))
    assert engine.request(range(100, 112)) == [Source.DISK] * 12
    engine.settled()


def test_a_store_that_cannot_be_opened_is_said_as_plainly_as_without_a_helper(tmp_path: Path) -> None:
    (tmp_path / "kv").write_text("not a directory")
    engine = Engine(tmp_path / "kv")
    assert engine.cache.disk is None
    assert "disk tier is off" in engine.reports[-1]


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
