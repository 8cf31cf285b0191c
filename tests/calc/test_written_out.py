"""What calc adds up from the shares of layers in a row is what the layers give when they are written out as one."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from hypothesis import given, note, settings
from hypothesis import strategies as st

from calc import Scenario, estimate
from calc.lifetimes import Context, Lifetimes, lifetimes
from calc.parts import Part
from calc.scenario import Recompute
from calc.sizes import storage_class
from calc.timeline import Program
from tests.calc.written_out import first_checkpointed, group

GPT2 = {"model_type": "gpt2", "n_embd": 24, "n_head": 2, "vocab_size": 50, "n_positions": 64}
LLAMA = {
    "model_type": "llama",
    "hidden_size": 24,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 40,
    "vocab_size": 50,
}
OPT = {"model_type": "opt", "hidden_size": 24, "num_attention_heads": 2, "ffn_dim": 40, "vocab_size": 50}
GPT_NEOX = {"model_type": "gpt_neox", "hidden_size": 32, "num_attention_heads": 2, "vocab_size": 50}
MODELS = (GPT2, GPT2 | {"resid_pdrop": 0.0}, LLAMA, LLAMA | {"model_type": "qwen3"}, OPT, GPT_NEOX)
TRAINED: tuple[dict[str, Any], ...] = (
    {},
    *({"adapter": {"kind": kind}} for kind in ("lora", "qlora", "ia3", "prompt-tuning", "p-tuning")),
    {"adapter": {"kind": "lora", "dropout": 0.1, "target_modules": ["all-linear"]}},
    *({"frozen_layers": count} for count in (1, 2, 3, 5, 7)),
)

scenarios = st.fixed_dictionaries(
    {
        "model": st.sampled_from(MODELS),
        "num_layers": st.integers(2, 9),
        "in_a_row": st.integers(2, 9),
        "field": st.sampled_from(("recompute_group_size", "recompute_interval")),
        "trained": st.sampled_from(TRAINED),
        "precision": st.sampled_from(("fp32", "bf16", "bf16-autocast")),
        "attention": st.sampled_from(("eager", "auto")),
        "dropout": st.sampled_from((0.0, 0.1)),
    }
)


@settings(max_examples=80, deadline=None)
@given(case=scenarios)
def test_layers_in_a_row_are_what_they_are_when_written_out(case: dict[str, Any]) -> None:
    note(case)
    num_layers = case["num_layers"]
    count = min(case["in_a_row"], num_layers)
    model = case["model"] | {"n_layer": num_layers, "num_hidden_layers": num_layers}
    choices = {name: case[name] for name in ("precision", "attention", "dropout")} | case["trained"]
    choices |= {"frozen_layers": min(choices.get("frozen_layers", 0), num_layers), case["field"]: count}
    answer = estimate(Scenario(model=model, recompute=Recompute.FULL, **choices))
    for part in answer.step.step.parts[1:-1]:
        assert_as_written_out(part)


def assert_as_written_out(part: Part) -> None:
    layers = [each.section for each, times in part.pieces for _ in range(times)]
    whole = group if part.pieces[0][0].section.goes_on else first_checkpointed
    contexts = [each.context for each, _ in part.pieces]
    context = Context(
        input_required=contexts[0].input_required,
        held_input=contexts[0].held_input,
        freed_in_backward=frozenset().union(*(each.freed_in_backward for each in contexts)),
    )
    if len(layers) == 1:
        return
    section = whole(layers)
    for written, later in ((lifetimes(section, context), False), (lifetimes(section, later_of(context)), True)):
        assert told(part.forward) == told(Program(written.forward))
        assert told(part.forward_end) == told(Program(written.forward_end))
        assert told(part.backward_later if later else part.backward) == told(Program(backward(written)))
        shares = [each.life for each, times in part.pieces for _ in range(times)]
        assert sizes(tensor for life in shares for tensor in life.saved) == sizes(written.saved)
        assert frozenset().union(*(life.saved_from_outside for life in shares)) == written.saved_from_outside
        again = [row.products for life in shares for row in life.rows_run_again]
        assert again == [row.products for row in written.rows_run_again]


def later_of(context: Context) -> Context:
    return replace(context, gradients_exist=True)


def backward(life: Lifetimes) -> tuple:
    return (*life.before_rerun, *life.rerun, *life.rerun_end, *life.backward)


def sizes(tensors: Iterable) -> Counter:
    return Counter(map(storage_class, tensors))


def told(program: Program) -> list[tuple[bool, list[str]]]:
    """Size after size, allocated or freed; what is freed in one go in any order."""
    changes: list[tuple[bool, list[str]]] = []
    for tensor, step in zip(program.tensors, program.steps, strict=True):
        allocated, size = step > 0, str(storage_class(tensor))
        if changes and not allocated and not changes[-1][0]:
            changes[-1][1].append(size)
        else:
            changes.append((allocated, [size]))
    return [(allocated, sorted(each)) for allocated, each in changes]
