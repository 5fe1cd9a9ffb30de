"""The native form of the byte planes, compiled from the source in this tree, whatever is installed."""

import importlib.util
import shlex
import subprocess
import sysconfig
import tempfile
from functools import cache
from pathlib import Path

import pytest

from kvtier.codec import forms

_SOURCE = Path(forms.__file__).with_name("_planes.c")
_folder = tempfile.TemporaryDirectory(prefix="kvtier-native-")  # a loaded library's file stays until the process ends


def native_form() -> forms.Form:
    """Skips the test where there is no C compiler; warnings of the compiler are errors."""
    library = _compiled()
    if library is None:
        pytest.skip("no C compiler here")
    return _loaded(library)


@cache
def _loaded(library: Path) -> forms.Form:
    spec = importlib.util.spec_from_file_location("_planes", library)
    assert spec is not None
    assert spec.loader is not None
    extension = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(extension)
    return forms.native_form(extension)


@cache
def _compiled() -> Path | None:
    library = Path(_folder.name) / "_planes.abi3.so"
    compiler = shlex.split(sysconfig.get_config_var("CC") or "cc")
    flags = ["-std=c11", "-O3", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    command = [*compiler, *flags, "-I", sysconfig.get_path("include"), _SOURCE, "-o", library]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    assert result.returncode == 0, result.stderr
    return library
