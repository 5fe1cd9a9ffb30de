"""Pages: an engine's own memory, sealed from there, to a real store and back."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kvtier.codec.frame import open_into, seal_into
from kvtier.codec.pieces import Pieces
from kvtier.errors import StoreError
from kvtier.store.lmdb import LmdbStore
from kvtier.types import Miss, Source
from tests.rigs.pages import PAGE_BYTES, SMALL_BYTES, SMALL_KIND, PagesRig, page

Start = Callable[..., PagesRig]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    running: list[PagesRig] = []

    def begin(folder: Path | None = tmp_path / "disk", **options: object) -> PagesRig:
        running.append(PagesRig(folder, **options))  # type: ignore[arg-type]
        return running[-1]

    yield begin
    for rig in running:
        rig.stop()


def names(n: int, prefix: str = "page") -> list[str]:
    return [f"{prefix} {i}" for i in range(n)]


def test_what_was_put_comes_back_bit_for_bit(start: Start) -> None:
    rig = start()
    assert rig.put(names(5)) == [True] * 5
    got, content = rig.get(names(5))
    assert got == [Source.HOST] * 5
    assert content == [page(name) for name in names(5)]


def test_a_restart_finds_every_page_on_disk(start: Start) -> None:
    first = start()
    first.put(names(40))
    first.settle()
    first.stop()
    second = start()
    assert second.pages.n_held(second.keys(names(41))) == 40
    got, content = second.get(names(40))
    assert got == [Source.DISK] * 40
    assert content == [page(name) for name in names(40)]


def test_a_call_may_move_many_times_more_than_the_buffer_holds(start: Start) -> None:
    rig = start(n_slots=4)
    assert rig.put(names(64)) == [True] * 64
    rig.settle()
    got, content = rig.get(names(64))
    assert all(isinstance(source, Source) for source in got)
    assert content == [page(name) for name in names(64)]


def test_the_memory_of_a_page_that_is_not_there_stays_as_it_was_and_what_follows_is_not_tried(start: Start) -> None:
    rig = start()
    rig.put(["a", "c"])
    got, content = rig.get(["a", "b", "c"])
    assert got == [Source.HOST, Miss.NEW, Miss.NEW]
    assert content == [page("a"), bytes(PAGE_BYTES), bytes(PAGE_BYTES)]


def test_a_page_that_is_here_is_not_written_again(start: Start) -> None:
    rig = start()
    rig.put(names(3))
    rig.settle()
    assert rig.put(names(4)) == [True] * 4
    rig.settle()
    assert rig.cache.stats.spilled_chunks == 4


def test_pages_of_another_kind_have_their_own_length_and_keys(start: Start) -> None:
    first = start()
    first.put(names(6))
    first.put(names(6), SMALL_KIND, SMALL_BYTES)
    first.settle()
    first.stop()
    second = start()
    got, content = second.get(names(6), SMALL_KIND, SMALL_BYTES)
    assert got == [Source.DISK] * 6
    assert content == [page(name, SMALL_BYTES) for name in names(6)]
    assert second.get(names(6))[1] == [page(name) for name in names(6)]


def test_a_damaged_frame_is_a_miss_and_the_next_put_heals_it(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    first = start()
    first.put(names(3))
    first.settle()
    first.stop()
    flip_one_byte_of_one_page(monkeypatch, "page 1")
    second = start()
    got, content = second.get(names(3))
    assert got[:2] == [Source.DISK, Miss.CORRUPT]
    assert content[1] == bytes(PAGE_BYTES)
    monkeypatch.undo()
    assert second.put(names(3)) == [True] * 3
    second.settle()
    assert second.get(names(3))[1] == [page(name) for name in names(3)]


def test_of_many_damaged_pages_all_are_found_by_one_call_and_healed_by_the_next_put(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = start()
    first.put(names(12))
    first.settle()
    first.stop()
    flip_one_byte_of_one_page(monkeypatch, "")
    second = start()
    assert second.get(names(12))[0] == [Miss.CORRUPT] * 12
    assert second.cache.stats.corrupt_frames == 12
    monkeypatch.undo()
    second.put(names(12))
    second.settle()
    assert second.get(names(12))[1] == [page(name) for name in names(12)]


def flip_one_byte_of_one_page(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    read = LmdbStore.read

    @contextmanager
    def damaged(self: LmdbStore, shard: int, key: bytes) -> Iterator[memoryview | None]:
        with read(self, shard, key) as frame:  # type: ignore[arg-type]
            if frame is None or not key.endswith(name.encode()):
                yield frame
            else:
                copy = bytearray(frame)
                copy[len(copy) // 2] ^= 1
                yield memoryview(copy)

    monkeypatch.setattr(LmdbStore, "read", damaged)


@pytest.fixture
def hang(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Until it is set, reads and writes of the store hang."""
    gate = threading.Event()
    read, write = LmdbStore.read, LmdbStore.write

    def slow_read(self: LmdbStore, *args: object) -> object:
        gate.wait()
        return read(self, *args)  # type: ignore[arg-type]

    def slow_write(self: LmdbStore, *args: object) -> None:
        gate.wait()
        write(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(LmdbStore, "read", slow_read)
    monkeypatch.setattr(LmdbStore, "write", slow_write)
    yield gate
    gate.set()


def test_a_get_from_a_disk_that_hangs_ends_in_time_and_writes_nothing_later(
    start: Start, hang: threading.Event
) -> None:
    hang.set()
    first = start()
    first.put(names(3))
    first.settle()
    first.stop()
    hang.clear()
    rig = start(timeout_s=0.05)
    got, content = rig.get(names(3))
    assert got == [Miss.LOAD_FAILED] * 3
    assert rig.pages.n_held(rig.keys(names(3))) == 0, "who asks while reads hang had better compute"
    seen = rig.cache.n_changes
    hang.set()
    assert rig.cache.wait(seen, 20.0)
    assert content == [bytes(PAGE_BYTES)] * 3
    rig.settle(lambda: rig.pages.n_held(rig.keys(names(3))) == 3)


def test_a_get_that_ends_while_pages_are_decoded_waits_for_them_and_for_no_more(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = start()
    first.put(names(8))
    first.settle()
    first.stop()
    rig = start(timeout_s=1.0)
    decoding, free = threading.Event(), threading.Event()

    def slow(frame: memoryview, out: Pieces, **how: object) -> None:
        decoding.set()
        free.wait(20.0)
        open_into(frame, out, **how)  # type: ignore[arg-type]

    monkeypatch.setattr("kvtier.pages.open_into", slow)
    threading.Timer(1.2, free.set).start()
    got, content = rig.get(names(8))
    assert decoding.is_set()
    n_landed = sum(isinstance(source, Source) for source in got)
    decoded = [one == page(f"page {i}") for i, one in enumerate(content)]
    assert all(decoded[:n_landed])  # one that is decoded as the call ends may not count any more
    assert 0 < sum(decoded) < 8
    assert all(done or one == bytes(PAGE_BYTES) for done, one in zip(decoded, content, strict=True))


def test_pages_loaded_from_disk_take_no_room_in_the_buffer(start: Start) -> None:
    first = start()
    first.put(names(40))
    first.settle()
    first.stop()
    rig = start(n_slots=4)
    assert rig.get(names(40))[0] == [Source.DISK] * 40
    assert rig.cache.host.used_bytes == 0
    rig.cache.check()


def test_pages_under_a_key_come_back(start: Start, tmp_path: Path) -> None:
    key_file = tmp_path / "key"
    key_file.write_bytes(bytes(range(32)).hex().encode())
    key_file.chmod(0o600)
    rig = start(more={"integrity": {"hmac_key_file": str(key_file)}})
    rig.put(names(12))
    rig.settle()
    assert rig.get(names(12))[1] == [page(name) for name in names(12)]


def test_a_put_to_a_disk_that_hangs_takes_what_fits_and_ends_in_time(start: Start, hang: threading.Event) -> None:
    rig = start(n_slots=8, timeout_s=0.05)
    taken = rig.put(names(20))
    assert taken == [True] * 8 + [False] * 12
    hang.set()
    rig.settle()
    assert rig.get(names(8))[1] == [page(name) for name in names(8)]


def test_a_put_that_takes_too_long_to_seal_ends_with_what_is_sealed(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = start()
    now = [0.0]
    monkeypatch.setattr(rig.pages, "_clock", lambda: now[0])

    def slow(*args: object, **how: object) -> int:
        now[0] += 8.0
        return seal_into(*args, **how)  # type: ignore[arg-type]

    monkeypatch.setattr("kvtier.pages.seal_into", slow)
    taken = rig.put(names(12))
    n_taken = sum(taken)
    assert 0 < n_taken < 12
    assert taken == [True] * n_taken + [False] * (12 - n_taken)
    monkeypatch.undo()
    assert rig.get(names(n_taken))[1] == [page(name) for name in names(n_taken)]
    rig.settle()
    rig.cache.check()


def test_a_put_does_not_wait_for_a_disk_that_is_switched_off(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise StoreError("no such device")

    monkeypatch.setattr(LmdbStore, "write", fail)
    rig = start(n_slots=4, timeout_s=60.0)
    rig.put(names(4))
    rig.settle(lambda: not rig.cache.disk_writable)
    assert not all(rig.put(names(30, "more")))


def test_without_a_disk_tier_nothing_fails(start: Start) -> None:
    rig = start(None, n_slots=4, timeout_s=0.05)
    rig.put(names(8))
    assert isinstance(rig.get(names(8))[0][0], (Source, Miss))


def test_forgetting_drops_the_own_family_and_no_other(start: Start) -> None:
    other = start(namespace={"model": "other"})
    other.put(names(2))
    other.settle()
    other.stop()
    rig = start()
    rig.put(names(2))
    rig.settle()
    with rig.pages.quiet(5.0) as still:
        assert still
        rig.cache.forget_all(rig.kvtier.family)
    assert rig.pages.n_held(rig.keys(names(2))) == 0
    rig.cache.check()
    rig.stop()
    again = start(namespace={"model": "other"})
    assert again.pages.n_held(again.keys(names(2))) == 2


def test_gets_and_puts_at_once_leave_the_cache_sound(start: Start) -> None:
    rig = start(n_slots=8)
    rig.put(names(30))
    wrong: list[str] = []

    def read() -> None:
        for _ in range(5):
            for name, source, content in zip(names(30), *rig.get(names(30)), strict=True):
                if isinstance(source, Source) and content != page(name):
                    wrong.append(name)

    reader = threading.Thread(target=read)
    reader.start()
    for n in range(5):
        rig.put(names(20, f"more {n}"))
    reader.join()
    rig.settle()
    assert wrong == []
    rig.cache.check()
