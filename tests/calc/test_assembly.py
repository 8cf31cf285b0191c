"""From architecture, workload and plan to sizes and runs."""

from typing import Any

import pytest

from calc.assembly import step_memory
from calc.hf_config import architecture
from calc.memory import StepMemory
from calc.plan import Plan, Workload
from calc.scenario import Adapter, Attention, Recompute
from calc.symbols import common_sizes, layer_sizes

QWEN2 = {
    "model_type": "qwen2",
    "num_hidden_layers": 10,
    "use_sliding_window": True,
    "sliding_window": 64,
    "max_window_layers": 4,
}


def built(config: dict[str, Any], **choices: Any) -> StepMemory:
    workload = Workload(micro_batch_size=2, sequence_length=129)
    return step_memory(architecture(config), workload, Plan(attention=Attention.EAGER, **choices))


@pytest.mark.parametrize(("length", "rounded"), [(1, 128), (128, 128), (129, 256)])
def test_flash_rounds_sequences_up_to_128(length: int, rounded: int) -> None:
    workload = Workload(micro_batch_size=2, sequence_length=length)
    sizes = common_sizes(architecture({"model_type": "llama"}), workload, Plan())
    assert (sizes["S"], sizes["S+1"], sizes["S⌈128⌉"]) == (length, length + 1, rounded)


@pytest.mark.parametrize(
    ("head_dim", "rounded"), [(8, 32), (32, 32), (40, 64), (128, 128), (192, 192), (200, 256), (256, 256)]
)
def test_flash_rounds_heads_up_to_32(head_dim: int, rounded: int) -> None:
    layer, _ = architecture({"model_type": "llama", "head_dim": head_dim}).layers[0]
    sizes = layer_sizes(layer)
    assert (sizes["D"], sizes["D/2"], sizes["D⌈32⌉"]) == (head_dim, head_dim // 2, rounded)


def test_symbols() -> None:
    model = architecture({"model_type": "llama"})
    workload = Workload(micro_batch_size=2, sequence_length=129)
    assert common_sizes(model, workload, Plan(adapter=Adapter(rank=5)))["R"] == 5
    sizes = common_sizes(model, workload, Plan())
    assert {name: sizes[name] for name in "BSLVPH"} == {
        "B": 2, "S": 129, "L": 32, "V": 32000, "P": 2048, "H": 4096,
    }  # fmt: skip
    assert {name: layer_sizes(model.layers[0][0])[name] for name in "FNKD"} == {"F": 11008, "N": 32, "K": 32, "D": 128}


def test_the_first_layer_is_a_run_of_its_own() -> None:
    runs = built({"model_type": "gpt2"}).runs
    assert [(run.part.section.name, run.count, run.first_layer) for run in runs] == [
        ("embedding", 1, None),
        ("layer", 1, 0),
        ("layer", 11, 1),
        ("head", 1, None),
    ]


def test_one_layer() -> None:
    assert [run.count for run in built({"model_type": "gpt2", "n_layer": 1}).runs] == [1, 1, 1]


def test_the_first_layer_of_each_kind_is_a_run_of_its_own() -> None:
    assert [(run.count, run.first_layer) for run in built(QWEN2).runs[1:-1]] == [(1, 0), (3, 1), (1, 4), (5, 5)]


@pytest.mark.parametrize("recompute", Recompute)
def test_each_mask_goes_with_the_first_layer_that_kept_it(recompute: Recompute) -> None:
    """Backward ends with it."""
    freed = {
        tensor.name: (run.first_layer, run.count)
        for run in built(QWEN2, recompute=recompute).runs
        for tensor, allocated in run.part.pieces[0][0].life.backward
        if not allocated and tensor.name.endswith("_mask")
    }
    kept_by_nodes = {"causal_mask": (0, 1), "sliding_mask": (4, 1)}
    assert freed == ({} if recompute is Recompute.NONE else kept_by_nodes)


def test_qwen_makes_a_causal_mask_that_no_layer_reads() -> None:
    all_slide = QWEN2 | {"max_window_layers": 0}
    made = [tensor.name for tensor, allocated in built(all_slide).runs[0].part.pieces[0][0].life.forward if allocated]
    assert [name for name in made if name.endswith("_mask")] == ["causal_mask", "sliding_mask"]


@pytest.mark.parametrize(
    ("config", "masks"),
    [
        ({"model_type": "gpt2"}, {"causal_mask"}),
        ({"model_type": "mistral", "sliding_window": 64}, {"sliding_mask"}),
        (QWEN2, {"causal_mask", "sliding_mask"}),
    ],
)
def test_masks(config: dict[str, Any], masks: set[str]) -> None:
    sections = [run.part.section for run in built(config).runs]
    made = {tensor.name for row in sections[0].rows for tensor in row.writes if tensor.name.endswith("_mask")}
    read = {tensor.name for each in sections[1:] for row in each.rows for tensor in row.reads}
    assert made == masks <= read


def test_equal_layers_are_built_once() -> None:
    alternating = QWEN2 | {"layer_types": ["full_attention", "sliding_attention"] * 5}
    parts = [run.part for run in built(alternating).runs]
    assert len(parts) == 12
    assert len({id(part) for part in parts}) == 5  # embedding, the first layer, later ones of two kinds, head


def test_what_is_asked_again_is_not_built_again() -> None:
    longer = Workload(micro_batch_size=3, sequence_length=1000)
    plan = Plan(attention=Attention.EAGER)
    assert step_memory(architecture(QWEN2), longer, plan).step is built(QWEN2).step
