# SPDX-License-Identifier: Apache-2.0
"""Memory limits of control groups, read from trees that look as the kernel shows them."""

from pathlib import Path

import pytest

from linnet.api.control_groups import MemoryLimit, memory_limits

MIB = 1 << 20
MOUNT_2 = "30 23 0:26 {root} /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
MOUNT_1 = "41 30 0:37 {root} /sys/fs/cgroup/memory ro,nosuid master:18 - cgroup cgroup rw,memory\n"
OTHER_1 = "40 30 0:36 / /sys/fs/cgroup/cpu ro,nosuid master:17 - cgroup cgroup rw,cpu,cpuacct\n"
UNLIMITED_1 = 0x7FFFFFFFFFFFF000


def system(root: Path, groups: str, mounts: str, limits: dict[str, tuple[str, int, int, int]]) -> Path:
    """``limits``: directory -> (version, limit or -1 for none, bytes used, bytes of cached files)."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(groups)
    (root / "proc/self/mountinfo").write_text("22 1 8:1 / / rw - ext4 /dev/sda1 rw\n" + mounts)
    for name, (version, limit, used, cached) in limits.items():
        directory = root / name
        directory.mkdir(parents=True, exist_ok=True)
        if version == "2":
            (directory / "memory.max").write_text("max\n" if limit < 0 else f"{limit}\n")
            (directory / "memory.current").write_text(f"{used}\n")
            (directory / "memory.stat").write_text(f"anon 5\nfile {cached}\nfile_mapped 7\n")
        else:
            (directory / "memory.limit_in_bytes").write_text(f"{UNLIMITED_1 if limit < 0 else limit}\n")
            (directory / "memory.usage_in_bytes").write_text(f"{used}\n")
            (directory / "memory.stat").write_text(f"cache 1\nrss 5\ntotal_cache {cached}\n")
    return root


def test_a_nested_group_of_version_2(tmp_path: Path) -> None:
    """systemd's MemoryMax on a service: the root has no limit file, the slice none set, the service one."""
    root = system(
        tmp_path,
        "0::/system.slice/linnet.service\n",
        MOUNT_2.format(root="/"),
        {
            "sys/fs/cgroup/system.slice": ("2", -1, 900 * MIB, 0),
            "sys/fs/cgroup/system.slice/linnet.service": ("2", 512 * MIB, 300 * MIB, 100 * MIB),
        },
    )
    assert memory_limits(root) == [MemoryLimit(512 * MIB, 312 * MIB)]


def test_every_group_on_the_path_counts(tmp_path: Path) -> None:
    """Nested groups of version 2 (K16)."""
    root = system(
        tmp_path,
        "0::/a/b\n",
        MOUNT_2.format(root="/"),
        {"sys/fs/cgroup/a": ("2", 100 * MIB, 90 * MIB, 0), "sys/fs/cgroup/a/b": ("2", 200 * MIB, 10 * MIB, 0)},
    )
    assert memory_limits(root) == [MemoryLimit(200 * MIB, 190 * MIB), MemoryLimit(100 * MIB, 10 * MIB)]


def test_a_container_sees_its_group_as_the_root(tmp_path: Path) -> None:
    limits = {"sys/fs/cgroup": ("2", 256 * MIB, 300 * MIB, 0)}
    assert memory_limits(system(tmp_path, "0::/\n", MOUNT_2.format(root="/"), limits)) == [MemoryLimit(256 * MIB, 0)]


@pytest.mark.parametrize("mounted", ["/docker/c0ffee", "/", "/elsewhere"])
def test_a_container_under_version_1(mounted: str, tmp_path: Path) -> None:
    """The mount shows the container's group, or the root's, or something that is not on the path (K16)."""
    place = "sys/fs/cgroup/memory" + ("/docker/c0ffee" if mounted == "/" else "")
    root = system(
        tmp_path,
        "5:cpu,cpuacct:/docker/c0ffee\n4:memory:/docker/c0ffee\n1:name=systemd:/\n0::/\n",
        OTHER_1 + MOUNT_1.format(root=mounted),
        {"sys/fs/cgroup/memory": ("1", -1, 0, 0), place: ("1", 1024 * MIB, 600 * MIB, 200 * MIB)},
    )
    assert memory_limits(root) == [MemoryLimit(1024 * MIB, 624 * MIB)]


def test_no_limit_and_nothing_to_read(tmp_path: Path) -> None:
    assert memory_limits(tmp_path / "nothing") == []
    root = system(tmp_path / "1", "4:memory:/\n", MOUNT_1.format(root="/"), {"sys/fs/cgroup/memory": ("1", -1, 1, 0)})
    assert memory_limits(root) == []
    root = system(tmp_path / "2", "odd\n0::/../x\n", "short\n" + MOUNT_2.format(root="/"), {})
    assert memory_limits(root) == []


def test_this_machine_can_be_asked() -> None:
    assert all(group.free_bytes >= 0 for group in memory_limits())
