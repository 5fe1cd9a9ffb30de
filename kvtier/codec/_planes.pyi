from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

Values: TypeAlias = memoryview | npt.NDArray[np.uint8]

INTERFACE: Final = 5

def split(values: Values, low: memoryview, high: memoryview) -> None: ...
def join(
    functions: tuple[int, int, int, int],
    context: int,
    low: memoryview,
    section: memoryview,
    scratch: memoryview,
    out: Values,
) -> int: ...
def open_frame(
    functions: tuple[int, int, int],
    state: int,
    head: bytes,
    frame: memoryview,
    scratch: memoryview,
    out: Values,
) -> bool: ...
def read_frames(
    functions: tuple[int, int, int],
    state: int,
    reads: object,
    frames: list[tuple[tuple[int, int, int, int, int, bool], bytes, Values]],
    memory: memoryview,
    place_bytes: int,
    scratch: memoryview,
    yields: bool,
) -> list[bool]: ...
def new_reads() -> object: ...
