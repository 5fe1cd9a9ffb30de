"""Fuzz targets: bytes -> whatever reads them. Anything but the errors that are promised is a finding."""

import contextlib
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from kvtier import config
from kvtier.codec.aesgcm import AesGcm
from kvtier.codec.frame import HEADER_BYTES, frame_bound, frame_checksum, open_into, seal_into
from kvtier.codec.guard import PLAIN, Guard, Hmac
from kvtier.codec.registry import codec_for
from kvtier.errors import ConfigError, FrameError, InputError
from kvtier.lint.read import read
from kvtier.sim.source import open_trace
from kvtier.types import ChunkKey

KEY = ChunkKey(bytes(range(56)))
N_BYTES = 400
GUARDS: tuple[Guard, ...] = (PLAIN, Hmac(bytes(range(32))), AesGcm(bytes(range(32))))
_FOLDER = Path(tempfile.mkdtemp(prefix="kvtier-fuzz-in-"))


class Target(NamedTuple):
    run: Callable[[bytes], None]
    seeds: Callable[[], Iterator[bytes]]


def frame(data: bytes) -> None:
    """As found, and as a forger would leave it: with a checksum that fits and our own identity."""
    whole = bytearray(data.ljust(HEADER_BYTES, b"\0"))
    own = bytearray(whole)
    own[:6], own[16:48] = _SEALED[0][:6], _SEALED[0][16:48]
    for candidate in (data, _with_checksum(whole), _with_checksum(own)):
        for guard in GUARDS:
            room = bytearray(b"\xa5" * (N_BYTES + 64))
            with contextlib.suppress(FrameError):
                open_into(memoryview(candidate), memoryview(room)[:N_BYTES], key=KEY, guard=guard)
            assert room[N_BYTES:] == b"\xa5" * 64, "written beyond the slot"


def yaml(data: bytes) -> None:
    path = _FOLDER / "kvtier.yaml"
    path.write_bytes(data)
    with contextlib.suppress(ConfigError):
        config.load(path)


def trace(data: bytes) -> None:
    path = _FOLDER / "trace.jsonl"
    path.write_bytes(data)
    with contextlib.suppress(InputError), open_trace(str(path)) as requests:
        for _ in requests:
            pass


def prompts(data: bytes) -> None:
    path = _FOLDER / "prompts.jsonl"
    path.write_bytes(data)
    with contextlib.suppress(InputError):
        for _ in read(path, seen=lambda _n_bytes: None):
            pass


def _with_checksum(whole: bytearray) -> bytes:
    return bytes(whole[:48]) + frame_checksum(memoryview(whole)) + bytes(whole[64:])


def _sealed() -> Iterator[bytes]:
    for guard in GUARDS:
        for dtype in ("bfloat16", "int8"):
            chunk, codec = memoryview((b"\x11\x3f" * N_BYTES)[:N_BYTES]), codec_for(dtype)
            room = memoryview(bytearray(frame_bound(N_BYTES, codec, guard)))
            yield bytes(room[: seal_into(chunk, room, key=KEY, codec=codec, guard=guard)])


_SEALED = list(_sealed())

TARGETS = {
    "frame": Target(frame, lambda: iter(_SEALED)),
    "yaml": Target(yaml, lambda: (path.read_bytes() for path in Path("configs").glob("*.yaml"))),
    "trace": Target(
        trace,
        lambda: iter(
            [
                b'{"kvtier_trace":1,"tokens_per_chunk":4}\n{"t":1,"in":9,"chunks":""}\n',
                b'{"timestamp":1,"input_length":600,"output_length":1,"hash_ids":[1]}\n',
            ]
        ),
    ),
    "prompts": Target(
        prompts,
        lambda: iter(
            [
                b'{"messages":[{"role":"user","content":"hi"}],"user":"a"}\n',
                b'{"body":{"prompt":"<|im_start|>user\\nhi"},"timestamp":1}\n',
            ]
        ),
    ),
}


if __name__ == "__main__":
    import atheris

    atheris.instrument_all()
    run = TARGETS[sys.argv.pop(1)].run
    atheris.Setup(sys.argv, run)
    atheris.Fuzz()
