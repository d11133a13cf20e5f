# SPDX-License-Identifier: Apache-2.0
"""Memory limits of the control groups that the process is in: version 2 and version 1, from its own group to the root.

Every group on that path limits what lies below it, so the smallest counts. A container sees its own group as the root
of what is mounted; systemd's MemoryMax and a container inside a container are groups further down.
"""

from dataclasses import dataclass
from pathlib import Path, PurePosixPath


@dataclass(frozen=True)
class MemoryLimit:
    """One group's limit, and what can still be taken within it: what it uses but for cached files is gone."""

    limit_bytes: int
    free_bytes: int


@dataclass(frozen=True)
class _Version:
    """The names that one version of the interface gives its files; ``cached`` is a field of memory.stat."""

    limit: str
    used: str
    cached: str


_VERSION_2 = _Version("memory.max", "memory.current", "file")
_VERSION_1 = _Version("memory.limit_in_bytes", "memory.usage_in_bytes", "total_cache")
_NO_LIMIT = 1 << 60
"""Version 1 has no word for "none" and writes the largest multiple of a page."""


def memory_limits(root: Path = Path("/")) -> list[MemoryLimit]:
    """Every limit that is set on the process's path; empty where there is none, or nothing to read.

    ``root`` stands before /proc and before the mount points, for tests.
    """
    mounts = _mounts(root)
    found = []
    for line in read_lines(root / "proc/self/cgroup"):
        number, controllers, path = ([*line.split(":", 2), "", ""])[:3]
        version = _VERSION_2 if number == "0" and not controllers else _VERSION_1
        if version is _VERSION_1 and "memory" not in controllers.split(","):
            continue
        for mounted, place in mounts.get("cgroup2" if version is _VERSION_2 else "cgroup", []):
            groups = (_limit(directory, version) for directory in _path_to_root(root, mounted, place, path))
            found += [group for group in groups if group is not None]
    return found


def read_lines(path: Path) -> list[str]:
    """The lines of a file of the system; none if there is no such file."""
    try:
        return path.read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return []


def _mounts(root: Path) -> dict[str, list[tuple[str, str]]]:
    """File system type -> (the group that is mounted, where) for every hierarchy that may hold memory limits.

    A line of mountinfo: id, parent, device, root, mount point, options, ..., "-", type, source, options.
    """
    found: dict[str, list[tuple[str, str]]] = {}
    for line in read_lines(root / "proc/self/mountinfo"):
        before, _, after = line.partition(" - ")
        fields, types = before.split(), after.split()
        if len(fields) < 5 or len(types) < 3:
            continue
        if types[0] == "cgroup2" or (types[0] == "cgroup" and "memory" in types[2].split(",")):
            found.setdefault(types[0], []).append((fields[3], fields[4]))
    return found


def _path_to_root(root: Path, mounted: str, place: str, group: str) -> list[Path]:
    """The directories of a group and of those above it, as far up as the mount shows.

    ``mounted`` is the group that lies at ``place``. Where it is not above ``group`` (a container that was given a view
    of its own), the mount itself is the process's group.
    """
    try:
        below = PurePosixPath(group).relative_to(mounted).parts
    except ValueError:
        below = ()
    if ".." in below:
        below = ()
    top = root / place.lstrip("/")
    return [top.joinpath(*below[:depth]) for depth in range(len(below), -1, -1)]


def _limit(directory: Path, version: _Version) -> MemoryLimit | None:
    limit, used = _number(directory / version.limit), _number(directory / version.used)
    if limit is None or used is None or limit >= _NO_LIMIT:
        return None
    lines = (line.split() for line in read_lines(directory / "memory.stat"))
    cached = sum(int(fields[1]) for fields in lines if len(fields) == 2 and fields[0] == version.cached)
    return MemoryLimit(limit, max(limit - used + cached, 0))


def _number(path: Path) -> int | None:
    lines = read_lines(path)
    return int(lines[0]) if lines and lines[0].isdigit() else None
