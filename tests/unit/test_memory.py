"""Memory for the disk to read into."""

import ctypes

import pytest

from kvtier.memory import page_memory

HUGE_PAGE = 2 << 20


@pytest.mark.parametrize("n_bytes", [1, 4096, HUGE_PAGE, HUGE_PAGE + 1])
def test_it_is_as_long_as_asked_for_and_begins_where_a_huge_page_does(n_bytes: int):
    memory = page_memory(n_bytes)
    assert len(memory) >= n_bytes
    assert ctypes.addressof(ctypes.c_char.from_buffer(memory)) % HUGE_PAGE == 0
    memory[-1] = 1
    assert sum(memory[-4096:]) == 1
