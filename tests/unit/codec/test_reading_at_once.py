"""Frames that are read by the call that opens them: what came of each, whatever the disk and the kernel do."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from kvtier.codec import frame as frames
from kvtier.codec.frame import frame_bound, read_at_once, seal_into
from kvtier.codec.opener import PLACES, Opener
from kvtier.codec.planes import BytePlanes
from kvtier.types import ChunkKey, FilePages
from tests.rigs import native

PAGE = os.sysconf("SC_PAGE_SIZE")
N_CONTEXTS = Path("/proc/sys/fs/aio-nr")
KERNEL_TAKES_READS = N_CONTEXTS.exists()
N_VALUES = 30_000
SKIP = 16
N = 12


def key_of(number: int) -> ChunkKey:
    return ChunkKey(bytes([number]) * 56)


def chunk_of(number: int) -> bytes:
    values = np.random.default_rng(number).standard_normal(N_VALUES, np.float32).view(np.uint32) >> 16
    return values.astype("<u2").tobytes()


class Frames:
    """A file of frames, one after the other, and where each of them lies."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.places: list[tuple[int, int]] = []  # pages to read from, and bytes of the frame
        with path.open("wb") as file:
            for number in range(N):
                room = bytearray(frame_bound(2 * N_VALUES, BytePlanes()))
                n = seal_into(memoryview(chunk_of(number)), memoryview(room), key=key_of(number), codec=BytePlanes())
                self.places.append((file.tell(), n))
                file.write(bytes(SKIP) + room[:n] + bytes(-(SKIP + n) % PAGE))
            file.flush()
            os.fsync(file.fileno())
        self.buffered = os.open(path, os.O_RDONLY)
        try:
            self.direct = os.open(path, os.O_RDONLY | os.O_DIRECT)
        except OSError:
            self.direct = self.buffered

    def pages(self, number: int, *, cached: bool, descriptor: int | None = None) -> FilePages:
        offset, n_bytes = self.places[number]
        if descriptor is None:
            descriptor = self.buffered if cached else self.direct
        return FilePages(descriptor, offset, -(-(SKIP + n_bytes) // PAGE) * PAGE, SKIP, n_bytes, cached)

    def close(self) -> None:
        for descriptor in {self.buffered, self.direct}:
            os.close(descriptor)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Frames]:
    file = Frames(tmp_path_factory.mktemp("frames") / "file")
    yield file
    file.close()


@pytest.fixture(params=[None, 0], ids=["as it is", "a kernel that takes no reads"], autouse=True)
def opener(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Opener:
    opener = native.opener(n_ends=request.param)
    monkeypatch.setattr(frames, "best_opener", lambda: opener)
    return opener


def read(wanted: Sequence[FilePages | None], numbers: Sequence[int], *, yields: bool = False) -> list[bytes | None]:
    """What came of each chunk, None where nothing did."""
    outs = [bytearray(2 * N_VALUES) for _ in numbers]
    chunks = [
        (pages, memoryview(out), key_of(number)) for pages, out, number in zip(wanted, outs, numbers, strict=True)
    ]
    return [bytes(out) if done else None for out, done in zip(outs, read_at_once(chunks, yields=yields), strict=True)]


@pytest.mark.parametrize("yields", [True, False])
@pytest.mark.parametrize("cached", [(True,), (False,), (False, True), (True, False, False)], ids=str)
@pytest.mark.parametrize("n", [1, PLACES, PLACES + 1, N])
def test_all_come_out_whatever_of_them_the_page_cache_has(file: Frames, n: int, cached: tuple[bool], *, yields: bool):
    wanted = [file.pages(number, cached=cached[number % len(cached)]) for number in range(n)]
    assert read(wanted, range(n), yields=yields) == [chunk_of(number) for number in range(n)]


@pytest.mark.skipif(not KERNEL_TAKES_READS, reason="the kernel has no asynchronous reads here")
def test_the_kernel_is_asked_for_them(file: Frames, monkeypatch: pytest.MonkeyPatch):
    opener = native.opener()
    monkeypatch.setattr(frames, "best_opener", lambda: opener)
    read([file.pages(0, cached=False)], [0])
    assert N_CONTEXTS.read_text().strip() != "0"


@pytest.mark.parametrize("n_ends", [1, 4])
def test_a_kernel_that_gives_up_costs_what_it_was_reading_and_nothing_more(
    file: Frames, monkeypatch: pytest.MonkeyPatch, n_ends: int
):
    opener = native.opener(n_ends=n_ends)
    monkeypatch.setattr(frames, "best_opener", lambda: opener)
    wanted = [file.pages(number, cached=number == 1) for number in range(N)]
    with ThreadPoolExecutor(1) as thread:  # its reads begin anew
        got, again = (thread.submit(read, wanted, range(N)).result() for _ in range(2))
    lost = [number for number, chunk in enumerate(got) if chunk is None]
    assert len(lost) == PLACES
    assert all(chunk in (None, chunk_of(number)) for number, chunk in enumerate(got))
    assert again == [chunk_of(number) for number in range(N)]


@pytest.mark.parametrize("cached", [True, False])
def test_one_that_cannot_be_read_costs_nothing_of_the_others(file: Frames, tmp_path: Path, *, cached: bool):
    end = os.open(tmp_path / "empty", os.O_RDWR | os.O_CREAT)
    write_only = os.open(file.path, os.O_WRONLY)
    try:
        wanted: list[FilePages | None] = [file.pages(number, cached=cached) for number in range(N)]
        wanted[1] = file.pages(1, cached=cached, descriptor=end)
        wanted[3] = None
        wanted[5] = file.pages(5, cached=cached, descriptor=write_only)
        wanted[7] = file.pages(7, cached=cached, descriptor=1 << 20)  # not open
        assert read(wanted, range(N)) == [None if n in (1, 3, 5, 7) else chunk_of(n) for n in range(N)]
    finally:
        os.close(end)
        os.close(write_only)


@pytest.mark.parametrize("cached", [True, False])
def test_the_frame_of_another_key_is_not_taken(file: Frames, *, cached: bool):
    numbers = [0, 2, 1, 3]
    wanted = [file.pages(number, cached=cached) for number in range(4)]
    assert read(wanted, numbers) == [chunk_of(0), None, None, chunk_of(3)]


def test_a_file_that_ends_within_a_frame_gives_the_others(file: Frames, tmp_path: Path):
    cut = tmp_path / "cut"
    cut.write_bytes(file.path.read_bytes()[: file.places[2][0] + PAGE])
    descriptor = os.open(cut, os.O_RDONLY)
    try:
        wanted = [file.pages(number, cached=False, descriptor=descriptor) for number in range(4)]
        assert read(wanted, range(4)) == [chunk_of(0), chunk_of(1), None, None]
    finally:
        os.close(descriptor)


def test_a_chunk_that_did_not_shrink_is_not_read_for_nothing(file: Frames, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(frames, "best_opener", lambda: None)  # which would be asked
    whole = file.pages(0, cached=True)._replace(n_bytes=frames.HEADER_BYTES + 2 * N_VALUES)
    assert read([whole], [0]) == [None]


def test_arguments_that_do_not_fit_are_an_error(file: Frames, opener: Opener):
    pages, out = file.pages(0, cached=True), np.zeros(2 * N_VALUES, np.uint8)
    for wrong, head, values in [
        (pages, bytes(47), out),
        (pages, bytes(48), out[:-1]),
        (pages._replace(skip=-1), bytes(48), out),
        (pages._replace(n_bytes=pages.length), bytes(48), out),
        (pages._replace(n_bytes=frames.HEADER_BYTES), bytes(48), out),
    ]:
        with pytest.raises(ValueError, match="read_frames"):
            opener.read([(pages, bytes(48), out), (wrong, head, values)], yields=False)
    with pytest.raises(ValueError, match="16 frames"):
        opener.read([(pages, bytes(48), out)] * 17, yields=False)
