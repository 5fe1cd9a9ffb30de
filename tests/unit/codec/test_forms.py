"""Both forms of the byte planes do the same, also with sections made to hurt."""

import random
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from kvtier.codec import forms
from kvtier.errors import FrameCorruptError
from tests.rigs.native import native_form

VALUES = st.binary(min_size=1, max_size=300).map(lambda half: half * 2)
BLOCK = 1 << 17  # the most that zstd decodes at once


@pytest.fixture(scope="module")
def native() -> forms.Form:
    return native_form()


def split(form: forms.Form, values: bytes) -> tuple[bytes, bytes]:
    low, high = bytearray(len(values) // 2), bytearray(len(values) // 2)
    form.split(memoryview(values), memoryview(low), memoryview(high))
    return bytes(low), bytes(high)


def join(form: forms.Form, low: bytes, section: bytes) -> bytes | None:
    """The values, or None if the section is corrupt."""
    out = bytearray(2 * len(low))
    try:
        form.join(memoryview(low), memoryview(section), memoryview(out))
    except FrameCorruptError:
        return None
    return bytes(out)


def woven(low: bytes, high: bytes) -> bytes:
    return bytes(byte for pair in zip(low, high, strict=True) for byte in pair)


@given(values=VALUES)
def test_both_split_alike(native: forms.Form, values: bytes) -> None:
    assert split(native, values) == split(forms.NumpyForm(), values) == (values[::2], values[1::2])


@given(low=st.binary(min_size=1, max_size=300), offset=st.integers(0, 7))
def test_both_join_alike_wherever_the_values_go(native: forms.Form, low: bytes, offset: int) -> None:
    section = zstandard.compress(low[::-1])
    for form in (native, forms.NumpyForm()):
        room = bytearray(offset + 2 * len(low) + 8)
        form.join(memoryview(low), memoryview(section), memoryview(room)[offset : offset + 2 * len(low)])
        assert room == bytes(offset) + woven(low, low[::-1]) + bytes(8)


@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 40)),
    gaps=st.tuples(st.integers(0, 9), st.integers(0, 9)),
)
def test_both_work_on_rows_far_apart_as_on_bytes_in_a_row(
    native: forms.Form, shape: tuple[int, int, int], gaps: tuple[int, int]
) -> None:
    n_outer, n_inner, n_values = shape
    memory = np.random.default_rng(1).integers(0, 256, (n_outer, n_inner + gaps[0], 2 * n_values + gaps[1]), np.uint8)
    rows = memory[:, :n_inner, : 2 * n_values]
    around, values = memory.copy(), rows.tobytes()
    for form in (native, forms.NumpyForm()):
        low, high = bytearray(len(values) // 2), bytearray(len(values) // 2)
        form.split(rows, memoryview(low), memoryview(high))
        assert (low, high) == (values[::2], values[1::2])
        rows[:] = 0
        form.join(memoryview(low), memoryview(zstandard.compress(high)), rows)
        assert (memory == around).all()


@pytest.mark.parametrize("shape", [(2, 3), (1, 2, 2, 2), (3, 0)], ids=["odd rows", "too many dimensions", "empty rows"])
def test_the_compiled_part_refuses_rows_that_are_none(native: forms.Form, shape: tuple[int, ...]) -> None:
    rows, planes = np.zeros(shape, np.uint8), memoryview(bytearray(4))
    with pytest.raises(ValueError, match="even rows"):
        native.split(rows, planes, planes)
    with pytest.raises(ValueError, match="even rows"):
        native.split(np.zeros((2, 8), np.uint8)[:, ::2], planes, planes)


@given(data=st.data())
def test_native_code_takes_no_damaged_section_that_numpy_refuses_and_gives_the_same_for_others(
    native: forms.Form, data: st.DataObject
) -> None:
    high = random.Random(5).choices(range(8), k=2000)
    section = bytearray(zstandard.compress(bytes(high)))
    for _ in range(data.draw(st.integers(1, 3))):
        section[data.draw(st.integers(0, len(section) - 1))] ^= data.draw(st.integers(1, 255))
    low = bytes(len(high))
    # Numpy's form looks at nothing behind the last byte it needs; native code wants the zstd frame to end there.
    assert join(native, low, bytes(section)) in (None, join(forms.NumpyForm(), low, bytes(section)))


@pytest.mark.parametrize("n_bytes", [1, 15, 16, 17, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 5])
def test_blocks_meet_without_a_seam(native: forms.Form, n_bytes: int) -> None:
    low, high = random.Random(1).randbytes(n_bytes), bytes(random.Random(2).choices(range(9), k=n_bytes))
    assert join(native, low, zstandard.compress(high)) == woven(low, high)


def test_a_match_may_reach_back_over_many_blocks(native: forms.Form) -> None:
    far = random.Random(3).randbytes(4 * BLOCK)
    section = zstandard.ZstdCompressor(level=9).compress(far + far)
    assert len(section) < 1.1 * len(far)
    assert join(native, bytes(len(far) * 2), section) == woven(bytes(len(far) * 2), far + far)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda section: section[:-1], "it ends early"),
        (lambda section: section[:20], "it ends early"),
        (lambda section: section + b"x", "it holds more than it declares"),
        (lambda section: section[:7] + b"\xff" * (len(section) - 7), "does not decode: "),
        (lambda _: b"", "does not decode"),
        (lambda _: zstandard.compress(bytes(299)), "declares 299 bytes, expected 300"),
    ],
    ids=["a byte short", "cut", "a byte more", "no block", "empty", "another size"],
)
def test_what_does_not_decode_to_just_the_high_bytes_is_corrupt(native: forms.Form, change, message: str) -> None:
    section = zstandard.compress(random.Random(4).randbytes(300))
    with pytest.raises(FrameCorruptError, match=message):
        native.join(memoryview(bytes(300)), memoryview(change(section)), memoryview(bytearray(600)))


