"""Pieces: where a chunk lies, as few arrays as possible."""

import numpy as np
import pytest

from kvtier.codec.pieces import Pieces
from kvtier.testing.contracts import Scattered

SHAPES = {
    "one piece": ([40], 0, [(1, 1, 40)]),
    "keys and values": ([20, 20], 8, [(1, 2, 20)]),
    "a layer each": ([10], 30, [(1, 4, 10)]),
    "a long one and short ones": ([20, 10, 10], 4, [(1, 1, 20), (1, 2, 10)]),
}


@pytest.mark.parametrize(("lengths", "gap", "shapes"), SHAPES.values(), ids=SHAPES.keys())
def test_pieces_at_equal_distances_are_rows_of_one_array(
    lengths: list[int], gap: int, shapes: list[tuple[int, int, int]]
) -> None:
    chunk = bytes(range(40))
    assert [block.shape for block in Scattered(chunk, lengths, gap).pieces.blocks] == shapes


def test_keys_and_values_of_every_layer_are_one_array() -> None:
    memory = np.arange(2 * 5 * 100, dtype=np.uint8)
    places = [(memory.ctypes.data + side * 500 + layer * 100 + 8, 12) for layer in range(5) for side in (0, 1)]
    pieces = Pieces(places)
    assert [block.shape for block in pieces.blocks] == [(5, 2, 12)]
    whole = bytearray(120)
    pieces.gather(memoryview(whole))
    assert whole == b"".join(memory[at - memory.ctypes.data :][:n].tobytes() for at, n in places)


def test_pieces_in_another_order_than_in_memory_keep_theirs() -> None:
    scattered = Scattered(bytes(range(30)), [10], 2)
    (base,) = scattered.pieces.blocks
    address = base.ctypes.data
    whole = bytearray(30)
    Pieces([(address + 24, 10), (address, 10), (address + 12, 10)]).gather(memoryview(whole))
    assert whole == bytes(range(20, 30)) + bytes(range(20))


def test_values_of_two_bytes_that_lie_in_two_pieces_are_noticed() -> None:
    assert Scattered(bytes(20), [5], 1).pieces.odd
    assert not Scattered(bytes(20), [4], 1).pieces.odd
