"""A memlock limit that is too low, enforced by the kernel: what is pinned, what is said, and that the pool works on.

The driver's part is played by mlock, which the kernel refuses by the same limit. In a process of its own, since nobody
may raise a limit again and root is not bound by it before giving up CAP_IPC_LOCK.
"""

import ctypes
import json
import os
import resource
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

import torch

from kvtier.engines.vllm import compat, warm
from kvtier.engines.vllm.region import open_region, unpinned
from kvtier.engines.vllm.warm import Pin, Populate, Warmer
from kvtier.machine import Machine

SLOT = 64 << 10
"""Small: the hard limit of whoever runs this may be as low as 8 MiB."""

N_SLOTS = 12
"""Four ready at the start, then pieces of three."""

_CAPABILITIES_V3 = 0x20080522
_CAP_IPC_LOCK = 1 << 14

Outcome = dict[str, Any]


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    libc = ctypes.CDLL(None)
    monkeypatch.setattr(warm, "FIRST_BYTES", 4 * SLOT)
    monkeypatch.setattr(warm, "PIECE_BYTES", 3 * SLOT)
    monkeypatch.setattr(warm, "current_platform", SimpleNamespace(set_device=lambda _: None))
    monkeypatch.setattr(warm, "host_register", lambda at, n: libc.mlock(ctypes.c_void_p(at), ctypes.c_size_t(n)) == 0)


def limit_memlock(n_bytes: int) -> None:
    """Of this process, root or not."""
    libc = ctypes.CDLL(None)
    header = (ctypes.c_uint32 * 2)(_CAPABILITIES_V3, 0)
    held = (ctypes.c_uint32 * 6)()
    assert libc.capget(header, held) == 0
    for i in (0, 1):  # effective and permitted
        held[i] &= ~_CAP_IPC_LOCK
    assert libc.capset(header, held) == 0
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (n_bytes, n_bytes))


def in_a_child(act: Callable[[], Outcome]) -> Outcome:
    """What `act` returns, called in a fork of this process."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            answer = json.dumps(act())
        except BaseException as error:  # noqa: BLE001 - a child of a test runner must not go on as one
            answer = json.dumps({"raised": repr(error)})
        os.write(write, answer.encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        outcome: Outcome = json.load(pipe)
    os.waitpid(pid, 0)
    return outcome


def warmed(limit_bytes: int) -> Outcome:
    """Make a pool ready under a limit, and write to all of it that is."""

    def act() -> Outcome:
        limit_memlock(limit_bytes)
        name = f"memlock-{os.getpid()}"
        with warm.lazy_region():
            region = open_region(name, num_chunks=N_SLOTS, rank=0, bytes_per_chunk=SLOT, page_bytes=SLOT)
        Path(compat.region_path(name)).unlink()
        said: list[str] = []
        pin = Pin(region, Populate(region, SLOT), torch.device("cpu"))
        warmer = Warmer(N_SLOTS, SLOT, pin, said.append)
        warmer.begin()
        warmer._run()
        if not region.is_pinned:
            said.append(unpinned(Machine.here(), region.total_size_bytes))
        region.base_tensor.view(-1)[: warmer.n_ready * SLOT].fill_(7)
        return {"ready": warmer.n_ready, "pinned": region.is_pinned, "said": said}

    return in_a_child(act)


def test_a_limit_with_room_for_the_pool_is_not_mentioned() -> None:
    assert warmed(16 * SLOT) == {"ready": N_SLOTS, "pinned": True, "said": []}


def test_a_limit_below_the_first_piece_leaves_all_of_the_pool_unpinned_and_says_the_number_needed() -> None:
    outcome = warmed(2 * SLOT)
    assert (outcome["ready"], outcome["pinned"]) == (N_SLOTS, False)
    (line,) = outcome["said"]
    assert "is not pinned and copies are slow: RLIMIT_MEMLOCK is only 128 KiB, and host.capacity needs 768 KiB" in line


def test_a_limit_that_a_later_piece_meets_ends_the_pool_there_and_says_the_number_needed() -> None:
    outcome = warmed(8 * SLOT)
    assert (outcome["ready"], outcome["pinned"]) == (7, True)
    (line,) = outcome["said"]
    assert "only 7 of 12 slots" in line
    assert "RLIMIT_MEMLOCK is only 512 KiB, and host.capacity needs 768 KiB: `ulimit -l unlimited`" in line
