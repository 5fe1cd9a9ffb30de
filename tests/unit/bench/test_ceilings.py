"""Ceilings on the file system under the tests: what is dropped is cold, what is read is all of it."""

import pytest

from kvtier.bench.ceilings import DIRECT_BLOCK_BYTES, DirectFile, cached_share, drop_page_cache, has_direct_io
from kvtier.errors import StoreError


def test_files_are_cold_after_they_were_dropped_from_the_page_cache(tmp_path):
    (tmp_path / "file").write_bytes(bytes(range(256)) * 4096)
    assert cached_share(tmp_path) > 0.9
    drop_page_cache(tmp_path)
    if cached_share(tmp_path):
        pytest.skip("the tests run on a memory file system, which has no colder place")
    assert cached_share(tmp_path) == 0


def test_a_direct_file_is_whole_blocks_and_reads_back(tmp_path):
    if not has_direct_io(tmp_path):
        pytest.skip("no O_DIRECT on the file system of the tests")
    file = DirectFile(tmp_path / "file", DIRECT_BLOCK_BYTES + 1)
    file.write()
    assert file.path.stat().st_size == file.n_bytes == 2 * DIRECT_BLOCK_BYTES
    file.read()
    file.read_with(3)()
    with file.path.open("r+b") as opened:
        opened.truncate(DIRECT_BLOCK_BYTES)
    with pytest.raises(StoreError, match="came back short"):
        file.read()