def test_after_a_corrupt_section_the_next_one_decodes(native: forms.Form) -> None:
    good = zstandard.compress(b"high" * 1000)
    assert join(native, bytes(4000), good[:-3]) is None
    assert join(native, bytes(4000), good) == woven(bytes(4000), b"high" * 1000)


def test_threads_do_not_disturb_each_other(native: forms.Form) -> None:
    def once(seed: int) -> bool:
        low, high = random.Random(seed).randbytes(BLOCK), bytes(random.Random(-seed).choices(range(9), k=BLOCK))
        return join(native, low, zstandard.compress(high)) == woven(low, high)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(once, range(24)))


@pytest.mark.parametrize(
    ("low", "out"), [(10, 18), (10, 22), (10, 21)], ids=["too little room", "too much", "half a value"]
)
def test_the_compiled_part_refuses_buffers_that_do_not_fit(native: forms.Form, low: int, out: int) -> None:
    with pytest.raises(ValueError, match="half"):
        native.join(memoryview(bytes(low)), memoryview(zstandard.compress(bytes(low))), memoryview(bytearray(out)))
    with pytest.raises(ValueError, match="half"):
        native.split(memoryview(bytes(out)), memoryview(bytearray(low)), memoryview(bytearray(low)))


def test_without_the_compiled_part_numpy_does_it_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, forms.EXTENSION, None)
    assert isinstance(forms.best_form.__wrapped__(), forms.NumpyForm)
    assert forms.describe() == f"numpy (import of {forms.EXTENSION} halted; None in sys.modules)"


def test_a_compiled_part_of_another_build_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, forms.EXTENSION, SimpleNamespace(INTERFACE=forms.INTERFACE + 1))
    assert isinstance(forms.best_form.__wrapped__(), forms.NumpyForm)
    assert "install kvtier again" in forms.describe()


def test_a_zstandard_without_the_functions_leaves_it_to_numpy(
    native: forms.Form, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "zstandard._cffi", SimpleNamespace(ffi=None, lib=None))
    monkeypatch.setitem(sys.modules, forms.EXTENSION, SimpleNamespace(INTERFACE=forms.INTERFACE, split=None, join=None))
    assert isinstance(forms.best_form.__wrapped__(), forms.NumpyForm)
