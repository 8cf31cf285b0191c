"""What a worker asks the driver when it starts."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.validation.fake_cuda import MIB, WORKSPACES, FakeCuda
from validation import cuda, machine, nvml


def test_a_worker_starts_by_seeing_its_context(fake: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    readings = iter([1000, 1000 + 500 * MIB + 2 * fake.allocated])
    monkeypatch.setattr(nvml, "used_bytes", lambda: next(readings))
    monkeypatch.setattr(nvml, "driver_version", lambda: "600.1")
    monkeypatch.setattr(nvml, "total_bytes", lambda: {"total_bytes": 80})
    monkeypatch.setattr(torch, "zeros", lambda *_, device: None)
    monkeypatch.setattr(cuda, "workspaces", lambda: WORKSPACES)
    properties = SimpleNamespace(name="NVIDIA Fake 80GB", major=9, minor=0, total_memory=79)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    found = machine.start()
    assert found.used_before_context_bytes == 1000
    assert found.facts["context_bytes"] == 500 * MIB
    assert found.facts["environment"] == {"CUBLAS_WORKSPACE_CONFIG": ":16:8"}
    assert found.versions["driver"] == "600.1"


def test_the_driver_is_asked_for_the_visible_device(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def memory_info(handle: str, version: int) -> Any:
        asked.append((handle, version))
        return SimpleNamespace(used=5, total=80, reserved=2)

    monkeypatch.setattr(nvml, "_get_nvml_device_index", lambda _: 3)
    monkeypatch.setattr(nvml.pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(nvml.pynvml, "nvmlDeviceGetHandleByIndex", lambda index: f"gpu {index}")
    monkeypatch.setattr(nvml.pynvml, "nvmlDeviceGetMemoryInfo", memory_info)
    assert nvml.used_bytes() == 5
    assert nvml.total_bytes() == {"total_bytes": 80, "reserved_by_driver_bytes": 2}
    assert asked == [("gpu 3", nvml.pynvml.nvmlMemory_v2)] * 2
