"""Published figures of whole training steps against the ledger.

A figure's `scenario` is a Scenario, `config` what its model's config.json says otherwise than the catalogue's. What the
source's script holds beside the modelled step is counted by name (`BESIDE`), each a product of the scenario's sizes.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from calc import Estimate, Scenario, closed_forms, estimate
from calc.scenario import num_prefix_tokens, num_prompt_tokens
from validation.cases import config_of
from validation.published.sources import Comparison

INT64_BYTES, FP32_BYTES, HALF_BYTES = 8, 4, 2


class Asked(NamedTuple):
    """A figure's scenario with its sizes: sequences, tokens, vocabulary."""

    B: int
    S: int
    V: int
    config: dict[str, Any]
    answer: Estimate


class Extra(NamedTuple):
    """Bytes alive in one phase, or (none) in all."""

    num_bytes: int
    phase: str | None = None


def labels_and_mask(asked: Asked) -> Extra:
    """The collator's labels and attention mask are tensors of their own, 8·B·S each."""
    return Extra(2 * INT64_BYTES * asked.B * asked.S)


def cublas_workspaces(asked: Asked) -> Extra:
    """The estimate's `library_workspace_bytes`: torch counts them as allocated."""
    return Extra(asked.answer.memory.library_workspace_bytes or 0)


def shifted_logits(asked: Asked) -> Extra:
    """4·B·(S−1)·V: until 4.48 transformers copies the fp32 logits of all positions but the last, where 5.23 shifts the
    labels (ForCausalLMLoss, `logits[..., :-1, :].contiguous()`)."""
    return Extra(FP32_BYTES * asked.B * (asked.S - 1) * asked.V, "forward")


def released_logits(asked: Asked) -> Extra:
    """−2·B·S·V: in transformers 4.45 the model's forward itself says `logits = logits.float()`, so that the logits in
    half precision end before the loss."""
    return Extra(-HALF_BYTES * asked.B * asked.S * asked.V, "forward")


def reentrant_output(asked: Asked) -> Extra:
    """2·B·S·H: a re-entrant checkpoint (`use_reentrant=True`, transformers' default until 5.0) holds the output of the
    layer it runs again while backward goes through it; the other kind stops before it is made."""
    return Extra(HALF_BYTES * asked.B * asked.S * asked.config["hidden_size"], "backward")


def outputs_until_next_step(asked: Asked) -> Extra:
    """A plain loop's variable holds the last outputs: logits in half precision, keys and values of all layers."""
    adapter, config = asked.answer.scenario.adapter, asked.config
    tokens = asked.S + num_prompt_tokens(adapter)
    cache = closed_forms.kv_cache_bytes(
        num_layers=config["num_hidden_layers"],
        batch_size=asked.B,
        num_tokens=tokens + num_prefix_tokens(adapter),
        num_key_value_heads=config["num_key_value_heads"],
        head_dim=config["head_dim"],
    )
    return Extra(HALF_BYTES * asked.B * tokens * asked.V + cache)


BESIDE: dict[str, Callable[[Asked], Extra]] = {
    "labels and mask": labels_and_mask,
    "cuBLAS workspaces": cublas_workspaces,
    "shifted logits": shifted_logits,
    "released logits": released_logits,
    "re-entrant output": reentrant_output,
    "outputs until the next step": outputs_until_next_step,
}


def asked_for(figure: dict[str, Any]) -> Asked:
    scenario = dict(figure["scenario"])
    config = config_of(scenario) | figure.get("config", {})
    answer = estimate(Scenario(**scenario | {"model": config}))
    return Asked(scenario["micro_batch_size"], scenario["sequence_length"], config["vocab_size"], config, answer)


def our_bytes(quantity: str, figure: dict[str, Any]) -> int:
    """`peak`: of the step. `after step`: what is left when gradients have gone. `before zero_grad`: with them.
    `device`: all that the process takes."""
    asked = asked_for(figure)
    if quantity == "device":
        return asked.answer.to_dict(reserved=True)["memory"]["device_bytes"]
    extras = [BESIDE[name](asked) for name in figure.get("beside", ())]
    phases = {phase.name.value: phase for phase in asked.answer.memory.phases}
    always = sum(extra.num_bytes for extra in extras if extra.phase is None)
    if quantity == "after step":
        return phases["optimizer"].end_allocated_bytes + always
    if quantity == "before zero_grad":
        return phases["backward"].end_allocated_bytes + always
    assert quantity == "peak", quantity
    return always + max(
        phase.peak_allocated_bytes + sum(extra.num_bytes for extra in extras if extra.phase == name)
        for name, phase in phases.items()
    )


def compared(figure: dict[str, Any]) -> Comparison:
    """A figure `beyond` another of the same source is predicted from that one: what both hold, whatever its size, is
    in it."""
    quantity, beside = figure["quantity"], tuple(figure.get("beside", ()))
    ours = our_bytes(quantity, figure)
    if reference := figure.get("beyond"):
        ours += reference["published_bytes"] - our_bytes(quantity, figure | reference)
    return Comparison(figure["setup"], figure["published_bytes"], ours, beside)
