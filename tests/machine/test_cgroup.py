from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lissome.machine.cgroup import Throttling, control_folders, cpu_quota, memory_limit, throttling

from .conftest import CGROUP2

V1 = {
    "proc/self/cgroup": "4:memory:/docker/abc\n1:cpu,cpuacct:/docker/abc\n0::/docker/abc\n",
    "proc/self/mountinfo": (
        "31 23 0:28 /docker/abc /sys/fs/cgroup/cpu,cpuacct ro - cgroup cgroup rw,cpu,cpuacct\n"
        "32 23 0:29 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n"
        "35 23 0:30 / /tmp rw - tmpfs tmpfs rw\n"
    ),
}


def test_no_files_no_limits(tmp_path):
    assert (cpu_quota(tmp_path), memory_limit(tmp_path), throttling(tmp_path)) == (None, None, None)


def test_version_2_quota_and_memory(tree):
    root = tree({**CGROUP2, "sys/fs/cgroup/cpu.max": "150000 100000\n", "sys/fs/cgroup/memory.max": "1073741824\n"})
    assert cpu_quota(root) == 1.5
    assert memory_limit(root) == 1 << 30


def test_version_2_without_limits(tree):
    root = tree({**CGROUP2, "sys/fs/cgroup/cpu.max": "max 100000\n", "sys/fs/cgroup/memory.max": "max\n"})
    assert (cpu_quota(root), memory_limit(root)) == (None, None)


def test_a_parent_may_be_tighter_than_the_group_itself(tree):
    files = {
        **CGROUP2,
        "proc/self/cgroup": "0::/a.slice/b.scope\n",
        "sys/fs/cgroup/a.slice/b.scope/cpu.max": "400000 100000",
        "sys/fs/cgroup/a.slice/cpu.max": "200000 100000",
        "sys/fs/cgroup/a.slice/b.scope/memory.max": "1000",
        "sys/fs/cgroup/a.slice/memory.max": "max",
    }
    root = tree(files)
    assert cpu_quota(root) == 2.0
    assert memory_limit(root) == 1000


def test_version_1_in_a_container_that_sees_its_group_as_the_top(tree):
    files = {
        **V1,
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "50000\n",
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "536870912\n",
        "sys/fs/cgroup/cpu,cpuacct/cpu.stat": "nr_periods 10\nnr_throttled 4\nthrottled_time 2500000000\n",
    }
    root = tree(files)
    assert cpu_quota(root) == 0.5
    assert memory_limit(root) == 512 << 20
    assert throttling(root) == Throttling(4, 2.5)
    assert control_folders(root, "cpu") == [root / "sys/fs/cgroup/cpu,cpuacct"]


def test_version_1_quota_of_minus_one_is_none(tree):
    assert cpu_quota(tree({**V1, "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n", "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n"})) is None


def test_version_2_throttling(tree):
    assert throttling(tree({**CGROUP2, "sys/fs/cgroup/cpu.stat": "usage_usec 5\nnr_throttled 3\nthrottled_usec 1500000\n"})) == Throttling(3, 1.5)


def test_a_mount_root_is_cut_off_only_as_a_whole_folder(tree):
    files = {
        "proc/self/cgroup": "0::/docker-other/x\n",
        "proc/self/mountinfo": "30 23 0:26 /docker /sys/fs/cgroup rw - cgroup2 cgroup rw\n",
    }
    root = tree(files)
    assert control_folders(root, "cpu")[0] == root / "sys/fs/cgroup/docker-other/x"


@pytest.mark.parametrize("text", ["", "nonsense", "100000", "100000 0", "-5 100000", "0 100000"])
def test_broken_quota_files_are_no_quota(tree, text):
    assert cpu_quota(tree({**CGROUP2, "sys/fs/cgroup/cpu.max": text})) is None


@given(st.text(max_size=200), st.text(max_size=200))
def test_any_text_in_the_kernel_s_files_is_survived(tmp_path_factory, group, mounts):
    root = tmp_path_factory.mktemp("any")
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(group, encoding="utf-8", errors="replace")
    (root / "proc/self/mountinfo").write_text(mounts, encoding="utf-8", errors="replace")
    assert cpu_quota(root) is None
