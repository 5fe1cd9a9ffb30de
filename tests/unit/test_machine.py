"""Reading a machine: on a made-up /proc and /sys, and on the real one."""

from __future__ import annotations

import os
import resource

import pytest

from kvtier.machine import DiskSpace, Machine

GIB = 1 << 30


@pytest.fixture
def root(tmp_path):
    """A machine with 64 GiB of RAM, 48 of them available, and no cgroup."""
    write(tmp_path / "proc/meminfo", f"MemTotal: {64 << 20} kB\nMemFree: 1 kB\nMemAvailable: {48 << 20} kB\n")
    write(tmp_path / "proc/self/status", "CapEff:\t0000000000000000\n")
    (tmp_path / "dev/shm").mkdir(parents=True)
    return tmp_path


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(str(text))


def cgroup(root, folder, *, limit, used=0, cache=0, v1=False):
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    limit_name, used_name, cache_name = names if v1 else ("memory.max", "memory.current", "inactive_file")
    group = root / "sys/fs/cgroup" / ("memory" if v1 else "") / folder
    write(group / limit_name, f"{limit}\n")
    write(group / used_name, f"{used}\n")
    write(group / "memory.stat", f"anon 1\n{cache_name} {cache}\n")


def ram(root):
    machine = Machine.here(root)
    return machine.ram_bytes / GIB, machine.ram_available_bytes / GIB


def test_ram_is_what_the_kernel_says(root):
    assert ram(root) == (64, 48)


def test_a_container_limit_is_the_ram_and_its_page_cache_is_available(root):
    write(root / "proc/self/cgroup", "0::/pod/app\n")
    cgroup(root, "pod/app", limit=16 * GIB, used=6 * GIB, cache=2 * GIB)
    assert ram(root) == (16, 12)


def test_the_tightest_group_on_the_way_up_counts(root):
    write(root / "proc/self/cgroup", "0::/pod/app\n")
    cgroup(root, "pod/app", limit=32 * GIB, used=1 * GIB)
    cgroup(root, "pod", limit=40 * GIB, used=30 * GIB)
    assert ram(root) == (32, 10)


def test_a_group_without_limit_changes_nothing(root):
    write(root / "proc/self/cgroup", "0::/app\n")
    cgroup(root, "app", limit="max", used=6 * GIB)
    assert ram(root) == (64, 48)


def test_a_full_group_has_nothing_available_rather_than_less(root):
    write(root / "proc/self/cgroup", "0::/\n")
    cgroup(root, "", limit=8 * GIB, used=9 * GIB)
    assert ram(root) == (8, 0)


def test_version_1_groups_count_too(root):
    write(root / "proc/self/cgroup", "4:cpu:/x\n3:memory:/docker/abc\n")
    cgroup(root, "docker/abc", limit=16 * GIB, used=6 * GIB, cache=2 * GIB, v1=True)
    assert ram(root) == (16, 12)


def test_a_version_1_group_known_by_its_name_outside_is_found_at_the_mount(root):
    write(root / "proc/self/cgroup", "3:memory:/docker/abc\n")
    cgroup(root, "", limit=16 * GIB, used=4 * GIB, v1=True)
    assert ram(root) == (16, 12)


def test_the_huge_number_of_version_1_is_no_limit(root):
    write(root / "proc/self/cgroup", "3:memory:/\n")
    cgroup(root, "", limit=9223372036854771712, v1=True)
    assert ram(root) == (64, 48)


def test_garbage_in_proc_does_not_raise(root):
    write(root / "proc/self/cgroup", "\n:::\nnonsense\n0::/../../..\n")
    write(root / "proc/meminfo", "?\n")
    assert Machine.here(root).ram_bytes > 0


def test_a_machine_without_dev_shm_has_none(tmp_path):
    machine = Machine.here(tmp_path)
    assert (machine.shm_bytes, machine.shm_free_bytes) == (0, 0)


