import pytest

from kvtier.transfer.slots import FrameSlots, Slots


def test_rows_are_cut_in_order_and_write_through():
    buffer = bytearray(12)
    slots = Slots(memoryview(buffer), 4)
    slots[1][:] = b"abcd"
    assert slots.n == 3
    assert bytes(buffer) == b"\0\0\0\0abcd\0\0\0\0"


def test_a_remainder_that_is_no_whole_slot_is_left_alone():
    slots = Slots(memoryview(bytearray(11)), 4)
    assert slots.n == 2
    assert len(slots[1]) == 4


def test_the_buffer_may_have_elements_of_any_size():
    slots = Slots(memoryview(bytearray(16)).cast("I"), 4)
    assert slots.n == 4
    assert slots[3].format == "B"


def test_a_buffer_that_is_not_contiguous_is_refused():
    with pytest.raises(TypeError):
        Slots(memoryview(bytearray(16))[::2], 4)


def test_a_slot_of_frames_is_as_long_as_what_was_sealed_into_it():
    slots = FrameSlots(memoryview(bytearray(12)), 6)
    slots.row(1)[:3] = b"abc"
    slots.holds(1, 3)
    assert (bytes(slots[1]), bytes(slots[0])) == (b"abc", b"")
