"""SharedStoreContract: what a store that several processes have open must tell each of them, as tests.

Subclass it and say how to open a store and, over the same frames, a second one as another process would.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest

from kvtier.store.base import Change, News, SharedStore
from kvtier.store.listing import records_of
from kvtier.testing.contracts import frame_of, key_of, put
from kvtier.types import ChunkKey


class OtherProcess(Protocol):
    """Somebody else at the same frames."""

    def put(self, shard: int, frames: dict[ChunkKey, bytes], deletes: list[ChunkKey]) -> None:
        """Write a batch and come back when it has taken place."""
        ...

    def close(self) -> None:
        """End it."""
        ...


class SharedStoreContract:
    """For stores of at least two shards, the first of which takes 100 frames of 100 bytes."""

    def open_both(self, folder: Path) -> tuple[SharedStore, OtherProcess]:
        """A store, empty when the folder is, and another process at it."""
        raise NotImplementedError

    @pytest.fixture
    def both(self, tmp_path: Path) -> Iterator[tuple[SharedStore, OtherProcess]]:
        store, other = self.open_both(tmp_path / "store")
        list(store.scan())
        yield store, other
        other.close()
        store.close()

    def test_nothing_is_new_at_first(self, both: tuple[SharedStore, OtherProcess]) -> None:
        store, _ = both
        assert not any(store.is_behind(shard) for shard in range(store.n_shards))
        assert store.news(0) == News([], whole=False)

    def test_what_another_writes_and_deletes_is_news_once(self, both: tuple[SharedStore, OtherProcess]) -> None:
        store, other = both
        put(store, 0, {key_of(0): frame_of(0, 50)})
        other.put(0, {key_of(1): frame_of(1, 100)}, [key_of(0), key_of(9)])
        assert store.is_behind(0)
        assert not store.is_behind(1)
        assert _told(store.news(0)) == {key_of(0): None, key_of(1): 100}
        assert not store.is_behind(0)
        assert store.news(0) == News([], whole=False)

    def test_of_several_changes_of_a_key_the_last_is_told(self, both: tuple[SharedStore, OtherProcess]) -> None:
        store, other = both
        other.put(0, {key_of(1): frame_of(1, 100), key_of(2): frame_of(2, 100)}, [])
        other.put(0, {key_of(1): frame_of(1, 60)}, [key_of(2)])
        other.put(0, {key_of(2): frame_of(2, 70)}, [])
        assert _told(store.news(0)) == {key_of(1): 60, key_of(2): 70}

    def test_own_writes_are_no_news(self, both: tuple[SharedStore, OtherProcess]) -> None:
        store, _ = both
        for n in range(5):
            put(store, 0, {key_of(n): frame_of(n, 100)}, [key_of(n - 1), key_of(77)])
            store.write(0, [], [key_of(99)])
        assert not store.is_behind(0)
        assert store.news(0).changes == []

    def test_a_key_that_was_changed_here_later_is_no_news(self, both: tuple[SharedStore, OtherProcess]) -> None:
        store, other = both
        other.put(0, {key_of(1): frame_of(1, 100), key_of(2): frame_of(2, 100), key_of(3): frame_of(3, 100)}, [])
        put(store, 0, {key_of(1): frame_of(1, 50)}, [key_of(2)])
        other.put(0, {key_of(4): frame_of(4, 40)}, [])
        assert _told(store.news(0)) == {key_of(3): 100, key_of(4): 40}

    def test_a_key_that_was_changed_here_earlier_is_news(self, both: tuple[SharedStore, OtherProcess]) -> None:
        store, other = both
        put(store, 0, {key_of(1): frame_of(1, 50)})
        other.put(0, {}, [key_of(1)])
        put(store, 0, {key_of(2): frame_of(2, 50)})
        assert _told(store.news(0)) == {key_of(1): None}

    def test_a_write_of_nothing_hides_nothing(self, both: tuple[SharedStore, OtherProcess]) -> None:
        store, other = both
        store.write(0, [], [key_of(5)])
        other.put(0, {key_of(1): frame_of(1, 100)}, [])
        store.write(0, [], [key_of(5)])
        assert store.is_behind(0)
        assert _told(store.news(0)) == {key_of(1): 100}

    def test_who_is_far_behind_is_told_all_there_is(self, both: tuple[SharedStore, OtherProcess]) -> None:
        store, other = both
        put(store, 0, {key_of(0): frame_of(0, 50)})
        for n in range(1, 400):
            other.put(0, {key_of(n): frame_of(n, 100)}, [key_of(n - 50)])
        news = store.news(0)
        told = _told(news)
        there = {record.key: record.n_bytes for record in records_of(store.scan()) if record.shard == 0}
        if news.whole:
            assert told == there
        else:
            assert {key: n_bytes for key, n_bytes in told.items() if n_bytes is not None} == there
        assert not store.is_behind(0)

    def test_a_huge_batch_is_told_too(self, both: tuple[SharedStore, OtherProcess]) -> None:
        store, other = both
        frames = {key_of(n): b"%d" % n for n in range(1500)}
        other.put(1, frames, [])
        assert _told(store.news(1)) == {key: len(frame) for key, frame in frames.items()}

    def test_releasing_the_dead_hurts_nobody(self, both: tuple[SharedStore, OtherProcess]) -> None:
        store, other = both
        put(store, 0, {key_of(1): frame_of(1, 100)})
        with store.read(0, key_of(1)) as frame:
            store.release_dead()
            other.put(0, {}, [key_of(1)])
            assert frame is not None
            assert bytes(frame) == frame_of(1, 100)


def _told(news: News) -> dict[ChunkKey, int | None]:
    told: dict[ChunkKey, int | None] = {}
    for change in news.changes:
        assert isinstance(change, Change)
        assert change.key not in told
        told[change.key] = change.n_bytes
    return told
