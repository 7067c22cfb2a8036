"""What a container may use, from files as Linux and Docker have them."""

import pytest

from engine.runtime.cpu_quota import cpu_quota
from engine.runtime.device import cores_within

VERSION_2 = "30 24 0:26 {root} /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
VERSION_1 = "32 31 0:29 {root} /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
OTHERS = (
    "22 28 0:20 / /proc rw,nosuid - proc proc rw\n33 31 0:30 / /x rw - cgroup cgroup rw,memory\n"
)


V1 = "cpu,cpuacct"
CASES = {
    "version 2 in a container": ("0::/", VERSION_2, "/", {"cpu.max": "150000 100000"}, 1.5),
    "the tightest of the groups above": (
        "0::/a/b/c",
        VERSION_2,
        "/",
        {
            "a/cpu.max": "250000 100000",
            "a/b/cpu.max": "max 100000",
            "a/b/c/cpu.max": "400000 100000",
            "other/cpu.max": "10000 100000",
        },
        2.5,
    ),
    "a group whose name only the host knows": (
        "0::/docker/1f2e",
        VERSION_2,
        "/docker/1f2e",
        {"cpu.max": "50000 100000"},
        0.5,
    ),
    "version 1": (
        "5:memory:/m\n2:cpu,cpuacct:/docker/1f2e\n0::/",
        VERSION_1,
        "/",
        {
            f"{V1}/docker/1f2e/cpu.cfs_quota_us": "300000",
            f"{V1}/docker/1f2e/cpu.cfs_period_us": "100000",
            f"{V1}/cpu.cfs_quota_us": "-1",
            f"{V1}/cpu.cfs_period_us": "100000",
        },
        3.0,
    ),
    "version 1 mounted into a container under another name": (
        "2:cpu,cpuacct:/docker/1f2e",
        VERSION_1,
        "/docker/1f2e",
        {f"{V1}/cpu.cfs_quota_us": "200000", f"{V1}/cpu.cfs_period_us": "100000"},
        2.0,
    ),
    **{
        f"no limit: {text!r}": ("0::/", VERSION_2, "/", {"cpu.max": text}, None)
        for text in ("max 100000", "", "x y", "100000", "100000 0")
    },
}


@pytest.mark.parametrize("case", CASES)
def test_the_quota_is_that_of_the_tightest_group(case, tmp_path):
    groups, mounts, group, files, quota = CASES[case]
    files = {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    files |= {"proc/self/cgroup": groups, "proc/self/mountinfo": OTHERS + mounts.format(root=group)}
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    assert cpu_quota(tmp_path) == quota


def test_a_system_without_control_groups(tmp_path):
    assert cpu_quota(tmp_path) is None


@pytest.mark.parametrize(
    ("cores", "quota", "threads"),
    [(8, None, 8), (8, 0.5, 1), (8, 1.9, 1), (8, 2.0, 2), (8, 3.0, 2), (8, 4.5, 3), (2, 16.0, 2)],
)
def test_cores_within_a_quota(cores, quota, threads):
    assert cores_within(cores, quota) == threads
