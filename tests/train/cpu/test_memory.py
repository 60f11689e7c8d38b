"""Freed memory stays in the process while it is retained, and returns to the system afterwards."""

from __future__ import annotations

import subprocess
import sys

import pytest

from convatlas.train.cpu import memory

SCRIPT = """
import resource
from pathlib import Path
import torch
from convatlas.train.cpu.memory import restore_malloc, retain_malloc

def resident():  # MiB
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20

def after_a_tensor_of_256_mib():
    torch.ones(2**26)
    return resident() - before

torch.ones(2)
before = resident()
print(after_a_tensor_of_256_mib())
assert retain_malloc() and retain_malloc()
print(after_a_tensor_of_256_mib())
restore_malloc()
print(after_a_tensor_of_256_mib())
restore_malloc()
print(resident() - before)
print(after_a_tensor_of_256_mib())
"""


@pytest.mark.skipif(not memory.has_glibc(), reason="only glibc has these settings")
def test_memory_is_retained_and_returned() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    plain, retained, nested, restored, plain_again = map(float, done.stdout.split())
    assert max(plain, restored, plain_again) < 50
    assert min(retained, nested) > 200


@pytest.mark.skipif(not memory.has_glibc(), reason="only glibc has these settings")
def test_nothing_is_retained_in_a_limited_address_space(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_address_space_is_limited", lambda: True)
    assert not memory.retain_malloc()
    assert memory._retained == 0