def test_the_memlock_limit_does_not_bind_who_may_lock_at_will(root, monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (8 << 20, 8 << 20))
    bound = Machine.here(root).memlock_bytes
    write(root / "proc/self/status", "CapEff:\t0000000000004000\n")
    assert (bound, Machine.here(root).memlock_bytes) == (8 << 20, None)


def test_no_memlock_limit_is_none(root, monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert Machine.here(root).memlock_bytes is None


def test_a_gpu_is_a_device_node(root):
    before = Machine.here(root).has_gpu
    write(root / "dev/nvidiactl", "")
    assert (before, Machine.here(root).has_gpu) == (False, True)


def test_the_real_machine_makes_sense():
    machine = Machine.here()
    assert 0 < machine.ram_available_bytes <= machine.ram_bytes
    assert 0 <= machine.shm_free_bytes <= machine.shm_bytes


def test_a_directory_that_is_not_there_yet_is_judged_by_the_one_above(tmp_path):
    here, below = DiskSpace.at(tmp_path), DiskSpace.at(tmp_path / "a/b/c")
    assert below.total_bytes == here.total_bytes > 0
    assert (below.fs_type, below.writable, below.held_bytes) == (here.fs_type, True, 0)


def test_what_a_directory_holds_is_what_its_files_occupy(tmp_path):
    (tmp_path / "shard-0").mkdir()
    sparse, dense = tmp_path / "shard-0/sparse", tmp_path / "dense"
    with sparse.open("wb") as file:
        file.truncate(1 << 30)
    dense.write_bytes(os.urandom(1 << 20))
    dense_bytes = dense.stat().st_blocks * 512
    assert dense_bytes <= DiskSpace.at(tmp_path).held_bytes < dense_bytes + (1 << 20)


def test_a_file_in_place_of_the_directory_cannot_be_written(tmp_path):
    (tmp_path / "kv").write_text("")
    assert not DiskSpace.at(tmp_path / "kv/disk").writable


def test_a_directory_without_permission_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)  # chmod would not stop root, who may run this
    assert not DiskSpace.at(tmp_path).writable


MOUNTS = """\
22 1 254:0 / / rw - ext4 /dev/vda rw
23 22 0:5 / /data rw - nfs4 server:/data rw
24 22 0:6 / /data/fast\\040disk rw - tmpfs none rw
25 22 0:7 / /data rw shared:1 - overlay over rw
26 22 0:8 / /database rw - fuse.s3fs s3 rw
broken line
"""


@pytest.mark.parametrize(
    ("path", "fs_type"),
    [("/home/x", "ext4"), ("/data/kv", "overlay"), ("/data/fast disk/kv", "tmpfs"), ("/database", "fuse.s3fs")],
)
def test_the_file_system_is_the_innermost_and_latest_mount(root, path, fs_type, monkeypatch):
    write(root / "proc/self/mountinfo", MOUNTS)
    monkeypatch.setattr(os.path, "realpath", lambda _: path)
    assert DiskSpace.at(root, root).fs_type == fs_type


@pytest.mark.parametrize(
    ("fs_type", "kind"),
    [
        ("nfs4", "network"),
        ("9p", "network"),
        ("fuse.s3fs", "network"),
        ("cifs", "network"),
        ("tmpfs", "memory"),
        ("overlay", "layer"),
        ("fuse.fuse-overlayfs", "layer"),
        ("ext4", ""),
        ("xfs", ""),
        ("fuseblk", ""),
        ("", ""),
    ],
)
def test_file_systems_that_do_not_suit_are_known(fs_type, kind, tmp_path):
    space = DiskSpace(path=tmp_path, total_bytes=1, free_bytes=1, held_bytes=0, fs_type=fs_type, writable=True)
    found = {"network": space.is_network, "memory": space.is_memory, "layer": space.is_layer}
    assert [name for name, is_it in found.items() if is_it] == ([kind] if kind else [])
