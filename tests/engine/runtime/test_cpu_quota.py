"""What a container may use, from files as Linux and Docker have them."""

import pytest

from engine.runtime.cpu_quota import cpu_quota
from engine.runtime.device import cores_within

VERSION_2 = "30 24 0:26 {root} /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
VERSION_1 = "32 31 0:29 {root} /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
OTHERS = (
    "22 28 0:20 / /proc rw,nosuid - proc proc rw\n33 31 0:30 / /x rw - cgroup cgroup rw,memory\n"
)


@pytest.fixture
def system(tmp_path):
    """`system(groups, mounts, files)` → the root of a file system that has them."""

    def make(groups, mounts, files):
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/self/cgroup").write_text(groups)
        (tmp_path / "proc/self/mountinfo").write_text(OTHERS + mounts)
        for name, text in files.items():
            path = tmp_path / "sys/fs/cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return make


def test_version_2_in_a_container(system):
    root = system("0::/\n", VERSION_2.format(root="/"), {"cpu.max": "150000 100000\n"})
    assert cpu_quota(root) == 1.5


def test_the_tightest_of_the_groups_above_holds(system):
    files = {
        "a/cpu.max": "250000 100000\n",
        "a/b/cpu.max": "max 100000\n",
        "a/b/c/cpu.max": "400000 100000\n",
        "other/cpu.max": "10000 100000\n",
    }
    root = system("0::/a/b/c\n", VERSION_2.format(root="/"), files)
    assert cpu_quota(root) == 2.5


def test_a_group_whose_name_only_the_host_knows(system):
    files = {"cpu.max": "50000 100000\n"}
    root = system("0::/docker/1f2e\n", VERSION_2.format(root="/docker/1f2e"), files)
    assert cpu_quota(root) == 0.5


def test_version_1(system):
    files = {
        "cpu,cpuacct/docker/1f2e/cpu.cfs_quota_us": "300000\n",
        "cpu,cpuacct/docker/1f2e/cpu.cfs_period_us": "100000\n",
        "cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
        "cpu,cpuacct/cpu.cfs_period_us": "100000\n",
    }
    groups = "5:memory:/m\n2:cpu,cpuacct:/docker/1f2e\n0::/\n"
    assert cpu_quota(system(groups, VERSION_1.format(root="/"), files)) == 3.0


def test_version_1_mounted_into_a_container_under_another_name(system):
    files = {
        "cpu,cpuacct/cpu.cfs_quota_us": "200000\n",
        "cpu,cpuacct/cpu.cfs_period_us": "100000\n",
    }
    groups = "2:cpu,cpuacct:/docker/1f2e\n"
    assert cpu_quota(system(groups, VERSION_1.format(root="/docker/1f2e"), files)) == 2.0


@pytest.mark.parametrize("text", ["max 100000\n", "", "x y\n", "100000\n", "100000 0\n"])
def test_what_is_no_limit(system, text):
    root = system("0::/\n", VERSION_2.format(root="/"), {"cpu.max": text})
    assert cpu_quota(root) is None


def test_a_system_without_control_groups(tmp_path):
    assert cpu_quota(tmp_path) is None


@pytest.mark.parametrize(
    ("cores", "quota", "threads"),
    [(8, None, 8), (8, 0.5, 1), (8, 1.9, 1), (8, 2.0, 2), (8, 3.0, 2), (8, 4.5, 3), (2, 16.0, 2)],
)
def test_cores_within_a_quota(cores, quota, threads):
    assert cores_within(cores, quota) == threads
