import pytest

from kvtier.errors import StoreError, StoreFullError
from kvtier.store.listing import records_of
from kvtier.store.memory import MemoryStore
from kvtier.testing.contracts import key_of, put, read
from kvtier.testing.faults import Fault, FaultyStore, cut_to, flipped


def store_with(*faults: Fault) -> FaultyStore:
    return FaultyStore(MemoryStore(2, 10_000), *faults)


def test_calls_work_until_the_fault_begins_and_after_it_ends() -> None:
    store = store_with(Fault(method="write", after=1, times=2, error=StoreError("no")))
    put(store, 0, {key_of(1): b"1"})
    for n in (2, 3):
        with pytest.raises(StoreError):
            put(store, 0, {key_of(n): b"x"})
    put(store, 0, {key_of(4): b"4"})
    assert {record.key for record in records_of(store.scan())} == {key_of(1), key_of(4)}
    assert store.calls == {"write": 4, "scan": 1}


def test_a_fault_injected_later_counts_from_then() -> None:
    store = store_with()
    put(store, 0, {key_of(1): b"1"})
    store.inject(Fault(method="write", after=1, error=OSError(5, "Input/output error")))
    put(store, 0, {key_of(2): b"2"})
    with pytest.raises(OSError, match="Input/output"):
        put(store, 0, {key_of(3): b"3"})


def test_a_failed_write_changes_nothing_unless_only_its_answer_is_lost() -> None:
    store = store_with(
        Fault(method="write", times=1, error=StoreFullError("full")),
        Fault(method="write", after=1, error=StoreError("no answer"), done=True),
    )
    for n in (1, 2):
        with pytest.raises(StoreError):
            put(store, 0, {key_of(n): b"x"})
    assert [record.key for record in records_of(store.scan())] == [key_of(2)]


def test_a_lost_write_reports_success_and_is_gone() -> None:
    store = store_with(Fault(method="write", lost=True, times=1))
    put(store, 0, {key_of(1): b"1"})
    put(store, 0, {key_of(2): b"2"})
    assert [record.key for record in records_of(store.scan())] == [key_of(2)]


def test_a_read_can_hand_out_damaged_bytes_and_leaves_the_frame_whole() -> None:
    store = store_with(
        Fault(method="read", times=1, change=flipped(9)), Fault(method="read", after=1, times=1, change=cut_to(1))
    )
    put(store, 0, {key_of(1): b"\0\0\0"})
    assert [read(store, 0, key_of(1)) for _ in range(3)] == [b"\0\2\0", b"\0", b"\0\0\0"]


def test_a_damaged_read_of_an_absent_key_is_absent() -> None:
    assert read(store_with(Fault(method="read", change=flipped(0))), 0, key_of(1)) is None


def test_slowness_goes_through_the_given_sleep() -> None:
    slept: list[float] = []
    store = FaultyStore(MemoryStore(1, 100), Fault(method="sync", slow_s=10.0), sleep=slept.append)
    store.sync()
    assert slept == [10.0]


def test_a_failing_scan_fails_before_the_first_record() -> None:
    store = store_with(Fault(method="scan", error=StoreError("gone")))
    with pytest.raises(StoreError):
        next(store.scan())


def test_healing_ends_all_faults() -> None:
    store = store_with(Fault(method="sync", error=StoreError("no")))
    store.heal()
    store.sync()
