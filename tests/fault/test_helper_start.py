"""A helper process that cannot be started, dies, or takes long, before the engine serves."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvtier.helper import depot as depot_module
from kvtier.helper.life import Life
from kvtier.store.directory import LOCK
from kvtier.store.manifest import MANIFEST
from kvtier.store.private import DirectoryLock
from kvtier.types import Source
from tests.rigs.built import until
from tests.rigs.helped import Engine, depots, running

pytestmark = pytest.mark.usefixtures("stop_all")


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


def test_an_engine_does_not_wait_long_for_an_index_that_takes_long_to_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(tmp_path / "kv")
    call, stopped = Life.call, []

    def slow(life: Life, called: str, *arguments: Any, **named: Any) -> Any:
        if called == "scan" and not stopped:
            stopped.append(life.pid)
            os.kill(life.pid, signal.SIGSTOP)
            return call(life, called, *arguments, timeout_s=min(0.2, named["timeout_s"]))
        return call(life, called, *arguments, **named)

    monkeypatch.setattr(Life, "call", slow)
    engine = Engine(tmp_path / "kv")
    assert stopped
    until(lambda: engine.cache.stats.helper_restarts)
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
