"""Saved weights and optimizer states, against what torch.save really writes."""

import io
import weakref
import zipfile
from typing import Any
from unittest.mock import patch

import pytest
import torch

from calc import Adapter, Scenario, estimate
from calc.plan import BITSANDBYTES
from calc.scenario import AdapterDType, Optimizer, Precision
from validation.models import build_job

TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GPT2 = {"model_type": "gpt2", "n_embd": 24, "n_head": 4, "n_layer": 3, "vocab_size": 97, "n_positions": 32, **TOKENS}
QWEN3 = {
    "model_type": "qwen3",
    "hidden_size": 36,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "intermediate_size": 50,
    "num_hidden_layers": 3,
    "vocab_size": 89,
    "tie_word_embeddings": False,
    **TOKENS,
}
SAVED = [optimizer for optimizer in Optimizer if optimizer not in BITSANDBYTES]


def written_bytes(content: Any) -> int:
    """Bytes of the storages in the file that torch.save writes."""
    file = io.BytesIO()
    torch.save(content, file)
    with zipfile.ZipFile(file) as archive:
        return sum(entry.file_size for entry in archive.infolist() if "/data/" in entry.filename)


@pytest.mark.parametrize("config", [GPT2, QWEN3], ids=lambda config: config["model_type"])
@pytest.mark.parametrize("optimizer", SAVED)
def test_files_of_a_whole_model(optimizer: Optimizer, config: dict[str, Any]) -> None:
    precision = Precision.BF16 if config is QWEN3 else Precision.BF16_AUTOCAST
    agree(Scenario(model=config, sequence_length=8, optimizer=optimizer, precision=precision), config)


@pytest.mark.parametrize("optimizer", [Optimizer.ADAMW, Optimizer.ADAMW_FUSED, Optimizer.MUON])
def test_files_of_an_adapted_model(optimizer: Optimizer) -> None:
    adapter = Adapter(rank=3, dtype=AdapterDType.BASE, modules_to_save=("lm_head",))
    scenario = Scenario(model=QWEN3, sequence_length=8, optimizer=optimizer, precision=Precision.BF16, adapter=adapter)
    agree(scenario, QWEN3)


def agree(scenario: Scenario, config: dict[str, Any]) -> None:
    job = build_job(scenario, config, "cpu", "eager")
    for parameter in job.model.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    for optimizer in job.optimizers:
        optimizer.step()
    expected = estimate(scenario).checkpoint_bytes
    assert written_bytes(job.model.state_dict()) == expected["weights"]
    assert written_bytes([p for p in job.model.parameters() if p.requires_grad]) == expected["trained_weights"]
    assert written_bytes([optimizer.state_dict() for optimizer in job.optimizers]) == expected["optimizer_states"]
    assert max(p.nbytes for p in job.model.parameters()) == expected["largest_tensor"]


def test_state_dicts_hold_the_tensors_themselves() -> None:
    scenario = Scenario(model=GPT2, sequence_length=8, precision=Precision.FP32)
    job = build_job(scenario, GPT2, "cpu", "eager")
    (optimizer,) = job.optimizers
    for parameter in job.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    alive = {p.untyped_storage().data_ptr() for p in job.model.parameters()}
    assert {tensor.untyped_storage().data_ptr() for tensor in job.model.state_dict().values()} == alive
    states = optimizer.state_dict()["state"]
    kept = [state["exp_avg"].data_ptr() for state in optimizer.state.values()]
    assert [state["exp_avg"].data_ptr() for state in states.values()] == kept


def test_storages_go_to_the_host_one_by_one() -> None:
    """torch.save on storages that say they are on a GPU: no copy but the last is alive when the next is made."""
    copies: list[weakref.ref[torch.UntypedStorage]] = []
    alive: list[int] = []

    def cpu(storage: torch.UntypedStorage) -> torch.UntypedStorage:
        alive.append(sum(copy() is not None for copy in copies))
        copy = torch.UntypedStorage(storage.nbytes())
        copies.append(weakref.ref(copy))
        return copy

    on_gpu = property(lambda storage: torch.device("cuda", 0))
    tensors = {f"{size}": torch.zeros(size) for size in (1000, 10, 2000)}
    with patch.object(torch.UntypedStorage, "device", on_gpu), patch.object(torch.UntypedStorage, "cpu", cpu):
        assert written_bytes(tensors) == 4 * 3010
    assert alive == [0, 0, 0]
