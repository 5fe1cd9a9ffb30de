"""What the cache machine plays with: requests and copies as an engine knows them, and a purse for writes."""

from dataclasses import dataclass, field

from kvtier.residency import Chain, Resident
from kvtier.types import ChunkKey, Miss

TROUBLES = [None, None, None, None, Miss.CORRUPT, Miss.FOREIGN, Miss.LOAD_FAILED, Miss.GATE]
OUTCOMES = [*["ok"] * 12, "full", "error", "error after the fact"]


def frame_bytes(key: ChunkKey) -> int:
    return 5 + sum(key) % 25


@dataclass(eq=False)
class Request:
    """What the engine knows of one request."""

    text: str
    n_device: int  # chunks of the head that the device has: not looked up
    chain: Chain
    hits: list[ChunkKey] = field(default_factory=list)  # of the last walk, if it may be loaded now
    promised: dict[ChunkKey, Resident] = field(default_factory=dict)
    seen_step: int = 0
    n_offered: int = 0
    loading: bool = False


@dataclass(eq=False)
class Copy:
    """A copy between device and host, in flight."""

    request: Request
    keys: list[ChunkKey]
    slots: list[int]
    ends_step: int | None = None  # after a reset nobody says when it ends: it touches its slots until this step


@dataclass
class Purse:
    """A write budget of so many bytes in all."""

    left_bytes: int

    def take(self, n_bytes: int) -> bool:
        paid = n_bytes <= self.left_bytes
        self.left_bytes -= n_bytes * paid
        return paid

    def give_back(self, n_bytes: int) -> None:
        self.left_bytes += n_bytes
