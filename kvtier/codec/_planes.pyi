from typing import Final

INTERFACE: Final = 1

def split(values: memoryview, low: memoryview, high: memoryview) -> None: ...
def join(
    functions: tuple[int, int, int, int],
    context: int,
    low: memoryview,
    section: memoryview,
    scratch: memoryview,
    out: memoryview,
) -> int: ...
