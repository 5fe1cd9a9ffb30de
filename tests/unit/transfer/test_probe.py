"""LoadProbe: what it reads, when it stops, and that nothing that goes wrong with it matters."""

import threading
import time
from collections.abc import Callable

import pytest

from kvtier.codec.frame import frame_bound, seal_into
from kvtier.codec.raw import Raw
from kvtier.errors import StoreError
from kvtier.residency import Frame
from kvtier.store.memory import MemoryStore
from kvtier.testing.faults import Fault, FaultyStore, flipped
from kvtier.transfer.probe import PROBE_S, LoadProbe
from kvtier.types import ChunkKey

CHUNK_BYTES = 4096
FRAME_BYTES = frame_bound(CHUNK_BYTES, Raw())


class Rig:
    """A store of `n` frames, and a clock that reads move on."""

    def __init__(self, n: int, *, read_s: float = 0.001) -> None:
        self.now = 0.0
        self.told: list[float] = []
        inner = MemoryStore(1, FRAME_BYTES * n)
        self.frames = []
        for i in range(n):
            key = ChunkKey(b"family-1" + bytes(16) + b"%d" % i)
            out = memoryview(bytearray(FRAME_BYTES))
            n_bytes = seal_into(memoryview(bytes(CHUNK_BYTES)), out, key=key, codec=Raw())
            inner.write(0, [(key, out[:n_bytes])], [])
            self.frames.append(Frame(key, 0, n_bytes, ready=True))
        self.store = FaultyStore(inner, Fault(method="read", slow_s=read_s), sleep=self.sleep)

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def probe(self, *, n_threads: int = 1, n_processors: int = 8, wait: bool = True) -> LoadProbe:
        probe = LoadProbe(
            self.store,
            self.frames,
            CHUNK_BYTES,
            n_threads=n_threads,
            n_processors=n_processors,
            tell=self.told.append,
            clock=lambda: self.now,
        )
        probe.start()
        if wait:
            for thread in probe._threads:
                thread.join(20)
        return probe


def until(condition: Callable[[], object]) -> None:
    give_up_s = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < give_up_s
        time.sleep(0.001)


def test_it_tells_the_bytes_that_came_up_per_second():
    rig = Rig(8)
    rig.probe()
    assert rig.told == [pytest.approx(CHUNK_BYTES / 0.001)]


def test_threads_share_the_sample_and_their_speeds_add_up():
    rig = Rig(8)
    together = threading.Barrier(4, action=lambda: rig.sleep(0.001))  # all four read at the same time
    rig.store._sleep = lambda _: together.wait(20) and None
    rig.probe(n_threads=4)
    assert rig.store.calls["read"] == 8
    assert rig.told == [pytest.approx(4 * CHUNK_BYTES / 0.001)]


def test_where_decoding_is_the_limit_more_reads_add_nothing(monkeypatch):
    rig = Rig(8, read_s=0.0)
    together = threading.Barrier(4, action=lambda: rig.sleep(0.001))  # all four decode at the same time
    monkeypatch.setattr("kvtier.transfer.probe.open_into", lambda *_, **__: together.wait(20))
    rig.probe(n_threads=4, n_processors=1)
    assert rig.told == [pytest.approx(CHUNK_BYTES / 0.001)]


def test_reads_that_an_engine_slows_down_while_it_starts_do_not_count():
    rig = Rig(8)
    rig.store.heal()
    rig.store.inject(Fault(method="read", times=5, slow_s=0.05))
    rig.store.inject(Fault(method="read", slow_s=0.001))
    rig.probe()
    assert rig.told == [pytest.approx(CHUNK_BYTES / 0.001)]


def test_a_slow_store_is_read_for_no_longer_than_the_bound():
    rig = Rig(8, read_s=PROBE_S * 0.6)
    rig.probe()
    assert rig.store.calls["read"] == 2
    assert rig.told == [pytest.approx(CHUNK_BYTES / (PROBE_S * 0.6))]


def test_an_empty_store_is_not_probed():
    rig = Rig(1)
    rig.frames = []
    assert rig.probe().stop()
    assert rig.told == []


@pytest.mark.parametrize(
    "trouble",
    [
        Fault(method="read", error=StoreError("I/O")),
        Fault(method="read", error=OSError(5, "I/O")),
        Fault(method="read", change=flipped(8 * 70)),
    ],
)
def test_what_cannot_be_read_is_nobodys_trouble_yet(trouble):
    rig = Rig(4)
    rig.store.heal()
    rig.store.inject(trouble)
    rig.probe()
    assert rig.store.calls["read"] == 4
    assert rig.told == []


def test_stop_ends_it_after_the_frame_it_is_at():
    rig = Rig(100)
    reading, go_on = threading.Event(), threading.Event()

    def hang(_: float) -> None:
        reading.set()
        go_on.wait(20)

    rig.store._sleep = hang
    probe = rig.probe(wait=False)
    assert reading.wait(20)
    stopper = threading.Thread(target=probe.stop)
    stopper.start()
    until(lambda: probe._stopping)
    go_on.set()
    stopper.join(20)
    assert rig.store.calls["read"] == 1
    assert rig.told == []


def test_a_read_that_never_ends_is_told_to_whoever_would_close_the_store(monkeypatch):
    monkeypatch.setattr("kvtier.transfer.probe.STOP_TIMEOUT_S", 0.01)
    rig = Rig(2)
    go_on = threading.Event()
    rig.store._sleep = lambda _: go_on.wait(20) and None
    probe = rig.probe(wait=False)
    assert not probe.stop()
    go_on.set()
    until(probe.stop)
