"""Contract suites: what every Store and every Codec must do. Subclass, supply the factory, and pytest runs the suite.

class TestMyStore(StoreContract):
    persistent = True

    def open_store(self, folder: Path) -> Store:
        return MyStore(folder)
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import random
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvtier.codec.base import Codec
from kvtier.codec.pieces import Pieces, decode_chunk, encode_chunk
from kvtier.errors import FrameCorruptError, StoreFullError
from kvtier.memory import page_memory
from kvtier.store.base import Store
from kvtier.store.listing import records_of
from kvtier.types import ChunkKey, FilePages


def key_of(number: int) -> ChunkKey:
    """Distinct keys of the size and spread of real ones."""
    return ChunkKey(b"namespace-of-16b" + random.Random(number).randbytes(32))


def frame_of(number: int, n_bytes: int) -> bytes:
    """Distinct bytes that do not compress."""
    return random.Random(-1 - number).randbytes(n_bytes)


def put(store: Store, shard: int, frames: dict[ChunkKey, bytes], deletes: Sequence[ChunkKey] = ()) -> None:
    """Write a batch."""
    store.write(shard, [(key, memoryview(frame)) for key, frame in frames.items()], deletes)


class StoreContract:
    """For stores of at least two shards, whose `shard_bytes` take twenty frames of 100,000 bytes and more."""

    persistent = False
    """Whether a store opened again in the same folder has what was written."""

    def open_store(self, folder: Path) -> Store:
        """A store in `folder`; empty when the folder is."""
        raise NotImplementedError

    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[Store]:
        store = self.open_store(tmp_path / "store")
        yield store
        store.close()

    def test_a_frame_reads_back_as_it_was_put(self, store: Store) -> None:
        frames = {key_of(n): frame_of(n, n_bytes) for n, n_bytes in enumerate((1, 64, 2000, 4096, 100_000))}
        put(store, 0, frames)
        assert {key: read(store, 0, key) for key in frames} == frames

    def test_what_is_lent_is_what_is_read(self, store: Store) -> None:
        n_bytes = 100_000
        for shard in (0, 1):
            put(store, shard, {key_of(n): frame_of(n, n_bytes + n) for n in range(shard, 4, 2)})
        wanted = [(1, key_of(1)), (0, key_of(2)), (0, key_of(9)), (0, key_of(1)), (1, key_of(3)), (0, key_of(0))]
        seen: list[bytes | None] = []

        def use(frames: Sequence[FilePages | None]) -> list[bool]:
            seen.extend(None if pages is None else _read_from(pages) for pages in frames)
            return [True, False, True, True, False, False]

        assert store.lend(wanted, use) == [True, False, True, True, False, False]
        there = {(shard, key_of(n)): frame_of(n, n_bytes + n) for shard in (0, 1) for n in range(shard, 4, 2)}
        assert seen in ([None] * len(wanted), [there.get(place) for place in wanted])

    def test_what_is_lent_stays_what_it_is_until_it_was_used(self, store: Store) -> None:
        put(store, 0, {key_of(0): frame_of(0, 100_000)})
        seen: list[bytes | None] = []

        def use(frames: Sequence[FilePages | None]) -> list[bool]:
            for n in range(1, 4):  # room is used again a transaction after it was given back, at the earliest
                store.write(0, [(key_of(n), memoryview(frame_of(n, 100_000)))], [key_of(n - 1)])
            seen.extend(None if pages is None else _read_from(pages) for pages in frames)
            return [True]

        assert store.lend([(0, key_of(0))], use) == [True]
        assert seen in ([None], [frame_of(0, 100_000)])

    def test_an_absent_key_reads_as_none(self, store: Store) -> None:
        assert read(store, 0, key_of(1)) is None

    def test_a_key_is_only_in_the_shard_it_was_put_in(self, store: Store) -> None:
        put(store, 1, {key_of(1): frame_of(1, 100)})
        assert read(store, 0, key_of(1)) is None
        assert read(store, 1, key_of(1)) == frame_of(1, 100)

    def test_a_borrowed_view_cannot_be_written_and_dies_with_its_block(self, store: Store) -> None:
        put(store, 0, {key_of(1): frame_of(1, 100)})
        with store.read(0, key_of(1)) as view:
            assert view is not None
            assert view.readonly
        with pytest.raises(ValueError, match="released"):
            bytes(view)

    def test_an_error_inside_the_block_comes_out_as_it_is(self, store: Store) -> None:
        put(store, 0, {key_of(1): frame_of(1, 100)})
        with pytest.raises(ZeroDivisionError), store.read(0, key_of(1)):
            raise ZeroDivisionError
        assert read(store, 0, key_of(1)) == frame_of(1, 100)

    def test_putting_a_present_key_replaces_its_frame(self, store: Store) -> None:
        put(store, 0, {key_of(1): frame_of(1, 50_000)})
        put(store, 0, {key_of(1): frame_of(2, 70)})
        assert read(store, 0, key_of(1)) == frame_of(2, 70)
        assert [record.n_bytes for record in records_of(store.scan())] == [70]

    def test_of_a_key_put_twice_in_a_batch_the_last_frame_stays(self, store: Store) -> None:
        store.write(0, [(key_of(1), memoryview(frame_of(n, 50 + n))) for n in (1, 2)], [])
        assert read(store, 0, key_of(1)) == frame_of(2, 52)
        assert len(list(records_of(store.scan()))) == 1

    def test_a_deleted_key_is_gone(self, store: Store) -> None:
        put(store, 0, {key_of(n): frame_of(n, 100) for n in range(3)})
        store.write(0, [], [key_of(1)])
        assert read(store, 0, key_of(1)) is None
        assert {record.key for record in records_of(store.scan())} == {key_of(0), key_of(2)}

    def test_deleting_an_absent_key_is_no_error(self, store: Store) -> None:
        put(store, 0, {key_of(1): frame_of(1, 100)}, [key_of(9)])
        assert read(store, 0, key_of(1)) == frame_of(1, 100)

    def test_deletes_come_before_puts(self, store: Store) -> None:
        put(store, 0, {key_of(1): frame_of(1, 100)})
        put(store, 0, {key_of(1): frame_of(2, 100)}, [key_of(1)])
        assert read(store, 0, key_of(1)) == frame_of(2, 100)

    def test_a_batch_of_nothing_changes_nothing(self, store: Store) -> None:
        store.write(0, [], [])
        assert list(records_of(store.scan())) == []

    def test_scan_lists_every_frame_with_its_shard_size_and_time(self, store: Store) -> None:
        before_ns = time.time_ns()
        sizes = {(key_of(n), n % 2): 10 + n for n in range(50)}
        for (key, shard), n_bytes in sizes.items():
            put(store, shard, {key: frame_of(0, n_bytes)})
        listings = list(store.scan())
        assert all(len(listing.keys) == len(listing) * listing.key_bytes > 0 for listing in listings)
        records = list(records_of(listings))
        assert {(record.key, record.shard): record.n_bytes for record in records} == sizes
        assert all(before_ns <= record.written_ns <= time.time_ns() for record in records)

    def test_a_key_in_two_shards_is_listed_twice(self, store: Store) -> None:
        for shard in (0, 1):
            put(store, shard, {key_of(1): frame_of(shard, 100)})
        assert sorted(record.shard for record in records_of(store.scan())) == [0, 1]

    def test_frames_are_found_by_their_age(self, store: Store) -> None:
        put(store, 0, {key_of(1): frame_of(1, 100), key_of(2): frame_of(2, 100)})
        between_ns = time.time_ns()
        put(store, 0, {key_of(2): frame_of(2, 50), key_of(3): frame_of(3, 100)})
        assert store.written_before(0, between_ns) == [key_of(1)]
        assert store.written_before(0, 0) == []
        assert sorted(store.written_before(0, time.time_ns() + 1)) == sorted(map(key_of, (1, 2, 3)))

    def test_frames_up_to_the_stated_bytes_fit(self, store: Store) -> None:
        n_frames = store.shard_bytes // store.frame_cost(100_000)
        for n in range(n_frames):
            put(store, 0, {key_of(n): frame_of(n, 100_000)})
        assert sum(1 for _ in records_of(store.scan())) == n_frames

    def test_a_batch_too_large_puts_nothing_and_still_deletes(self, store: Store) -> None:
        put(store, 0, {key_of(n): frame_of(n, 1000) for n in range(3)})
        frame = frame_of(0, 100_000)
        too_many = {key_of(100 + n): frame for n in range(2 * store.shard_bytes // len(frame) + 2)}
        with pytest.raises(StoreFullError):
            put(store, 0, too_many, [key_of(0)])
        assert {record.key for record in records_of(store.scan())} == {key_of(1), key_of(2)}
        assert read(store, 0, key_of(2)) == frame_of(2, 1000)

    def test_a_full_shard_takes_frames_again_after_deletes(self, store: Store) -> None:
        n = 0
        try:
            while True:
                put(store, 0, {key_of(n): frame_of(n, 100_000)})
                n += 1
        except StoreFullError:
            store.write(0, [], [key_of(m) for m in range(n)])
        for m in range(n, n + 5):
            put(store, 0, {key_of(m): frame_of(m, 100_000)})
        assert {record.key for record in records_of(store.scan())} == {key_of(m) for m in range(n, n + 5)}

    def test_a_full_shard_says_nothing_about_another(self, store: Store) -> None:
        frame = frame_of(0, 100_000)
        with pytest.raises(StoreFullError):
            put(store, 0, {key_of(n): frame for n in range(2 * store.shard_bytes // len(frame) + 2)})
        put(store, 1, {key_of(0): frame})
        assert read(store, 1, key_of(0)) == frame

    def test_random_replacement_within_the_stated_bytes_never_finds_a_shard_full(self, store: Store) -> None:
        rng = random.Random(7)
        pool = rng.randbytes(300_000)
        live: list[tuple[ChunkKey, int]] = []
        used = 0
        for n in range(1500):
            n_bytes = rng.randint(20_000, 90_000)
            deletes = []
            while used + store.frame_cost(n_bytes) > store.shard_bytes:
                key, cost = live.pop(rng.randrange(len(live)))
                deletes.append(key)
                used -= cost
            at = rng.randrange(200_000)
            store.write(0, [(key_of(n), memoryview(pool)[at : at + n_bytes])], deletes)
            live.append((key_of(n), store.frame_cost(n_bytes)))
            used += store.frame_cost(n_bytes)
        assert {record.key for record in records_of(store.scan())} == {key for key, _ in live}

    def test_cost_covers_the_frame_and_grows_with_it(self, store: Store) -> None:
        costs = [store.frame_cost(n_bytes) for n_bytes in range(0, 70_000, 500)]
        assert costs == sorted(costs)
        assert all(store.frame_cost(n_bytes) >= n_bytes for n_bytes in (0, 1, 4096, 1 << 20))

    def test_writers_and_readers_on_many_threads_lose_nothing_and_see_whole_frames(self, store: Store) -> None:
        torn = threading.Event()
        versions = {frame_of(version, 30_000) for version in range(8)}
        put(store, 0, {key_of(0): frame_of(0, 30_000)})

        def replace(worker: int) -> None:
            for n in range(25):
                put(store, 0, {key_of(0): frame_of((worker + n) % 8, 30_000)})
                put(store, n % 2, {key_of(1 + 25 * worker + n): frame_of(n, 500)})

        def look(_: int) -> None:
            for _n in range(200):
                if read(store, 0, key_of(0)) not in versions:
                    torn.set()

        with ThreadPoolExecutor(4) as pool:
            jobs = [pool.submit(work, n) for n in range(2) for work in (replace, look)]
            for job in jobs:
                job.result()
        assert not torn.is_set()
        assert {record.key for record in records_of(store.scan())} == {key_of(n) for n in range(51)}

    def test_sync_may_be_called_at_any_time(self, store: Store) -> None:
        store.sync()
        put(store, 0, {key_of(1): frame_of(1, 100)})
        store.sync()
        store.sync()
        assert read(store, 0, key_of(1)) == frame_of(1, 100)

    def test_what_was_written_is_there_when_opened_again(self, tmp_path: Path) -> None:
        if not self.persistent:
            pytest.skip("forgets with the process, as it says")
        store = self.open_store(tmp_path / "store")
        put(store, 0, {key_of(n): frame_of(n, 3000 * n) for n in range(1, 20)})
        put(store, 1, {key_of(99): frame_of(99, 10)})
        store.write(0, [], [key_of(7)])
        before = sorted(records_of(store.scan()))
        store.close()
        again = self.open_store(tmp_path / "store")
        try:
            assert sorted(records_of(again.scan())) == before
            assert all(read(again, 0, key_of(n)) == frame_of(n, 3000 * n) for n in range(1, 20) if n != 7)
        finally:
            again.close()


def _read_from(pages: FilePages) -> bytes:
    memory = page_memory(pages.length)[: pages.length]
    assert os.preadv(pages.descriptor, [memory], pages.offset) == pages.length
    return bytes(memory[pages.skip : pages.skip + pages.n_bytes])


def read(store: Store, shard: int, key: ChunkKey) -> bytes | None:
    """A copy of a frame."""
    with store.read(shard, key) as frame:
        return None if frame is None else bytes(frame)


_skewed = st.builds(
    lambda seed, n_bytes: bytes(random.Random(seed).choices(b"\x3d\x3e\x3f\xbd\xbe\xbf", k=n_bytes)),
    st.integers(0, 9),
    st.integers(0, 5000),
)
CHUNKS = st.binary(max_size=600) | _skewed | st.builds(bytes, st.integers(0, 5000))


# A suite is run once for each codec, so each of its properties is, rightly, run for several classes.
_inherited = settings(suppress_health_check=[HealthCheck.differing_executors])


class CodecContract:
    """For every codec: any bytes survive, hostile payloads do not."""

    def make_codec(self) -> Codec:
        """The codec under test."""
        raise NotImplementedError

    def test_id_fits_a_byte(self) -> None:
        assert 0 <= self.make_codec().codec_id <= 255

    @_inherited
    @given(CHUNKS)
    def test_any_bytes_come_back(self, chunk: bytes) -> None:
        assert decode(self.make_codec(), encode(self.make_codec(), chunk), len(chunk)) == chunk

    @_inherited
    @given(CHUNKS)
    def test_equal_chunks_give_equal_payloads(self, chunk: bytes) -> None:
        assert encode(self.make_codec(), chunk) == encode(self.make_codec(), chunk)

    @_inherited
    @given(CHUNKS)
    def test_encoding_stays_within_its_bound_and_leaves_the_chunk_alone(self, chunk: bytes) -> None:
        codec = self.make_codec()
        bound = codec.bound(len(chunk))
        source, room = bytearray(chunk), bytearray(b"\xa5" * (bound + 64))
        n_bytes = codec.encode_into(memoryview(source), memoryview(room)[:bound])
        assert n_bytes <= bound
        assert room[bound:] == b"\xa5" * 64
        assert source == chunk

    @_inherited
    @given(CHUNKS)
    def test_decoding_stays_within_its_destination(self, chunk: bytes) -> None:
        codec = self.make_codec()
        room = bytearray(b"\xa5" * (len(chunk) + 64))
        codec.decode_into(memoryview(encode(codec, chunk)), memoryview(room)[: len(chunk)])
        assert room == chunk + b"\xa5" * 64

    @pytest.mark.parametrize("offset", [1, 2, 3])
    def test_buffers_may_begin_at_any_address(self, offset: int) -> None:
        codec, chunk = self.make_codec(), bytes(range(256)) * 20 + b"\x01"
        source = memoryview(bytes(offset) + chunk)[offset:]
        room = memoryview(bytearray(offset + codec.bound(len(chunk))))[offset:]
        n_bytes = codec.encode_into(source, room)
        out = memoryview(bytearray(offset + len(chunk)))[offset:]
        codec.decode_into(room[:n_bytes], out)
        assert out == chunk

    @_inherited
    @given(CHUNKS, st.lists(st.integers(0, 90), max_size=9), st.integers(0, 5))
    def test_a_chunk_in_pieces_gives_the_payload_of_the_whole_and_comes_back(
        self, chunk: bytes, lengths: list[int], gap: int
    ) -> None:
        codec = self.make_codec()
        source, target = Scattered(chunk, lengths, gap), Scattered(bytes(len(chunk)), lengths, gap)
        payload = bytearray(codec.bound(len(chunk)))
        n_bytes = encode_chunk(codec, source.pieces, memoryview(payload))
        assert payload[:n_bytes] == encode(codec, chunk)
        decode_chunk(codec, memoryview(payload)[:n_bytes], target.pieces)
        assert target.content == chunk
        assert target.between == source.between == Scattered.BETWEEN * len(source.between)

    @_inherited
    @given(CHUNKS, st.data())
    def test_a_payload_cut_short_does_not_decode(self, chunk: bytes, data: st.DataObject) -> None:
        payload = encode(self.make_codec(), chunk)
        if payload:
            n_bytes = data.draw(st.integers(0, len(payload) - 1))
            with pytest.raises(FrameCorruptError):
                decode(self.make_codec(), payload[:n_bytes], len(chunk))

    @_inherited
    @given(CHUNKS, st.integers(-40, 40).filter(bool))
    def test_a_payload_does_not_decode_to_another_length(self, chunk: bytes, more: int) -> None:
        if len(chunk) + more >= 0:
            with pytest.raises(FrameCorruptError):
                decode(self.make_codec(), encode(self.make_codec(), chunk), len(chunk) + more)

    @settings(_inherited, max_examples=300)
    @given(st.binary(max_size=300), st.integers(0, 300))
    def test_garbage_either_fills_the_destination_or_is_corrupt(self, payload: bytes, n_bytes: int) -> None:
        room = bytearray(b"\xa5" * (n_bytes + 64))
        with contextlib.suppress(FrameCorruptError):
            self.make_codec().decode_into(memoryview(payload), memoryview(room)[:n_bytes])
        assert room[n_bytes:] == b"\xa5" * 64

    @_inherited
    @given(CHUNKS.filter(len), st.data())
    def test_a_damaged_payload_allocates_no_more_than_the_destination(self, chunk: bytes, data: st.DataObject) -> None:
        codec = self.make_codec()
        payload = bytearray(encode(codec, chunk))
        at = data.draw(st.integers(max(0, len(payload) - 40), len(payload) - 1))
        payload[at] ^= data.draw(st.integers(1, 255))
        out = memoryview(bytearray(len(chunk)))

        def attempt() -> None:
            with contextlib.suppress(FrameCorruptError):
                codec.decode_into(memoryview(payload), out)

        assert _peak_bytes(attempt) <= 2 * len(chunk) + 64_000

    def test_one_codec_works_on_many_threads_at_once(self) -> None:
        codec = self.make_codec()
        chunks = [bytes(random.Random(n).choices(b"\x00\x3e\x3f\xbf", k=200_000 + n)) for n in range(8)]

        def there_and_back(n: int) -> bool:
            return all(decode(codec, encode(codec, chunks[n]), len(chunks[n])) == chunks[n] for _ in range(5))

        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(there_and_back, range(8)))

    def test_after_the_first_chunk_nothing_large_is_allocated(self) -> None:
        codec = self.make_codec()
        chunk = memoryview(bytes(random.Random(1).choices(b"\x00\x3e\x3f\xbf", k=1 << 20)))
        room = memoryview(bytearray(codec.bound(len(chunk))))
        out = memoryview(bytearray(len(chunk)))

        def there_and_back() -> None:
            codec.decode_into(room[: codec.encode_into(chunk, room)], out)

        there_and_back()
        assert _peak_bytes(there_and_back) < 64_000
        assert out == chunk


class Scattered:
    """A chunk in pieces of so many bytes, the last of them as often as it takes, with `gap` bytes between them."""

    BETWEEN = b"\xa5"

    def __init__(self, chunk: bytes, lengths: Sequence[int] = (), gap: int = 0) -> None:
        self._memory = bytearray()
        self._places: list[slice] = []
        at = 0
        for length in itertools.chain(lengths, itertools.repeat((lengths or [7])[-1] or 7)):
            if at == len(chunk):
                break
            begin = len(self._memory)
            self._memory += chunk[at : at + length]
            self._places.append(slice(begin, len(self._memory)))
            self._memory += self.BETWEEN * gap
            at = min(len(chunk), at + length)

    @property
    def pieces(self) -> Pieces:
        """Where it lies, for as long as this lives."""
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory)) if self._memory else 0
        return Pieces([(address + place.start, place.stop - place.start) for place in self._places])

    @property
    def content(self) -> bytes:
        """The chunk as it is now."""
        return b"".join(self._memory[place] for place in self._places)

    @property
    def between(self) -> bytes:
        """What is between the pieces now."""
        rest = bytearray(self._memory)
        for place in reversed(self._places):
            del rest[place]
        return bytes(rest)


def encode(codec: Codec, chunk: bytes) -> bytes:
    """A chunk's payload."""
    room = memoryview(bytearray(codec.bound(len(chunk))))
    return bytes(room[: codec.encode_into(memoryview(chunk), room)])


def decode(codec: Codec, payload: bytes, n_bytes: int) -> bytes:
    """The chunk of a payload."""
    out = bytearray(n_bytes)
    codec.decode_into(memoryview(payload), memoryview(out))
    return bytes(out)


def _peak_bytes(action: Callable[[], None]) -> int:
    """Most memory that Python and numpy held at once for `action`."""
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
