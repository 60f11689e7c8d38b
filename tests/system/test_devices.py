"""Devices by name, and the recognition of exhausted memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from convatlas.errors import MachineError
from convatlas.system.devices import is_out_of_memory, resolve_device


def test_devices_by_name() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type in ("cpu", "cuda", "mps")
    for name in ("tpu", "meta", "cpu:x"):
        with pytest.raises(MachineError, match=r"^device: ") as error:
            resolve_device(name)
        assert name in str(error.value)
        assert "\n" not in str(error.value)
    with pytest.raises(MachineError, match=r"gpu is not available on this machine; it must be cpu, cuda, mps or auto$"):
        resolve_device("gpu")


def test_each_rank_has_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    devices: list[torch.device] = []
    monkeypatch.setattr(torch, "empty", lambda *_, device: devices.append(device) or Tensor())
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    resolve_device("cuda")
    assert devices == [torch.device("cuda:1")]
    with pytest.raises(MachineError, match="device: must be cuda under torchrun, got cuda:0"):
        resolve_device("cuda:0")
    monkeypatch.delenv("WORLD_SIZE")
    resolve_device("cuda:1")
    assert devices[1] == torch.device("cuda:1")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 12 bytes"), True),
        (RuntimeError("could not create a primitive"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("cannot allocate memory"), False),
    ],
)
def test_out_of_memory_is_recognized(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) == expected


def test_a_real_failed_allocation_is_recognized() -> None:
    with pytest.raises(RuntimeError) as failure:
        torch.empty(2**60)
    assert is_out_of_memory(failure.value) or "overflow" in str(failure.value)
