"""Store: frames on a medium, in shards of fixed size. Bytes in, bytes out; who stays is decided elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

from kvtier.store.listing import Listing
from kvtier.types import ChunkKey, UsePages


class Store(Protocol):
    """Frames by key in `n_shards` bounded shards. The caller chooses the shard and remembers it.

    Called from transfer threads, several at a time; one writer per shard at a time is the caller's duty to arrange or
    bear waiting for. Every failure of the medium is a StoreError; no other exception leaves a method.
    """

    @property
    def n_shards(self) -> int:
        """Number of shards, >= 1, fixed while open."""
        ...

    @property
    def shard_bytes(self) -> int:
        """Live bytes one shard may hold. Frames count as `frame_cost(len(frame))`."""
        ...

    def frame_cost(self, n_bytes: int) -> int:
        """Bytes of `shard_bytes` that a frame of `n_bytes` takes, rounding and index included."""
        ...

    def scan(self) -> Iterator[Listing]:
        """Every frame, any order, without reading payloads. Called once, before any write.

        Listings are not empty; a shard that holds keys of several lengths has several.
        """
        ...

    def written_before(self, shard: int, before_ns: int) -> list[ChunkKey]:
        """Keys of the frames in `shard` that were written before `before_ns`, from the index alone. At any time."""
        ...

    def write(self, shard: int, puts: Sequence[tuple[ChunkKey, memoryview]], deletes: Sequence[ChunkKey]) -> None:
        """Apply deletes, then puts, to one shard.

        Atomic: after a crash or an error either all of it happened or none, save that StoreFullError (the shard has no
        room for the puts) applies the deletes, if it can, and none of the puts: space only comes back that way, and the
        caller may repeat them. Deleting an absent key is no error; putting a present key replaces it; of a key put
        twice the last frame stays.
        """
        ...

    def read(self, shard: int, key: ChunkKey) -> AbstractContextManager[memoryview | None]:
        """Borrow a frame's bytes for the length of the `with` block; None when absent. The view dies with the block.

        The bytes are as the medium gives them: only opening the frame tells whether they are the ones written.
        """
        ...

    def lend(self, wanted: Sequence[tuple[int, ChunkKey]], use: UsePages) -> list[bool]:
        """Have `use` read the pages of frames, each of a shard, by itself; what it returns.

        The pages stay what they are until it does. It is given None, and no exception ever, for any reason not to: the
        frame is absent or has no pages of its own, or the medium is sick. `read` knows more.
        """
        ...

    def sync(self) -> None:
        """Make everything written so far survive a power loss, as far as the medium promises."""
        ...

    def close(self) -> None:
        """Release handles. No call may be in flight or follow."""
        ...


class Change(NamedTuple):
    """What became of one key of a shard."""

    key: ChunkKey
    n_bytes: int | None  # stored bytes of the frame that was put; None: it was deleted


class News(NamedTuple):
    """What other processes did to a shard."""

    changes: list[Change]  # the last one for each key
    whole: bool  # `changes` is all that the shard holds: what is not among it is gone


class SharedStore(Store, Protocol):
    """A store that other processes may have open too. `scan` is where following them begins.

    `news` and `write` of one shard are called one at a time.
    """

    @property
    def opened_alone(self) -> bool:
        """Whether no other process had the store open when this one opened it."""
        ...

    def is_behind(self, shard: int) -> bool:
        """Whether others changed `shard` since its last `news`. Microseconds."""
        ...

    def news(self, shard: int) -> News:
        """What others did to `shard` since it was last asked for; keys that this process changed later are left out."""
        ...

    def release_dead(self) -> None:
        """Give back what processes that were killed while they read still hold."""
        ...
