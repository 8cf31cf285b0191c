"""OLMo's z-loss beside the cross-entropy, against that code on fake tensors; random steps draw it, too."""

from typing import Any

import pytest

from calc import Scenario, estimate
from calc.scenario import Precision
from tests.validation.families import config_of
from tests.validation.random_steps import agree
from validation.trace import trace

CONFIG = config_of("llama") | {"vocab_size": 1999}
BATCH: dict[str, Any] = {"model": CONFIG, "micro_batch_size": 2, "sequence_length": 24, "z_loss": True}


@pytest.mark.parametrize(
    "choices",
    [
        {"precision": "fp16-autocast", "gradient_accumulation_steps": 2},
        {"precision": "bf16", "task": "evaluation", "eval_accumulation_steps": 2},
    ],
)
def test_a_step(choices: dict[str, Any]) -> None:
    scenario = Scenario(**BATCH, **choices)
    traced = trace(scenario, CONFIG)
    agree(scenario, traced)
    assert estimate(scenario).memory.peak_allocated_bytes == traced.memory["peak_allocated_bytes"]


def test_the_fp32_logits_are_kept_beside_their_log_probabilities() -> None:
    scenario = Scenario(**BATCH, precision=Precision.BF16)
    kept, without = (
        estimate(each).memory.autograd_saved_bytes for each in (scenario, scenario.model_copy(update={"z_loss": False}))
    )
    logits, of_tokens = 2 * 24 * 1999 * 4, 512  # [B, S, V] in fp32, more than a multiple of 512; two of [B, S]
    assert kept - without == -(-logits // 512) * 512 + 2 * of_tokens
