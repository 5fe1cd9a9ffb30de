"""Native code of the byte planes, compiled from the source in this tree, whatever is installed."""

import importlib.util
import shlex
import struct
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from kvtier.codec import forms
from kvtier.codec.opener import Opener, native_opener

_FOLDER = Path(forms.__file__).parent
_folder = tempfile.TemporaryDirectory(prefix="kvtier-native-")  # a loaded library's file stays until the process ends


def native_form() -> forms.Form:
    """Skips the test where there is no C compiler; warnings of the compiler are errors."""
    return forms.native_form(_extension())


def opener(*, n_ends: int | None = None) -> Opener:
    """As `native_form`. With `n_ends` the kernel takes reads until so many of a thread have ended, and then none."""
    return native_opener(_extension(n_ends))


def literals(frames: Iterable[tuple[bytes, int]]) -> Iterator[bytes | None]:
    """What native code finds in zstd frames, each with the bytes of room for it; None where it leaves that to zstd.

    In a process of its own in which a read or write outside of any buffer, or undefined behaviour, is the end; one that
    comes to it raises CalledProcessError with the sanitizers' report on stderr.
    """
    checks = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-I", str(_FOLDER))
    program = _compiled("literals", checks, Path(__file__).with_name("literals.c"))
    asked = b"".join(struct.pack("<II", len(frame), room) + frame for frame, room in frames)
    said = subprocess.run([program], input=asked, stdout=subprocess.PIPE, check=True).stdout
    while said:
        (n_bytes,), said = struct.unpack_from("<q", said), said[8:]
        yield said[:n_bytes] if n_bytes >= 0 else None
        said = said[max(0, n_bytes) :]


@cache
def _extension(n_ends: int | None = None) -> Any:
    reads = _FOLDER / "_reads.c" if n_ends is None else Path(__file__).with_name("reads.c")
    flags = ("-O3", "-shared", "-fPIC", "-I", sysconfig.get_path("include"), "-I", str(_FOLDER), f"-DN_ENDS={n_ends}")
    library = _compiled(f"_planes{n_ends}.abi3.so", flags, _FOLDER / "_planes.c", reads)
    spec = importlib.util.spec_from_file_location("_planes", library)
    assert spec is not None
    assert spec.loader is not None
    extension = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(extension)
    return extension


@cache
def _compiled(name: str, flags: tuple[str, ...], *sources: Path) -> Path:
    path = Path(_folder.name) / name
    compiler = shlex.split(sysconfig.get_config_var("CC") or "cc")
    strict = ["-std=c11", "-Wall", "-Wextra", "-Werror"]
    command = [*compiler, *strict, *flags, *sources, _FOLDER / "_literals.c", "-o", path]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("no C compiler here")
    assert result.returncode == 0, result.stderr
    return path
