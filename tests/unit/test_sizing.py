"""Sizing: the stated shares are never passed, what does not fit is said with numbers, and auto does not wander."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtier.config import parse
from kvtier.errors import ConfigError
from kvtier.sizing import (
    DiskSpace,
    Machine,
    Sized,
    check_disk_fits,
    check_host_fits,
    chunk_tokens,
    disk_bytes,
    host_bytes,
    size_host,
)

MIB, GIB = 1 << 20, 1 << 30

MACHINE = Machine(
    ram_bytes=64 * GIB,
    ram_available_bytes=48 * GIB,
    shm_bytes=32 * GIB,
    shm_free_bytes=30 * GIB,
    memlock_bytes=None,
    has_gpu=False,
)
SPACE = DiskSpace(
    path=Path("/nvme/kvtier"),
    total_bytes=1000 * GIB,
    free_bytes=400 * GIB,
    held_bytes=0,
    fs_type="ext4",
    writable=True,
)


def host(capacity):
    return parse({"host": {"capacity": capacity}})


def disk(capacity):
    return parse({"disk": {"path": "/nvme/kvtier", "capacity": capacity}})


def refusal(size, *args):
    with pytest.raises(ConfigError) as error:
        size(*args)
    return str(error.value)


def test_bytes_are_taken_as_written():
    assert host_bytes(host("24GiB"), MACHINE) == 24 * GIB


def test_a_percentage_of_host_is_of_ram():
    assert host_bytes(host("12.5%"), MACHINE) == 8 * GIB


def test_auto_host_is_a_quarter_of_ram():
    assert size_host(host("auto"), replace(MACHINE, shm_bytes=40 * GIB)) == Sized(16 * GIB, "auto: 25 % of 64 GiB RAM")


def test_auto_host_is_at_most_half_of_shm():
    assert size_host(host("auto"), replace(MACHINE, shm_bytes=10 * GIB)) == Sized(
        5 * GIB, "auto: 50 % of 10 GiB /dev/shm"
    )


@given(ram=st.integers(1, 1 << 50), shm=st.integers(1, 1 << 50))
def test_auto_host_never_takes_more_than_its_share(ram, shm):
    machine = replace(MACHINE, ram_bytes=ram, shm_bytes=shm)
    try:
        n_bytes = host_bytes(host("auto"), machine)
    except ConfigError:
        assert min(ram // 4, shm // 2) < MIB
    else:
        assert MIB <= n_bytes <= min(ram // 4, shm // 2)


@pytest.mark.parametrize("capacity", ["auto", "24GiB", "30%"])
def test_the_host_size_does_not_depend_on_what_is_free(capacity):
    busy = replace(MACHINE, ram_available_bytes=0, shm_free_bytes=0)
    assert host_bytes(host(capacity), busy) == host_bytes(host(capacity), MACHINE)


ENLARGE = "`mount -o remount,size=40g /dev/shm` (in a container: --shm-size=40g)"


@pytest.mark.parametrize(
    ("capacity", "message"),
    [
        (
            "40GiB",
            f"`host.capacity` is 40GiB, but /dev/shm has 32 GiB: {ENLARGE}, or make it smaller",
        ),
        ("65GiB", "`host.capacity` is 65GiB, but there are 64 GiB RAM: make it smaller, or write auto"),
        ("64KiB", "`host.capacity` is 64KiB, less than 1 MiB, the least: make it larger"),
    ],
)
def test_a_host_that_can_never_fit_is_refused_with_the_remedy(capacity, message):
    assert refusal(host_bytes, host(capacity), MACHINE) == message


def test_a_machine_without_shm_is_told_how_to_get_one():
    message = refusal(host_bytes, host("auto"), replace(MACHINE, shm_bytes=0, shm_free_bytes=0))
    assert "`host.capacity` is auto (0 B), less than 1 MiB" in message
    assert "--shm-size=2g" in message


def test_a_host_that_fits_what_is_free_passes():
    check_host_fits(host("24GiB"), MACHINE)


def test_a_host_larger_than_free_shm_is_refused_with_the_mount_that_helps():
    assert refusal(check_host_fits, host("31GiB"), MACHINE) == (
        "`host.capacity` is 31GiB, but /dev/shm has only 30 GiB of 32 GiB free now: "
        "`mount -o remount,size=33g /dev/shm` (in a container: --shm-size=33g), or make it smaller"
    )


def test_a_host_larger_than_available_ram_is_refused():
    message = refusal(check_host_fits, host("40%"), replace(MACHINE, ram_available_bytes=8 * GIB))
    assert message.startswith("`host.capacity` is 40% (25.6 GiB), but only 8 GiB of 64 GiB RAM are available now")


def test_a_disk_tier_that_is_off_takes_nothing():
    assert disk_bytes(parse({"disk": "off"}), SPACE) == 0


def test_a_percentage_of_disk_is_of_the_file_system():
    assert disk_bytes(disk("20%"), SPACE) == 200 * GIB


def test_a_disk_tier_without_room_is_refused_with_what_is_missing():
    message = refusal(check_disk_fits, disk("500GiB"), SPACE)
    assert message == (
        "`disk.capacity` is 500GiB, but /nvme/kvtier has room for 400 GiB: free 100 GiB there, make it smaller, "
        "or name another `disk.path`"
    )


def test_what_the_tier_holds_counts_as_room_for_it():
    assert disk_bytes(disk("500GiB"), replace(SPACE, held_bytes=100 * GIB)) == 500 * GIB


def test_a_tiny_disk_tier_is_refused_with_the_way_to_switch_it_off():
    assert refusal(disk_bytes, disk("15MiB"), SPACE) == (
        "`disk.capacity` is 15MiB, less than 16 MiB, the least: make it larger, or switch the tier off with `disk: off`"
    )


def test_auto_disk_is_a_fifth_of_free_space():
    n_bytes = disk_bytes(disk("auto"), replace(SPACE, free_bytes=300 * GIB))
    assert 0.875 * 60 * GIB <= n_bytes <= 60 * GIB


def test_auto_disk_is_at_most_100_gib():
    assert disk_bytes(disk("auto"), replace(SPACE, free_bytes=900 * GIB)) == 100 * GIB


def test_auto_disk_without_room_for_a_useful_tier_is_none():
    assert disk_bytes(disk("auto"), replace(SPACE, free_bytes=GIB)) == 0


BYTES = st.integers(0, 1 << 42)


@given(free=BYTES, filled=st.floats(0, 1))
def test_auto_disk_is_the_same_after_the_tier_filled_up(free, filled):
    first = disk_bytes(disk("auto"), replace(SPACE, free_bytes=free))
    held = int(first * filled)
    assert disk_bytes(disk("auto"), replace(SPACE, free_bytes=free - held, held_bytes=held)) == first


@given(free=BYTES, others=st.floats(0, 1))
def test_a_full_auto_tier_keeps_its_size_while_others_leave_as_much_room_again(free, others):
    first = disk_bytes(disk("auto"), replace(SPACE, free_bytes=free))
    left = free - first - int((free - first) * others)
    again = disk_bytes(disk("auto"), replace(SPACE, free_bytes=left, held_bytes=first))
    if left >= first * 1.25:
        assert again == first
    else:
        assert again <= first


@given(free=BYTES, overhead=st.floats(0, 0.03), restarts=st.integers(1, 20))
def test_auto_disk_does_not_creep_up_when_files_are_a_little_larger_than_allowed(free, overhead, restarts):
    first = capacity = disk_bytes(disk("auto"), replace(SPACE, free_bytes=free))
    for _ in range(restarts):
        held = min(int(capacity * (1 + overhead)), free)
        capacity = disk_bytes(disk("auto"), replace(SPACE, free_bytes=free - held, held_bytes=held))
    assert capacity == first


@given(free=BYTES, held=BYTES)
def test_auto_disk_never_passes_its_bounds(free, held):
    n_bytes = disk_bytes(disk("auto"), replace(SPACE, free_bytes=free, held_bytes=held))
    assert n_bytes <= 100 * GIB
    assert n_bytes <= max((free + held) // 5, (free + held) // 2 if held else 0)


def chunk(tokens="auto", *, block=16, per_token):
    return chunk_tokens(parse({"chunk": {"tokens": tokens}}), block_tokens=block, bytes_per_token=per_token)


@pytest.mark.parametrize(
    ("block", "per_token", "tokens"),
    [
        (16, 128 << 10, 16),  # 8B, grouped-query: one block is 2 MiB
        (16, 36_864, 64),
        (128, 23_040, 128),  # SmolLM2-135M on CPU: 2.8 MiB
        (16, 70_272, 32),  # DeepSeek-V3
        (16, 1024, 256),  # tiny KV: the token limit holds
        (512, 1024, 512),  # unless one block is larger
        (48, 20_000, 192),  # 384 would pass the token limit
    ],
)
def test_an_auto_chunk_doubles_the_block_until_two_mebibytes(block, per_token, tokens):
    assert chunk(block=block, per_token=per_token) == tokens


def test_a_written_chunk_is_taken_when_it_is_whole_blocks():
    assert chunk(96, per_token=1) == 96


@pytest.mark.parametrize(("tokens", "near"), [(100, "96 or 112"), (8, "16")])
def test_a_chunk_that_is_not_whole_blocks_is_refused_with_the_nearest(tokens, near):
    message = refusal(lambda: chunk(tokens, per_token=1))
    assert message.endswith(f"no multiple of the engine's block of 16 tokens: write {near}, or leave it out")
