"""PageReader: whole ranges or an error, from the page cache or past it."""

import errno
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from kvtier.store import direct
from kvtier.store.direct import PageReader
from tests.rigs.page_cache import drop_from_page_cache, pages_of

PAGE = 4096
N_PAGES = 64


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(N_PAGES * PAGE))
    return path


class Calls:
    """`os.preadv` that notes which calls read past the page cache, and can go wrong."""

    def __init__(self) -> None:
        self.direct: list[bool] = []
        self.error: OSError | None = None
        self.refuses_direct = False
        self.most_bytes = 1 << 30

    def __call__(self, fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        is_direct = bool(flags_of(fd) & os.O_DIRECT)
        self.direct.append(is_direct)
        if self.error is not None:
            raise self.error
        if is_direct and self.refuses_direct:
            raise OSError(errno.EINVAL, "Invalid argument")
        return os.preadv(fd, [buffers[0][: self.most_bytes]], offset)


def flags_of(fd: int) -> int:
    lines = Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("flags:")).split()[1], 8)


def read(reader: PageReader, offset: int, n_bytes: int, file: int = 0) -> bytes:
    run = reader.read(file, offset, n_bytes)
    content = bytes(run.view)
    run.close()
    return content


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize(("page", "n_bytes"), [(0, 1), (3, PAGE), (5, 10 * PAGE + 17), (0, N_PAGES * PAGE)])
def test_a_range_reads_as_it_is_in_the_file(*, page: int, n_bytes: int, cached: bool, file: Path) -> None:
    content = file.read_bytes()
    if not cached:
        drop_from_page_cache(file)
    reader = PageReader([file], N_PAGES * PAGE)
    assert read(reader, page * PAGE, n_bytes) == content[page * PAGE : page * PAGE + n_bytes]
    reader.close()


def test_what_is_in_the_page_cache_is_read_from_there_and_the_rest_past_it(file: Path) -> None:
    calls = Calls()
    reader = PageReader([file], N_PAGES * PAGE, preadv=calls)
    file.read_bytes()
    read(reader, 0, 8 * PAGE)
    drop_from_page_cache(file)
    read(reader, 0, 8 * PAGE)
    assert calls.direct == [False, True]
    reader.close()


def test_whoever_reads_by_himself_is_told_whether_he_waits_for_the_disk(file: Path) -> None:
    reader, told = PageReader([file], N_PAGES * PAGE), []
    for in_cache in (True, False):
        if in_cache:
            file.read_bytes()
        else:
            drop_from_page_cache(file)
        with reader.place(0, 0, 8 * PAGE - 1) as (descriptor, length, cached):
            told.append((cached, bool(flags_of(descriptor) & os.O_DIRECT), length))
    assert told == [(True, False, 8 * PAGE), (False, True, 8 * PAGE)]
    reader.close()


def test_reading_past_the_page_cache_leaves_nothing_in_it(file: Path) -> None:
    calls = Calls()
    drop_from_page_cache(file)
    reader = PageReader([file], N_PAGES * PAGE, preadv=calls)
    for _ in range(3):
        read(reader, 0, 8 * PAGE)
    assert calls.direct == [True] * 3
    reader.close()


def test_a_file_system_that_refuses_direct_reads_is_read_through_the_page_cache(file: Path) -> None:
    content = file.read_bytes()
    drop_from_page_cache(file)
    calls = Calls()
    calls.refuses_direct = True
    reader = PageReader([file], N_PAGES * PAGE, preadv=calls)
    assert read(reader, PAGE, 3 * PAGE) == content[PAGE : 4 * PAGE]
    assert calls.direct == [True, False]
    reader.close()


def test_a_file_that_cannot_be_opened_for_direct_reads_is_read_through_the_page_cache(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def refuse(path: str, flags: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(path, flags)

    monkeypatch.setattr(direct.os, "open", refuse)
    calls = Calls()
    reader = PageReader([file], N_PAGES * PAGE, preadv=calls)
    assert len(read(reader, 0, 5000)) == 5000
    assert calls.direct == [False]
    reader.close()


@pytest.mark.parametrize("most_bytes", [PAGE, 5000, 3])
def test_reads_that_give_less_than_asked_are_continued(most_bytes: int, file: Path) -> None:
    content = file.read_bytes()
    drop_from_page_cache(file)
    calls = Calls()
    calls.most_bytes = most_bytes
    reader = PageReader([file], N_PAGES * PAGE, preadv=calls)
    assert read(reader, 2 * PAGE, 2 * PAGE) == content[2 * PAGE : 4 * PAGE]
    reader.close()


def test_an_unreadable_page_is_an_error_of_that_read_alone(file: Path) -> None:
    calls = Calls()
    calls.error = OSError(errno.EIO, "Input/output error")
    reader = PageReader([file], N_PAGES * PAGE, preadv=calls)
    with pytest.raises(OSError, match="Input/output"):
        reader.read(0, 0, PAGE)
    calls.error = None
    assert read(reader, 0, PAGE) == file.read_bytes()[:PAGE]
    reader.close()


@pytest.mark.parametrize("cached", [True, False])
def test_a_file_that_ends_within_the_range_is_an_error(*, cached: bool, file: Path) -> None:
    reader = PageReader([file], N_PAGES * PAGE)
    read(reader, 0, PAGE)
    os.truncate(file, 10 * PAGE)
    if not cached:
        drop_from_page_cache(file)
    with pytest.raises(OSError, match="ends within a frame"):
        reader.read(0, 8 * PAGE, 4 * PAGE)
    reader.close()


def test_a_file_that_is_gone_is_an_error(tmp_path: Path) -> None:
    reader = PageReader([tmp_path / "none"], PAGE)
    with pytest.raises(FileNotFoundError):
        reader.read(0, 0, 1)
    reader.close()


def test_a_view_cannot_be_written_and_dies_with_its_run(file: Path) -> None:
    reader = PageReader([file], N_PAGES * PAGE)
    run = reader.read(0, 0, PAGE)
    view = run.view
    assert view.readonly
    run.close()
    with pytest.raises(ValueError, match="released"):
        bytes(view)
    reader.close()


def test_few_files_stay_open_however_many_are_read(tmp_path: Path) -> None:
    paths = [tmp_path / str(n) for n in range(3 * direct.MAX_OPEN_FILES)]
    for n, path in enumerate(paths):
        path.write_bytes(bytes([n]) * PAGE)
    n_before = sum(1 for _ in Path("/proc/self/fd").iterdir())
    reader = PageReader(paths, PAGE)
    for n in range(len(paths)):
        assert read(reader, 0, 10, file=n) == bytes([n]) * 10
    assert sum(1 for _ in Path("/proc/self/fd").iterdir()) <= n_before + 2 * direct.MAX_OPEN_FILES
    reader.close()
    assert sum(1 for _ in Path("/proc/self/fd").iterdir()) == n_before


def test_dirty_pages_go_to_the_disk_without_a_sync(file: Path) -> None:
    reader = PageReader([file], N_PAGES * PAGE)
    if not pages_of(file).dirty:
        pytest.skip("a file system that keeps no dirty pages")
    reader.start_writeback(0)
    assert pages_of(file).dirty == 0
    reader.close()


def test_what_cannot_be_opened_is_left_to_the_sync_to_report(tmp_path: Path) -> None:
    reader = PageReader([tmp_path / "gone"], PAGE)
    reader.start_writeback(0)
    reader.close()
