"""What is free: the least of what the machine, the process and its control groups have left."""

import subprocess
import sys
from pathlib import Path

import pytest

from widefit.kernels.memory import _free_in_groups, available_memory


def group(folder: Path, limit: object, used: int, version: int) -> None:
    names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in zip(names, (limit, used), strict=True):
        (folder / name).write_text(f"{value}\n")


def test_groups_within_groups_of_version_2(tmp_path: Path) -> None:
    (tmp_path / "self").write_text("0::/slurm/job_7/step_0\n")
    group(tmp_path / "fs" / "slurm", "max", 5_000, 2)
    group(tmp_path / "fs" / "slurm" / "job_7", 10_000, 4_000, 2)
    group(tmp_path / "fs" / "slurm" / "job_7" / "step_0", 8_000, 1_000, 2)
    group(tmp_path / "fs" / "other", 10, 0, 2)
    group(tmp_path, 10, 0, 2)
    assert sorted(_free_in_groups(tmp_path / "self", tmp_path / "fs")) == [6_000, 7_000]


def test_groups_of_version_1(tmp_path: Path) -> None:
    (tmp_path / "self").write_text("9:name=systemd:/user\n4:cpu,cpuacct:/a\n3:hugetlb,memory:/docker/abc\n0::/\n")
    group(tmp_path / "fs" / "memory", 9_223_372_036_854_771_712, 5, 1)
    group(tmp_path / "fs" / "memory" / "docker" / "abc", 3_000, 1_000, 1)
    assert _free_in_groups(tmp_path / "self", tmp_path / "fs") == [2_000]


def test_the_group_of_a_container_is_the_one_mounted(tmp_path: Path) -> None:
    (tmp_path / "self").write_text("3:memory:/docker/abc\n")
    group(tmp_path / "fs" / "memory", 3_000, 1_000, 1)
    assert _free_in_groups(tmp_path / "self", tmp_path / "fs") == [2_000]


def test_without_groups(tmp_path: Path) -> None:
    assert _free_in_groups(tmp_path / "self", tmp_path) == []
    assert available_memory() > 0


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_the_limit_of_the_process() -> None:
    code = (
        "import resource; from pathlib import Path; from widefit.kernels.memory import available_memory\n"
        "used = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 100_000_000, -1)); print(available_memory())"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 80_000_000 < int(ran.stdout) <= 100_000_000
