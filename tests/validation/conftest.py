"""What the tests of measuring share."""

import pytest
import torch

from tests.validation.fake_cuda import MACHINE, FakeCuda
from validation import measure, nvml
from validation.models import build_job


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    for name in ("memory_stats", "reset_peak_memory_stats", "memory_allocated", "memory_reserved", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, getattr(fake, name))
    monkeypatch.setattr(torch._C, "_cuda_clearCublasWorkspaces", fake.clear_workspaces, raising=False)
    monkeypatch.setattr(torch.cuda, "Event", fake.event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(nvml, "used_bytes", fake.used_bytes)
    monkeypatch.setattr(
        measure, "build_job", lambda scenario, config, _, kernel: build_job(scenario, config, "cpu", kernel)
    )
    monkeypatch.setattr(measure, "start", lambda: MACHINE)
    return fake
