from pathlib import Path

import pytest

from tests.rigs.cache_dir import CacheDir


@pytest.fixture
def cache(tmp_path: Path) -> CacheDir:
    return CacheDir(tmp_path / "cache")
