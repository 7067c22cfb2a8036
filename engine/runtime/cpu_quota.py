"""The number of cores whose time the control groups of this process allow: a container's limit.

Linux shows the limit as a quota per period (kernel documentation, `cgroup-v2.rst`: `cpu.max`, and
`sched-bwc.rst`: `cpu.cfs_quota_us`). A group's limit holds for all groups below it.
"""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Return the quota in cores, such as 1.5; None if there is no limit, or the system states none.

    Args:
        root: the folder of `proc` and the mounted control groups; for tests.
    """
    found = [_read(folder) for folder in _folders(root)]
    return min((quota for quota in found if quota is not None), default=None)


def _folders(root: Path) -> Iterator[Path]:
    """Yield the folders of this process's groups that may limit CPU time, and of the groups above
    them."""
    own = _own_groups(root)
    for controllers, group, mount in _mounts(root):
        path = own.get(controllers)
        if path is None:
            continue
        # A container sees its own group as the top, whatever the group is called outside.
        inside = PurePosixPath(path)
        below = inside.relative_to(group) if inside.is_relative_to(group) else PurePosixPath()
        top = root / mount.lstrip("/")
        yield top
        for depth in range(len(below.parts)):
            yield top.joinpath(*below.parts[: depth + 1])


def _own_groups(root: Path) -> dict[str, str]:
    """Return this process's group by its hierarchy: `cpu` (version 1) and `` (version 2)."""
    groups = {}
    for line in _lines(root / "proc/self/cgroup"):
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            groups[""] = path
        elif "cpu" in controllers.split(","):
            groups["cpu"] = path
    return groups


def _mounts(root: Path) -> Iterator[tuple[str, str, str]]:
    """Yield the hierarchy, the group at its top, and the mount point of each mounted hierarchy."""
    for line in _lines(root / "proc/self/mountinfo"):
        before, _, after = line.partition(" - ")
        fields, kinds = before.split(), after.split()
        if len(fields) < 5 or not kinds:
            continue
        if kinds[0] == "cgroup2":
            yield "", fields[3], fields[4]
        elif kinds[0] == "cgroup" and "cpu" in kinds[-1].split(","):
            yield "cpu", fields[3], fields[4]


def _read(folder: Path) -> float | None:
    """Return the CPUs that one control group may use; None if it states no limit."""
    both = _lines(folder / "cpu.max")
    if both:
        return _cores(both[0].split())
    quota, period = _lines(folder / "cpu.cfs_quota_us"), _lines(folder / "cpu.cfs_period_us")
    return _cores(quota[:1] + period[:1])


def _cores(quota_and_period: list[str]) -> float | None:
    """Convert quota and period, both in microseconds; `max` and -1 stand for no limit."""
    if len(quota_and_period) != 2 or not all(text.isdigit() for text in quota_and_period):
        return None
    quota, period = map(int, quota_and_period)
    return quota / period if quota and period else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
