from pathlib import Path

import pytest

from kvtier.errors import StoreFullError
from kvtier.store.listing import records_of
from kvtier.store.memory import MemoryStore
from kvtier.testing.contracts import frame_of, key_of, put, read


def test_scan_tells_when_each_frame_was_written() -> None:
    ticks = iter([10, 20, 30])
    store = MemoryStore(1, 1000, clock_ns=lambda: next(ticks))
    put(store, 0, {key_of(1): b"one", key_of(2): b"two"})
    put(store, 0, {key_of(3): b"three"})
    put(store, 0, {key_of(1): b"again"})
    assert {record.key: record.written_ns for record in records_of(store.scan())} == {
        key_of(1): 30,
        key_of(2): 10,
        key_of(3): 20,
    }


def test_the_bound_is_exact_to_the_byte() -> None:
    store = MemoryStore(1, 100)
    put(store, 0, {key_of(1): frame_of(1, 60), key_of(2): frame_of(2, 40)})
    with pytest.raises(StoreFullError, match="100 of 100"):
        put(store, 0, {key_of(3): b"x"})


def test_a_replaced_frame_makes_room_for_its_successor() -> None:
    store = MemoryStore(1, 100)
    put(store, 0, {key_of(1): frame_of(1, 100)})
    put(store, 0, {key_of(1): frame_of(2, 100)})
    assert read(store, 0, key_of(1)) == frame_of(2, 100)


def test_a_frame_is_kept_apart_from_the_buffer_it_came_in(tmp_path: Path) -> None:
    store = MemoryStore(1, 100)
    buffer = bytearray(b"before")
    store.write(0, [(key_of(1), memoryview(buffer))], [])
    buffer[:] = b"after!"
    assert read(store, 0, key_of(1)) == b"before"
