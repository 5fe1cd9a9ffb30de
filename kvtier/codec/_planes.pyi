from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

Values: TypeAlias = memoryview | npt.NDArray[np.uint8]

INTERFACE: Final = 4

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
    place: tuple[int, int, int, int],
    memory: memoryview,
    scratch: memoryview,
    out: Values,
    yields: bool,
) -> bool: ...
