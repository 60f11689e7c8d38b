"""The number of cores that a process may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from convatlas.system import cores
from convatlas.system.cores import cgroup_quotas, count_cores


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("groups", "files", "quotas"),
    [
        ("0::/", {"cpu.max": "150000 100000\n"}, [1.5]),
        ("0::/", {"cpu.max": "max 100000\n"}, []),
        ("0::/a/b", {"a/b/cpu.max": "max 1000\n", "a/cpu.max": "2000 1000\n", "cpu.max": "4000 1000"}, [2, 4]),
        ("4:cpu,cpuacct:/x", {"cpu/x/cpu.cfs_quota_us": "50000\n", "cpu/x/cpu.cfs_period_us": "100000\n"}, [0.5]),
        ("4:cpu:/", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, []),
        ("3:memory:/", {"cpu.max": "100000 100000"}, []),
        ("0::/", {"cpu.max": "damaged"}, []),
        ("damaged", {}, []),
        ("0::/", {}, []),
    ],
)
def test_quotas_of_containers(groups: str, files: dict[str, str], quotas: list[float], tmp_path: Path) -> None:
    process = tmp_path / "cgroup"
    process.write_text(groups + "\n")
    assert list(cgroup_quotas(write(tmp_path / "fs", files), process)) == quotas


@pytest.mark.parametrize(("affinity", "quotas", "expected"), [(8, [], 8), (8, [2.5], 3), (8, [0.1], 1), (2, [16], 2)])
def test_the_smallest_limit_counts(
    affinity: int, quotas: list[float], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(affinity)), raising=False)
    monkeypatch.setattr(cores, "cgroup_quotas", lambda: iter(quotas))
    assert count_cores() == expected
