"""What torch.compile keeps for backward, as docs/step_shape.md says: the real partitioner on the real modules."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._inductor.decomposition import select_decomp_table
from transformers.loss.loss_utils import ForCausalLMLoss
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

B, S, H, F, V = 2, 50, 32, 96, 130
T = B * S
Kept = list[tuple[tuple[int, ...], torch.dtype]]
HALF, FULL = torch.bfloat16, torch.float32


def kept(function: Callable[[torch.Tensor], Any], *modules: torch.nn.Module) -> Kept:
    """Shapes and types of what forward hands to backward beside the weights."""
    handed_on: Kept = []

    def partition(joint: Any, inputs: Any, *, num_fwd_outputs: int, **options: Any) -> Any:
        parts = min_cut_rematerialization_partition(joint, inputs, num_fwd_outputs=num_fwd_outputs, **options)
        output = next(node for node in parts[0].graph.nodes if node.op == "output")
        values = [node.meta["val"] for node in output.args[0][num_fwd_outputs:]]
        handed_on.extend((tuple(value.shape), value.dtype) for value in values)
        return parts

    def as_it_is(graph: Any, _: Any) -> Any:
        return graph

    backend = aot_autograd(
        fw_compiler=as_it_is, bw_compiler=as_it_is, partition_fn=partition, decompositions=select_decomp_table()
    )
    torch._dynamo.reset()
    torch.compile(function, backend=backend)(torch.randn(B, S, H, dtype=HALF, requires_grad=True))
    weights = {tuple(weight.shape) for module in modules for weight in module.parameters()}
    return [(shape, dtype) for shape, dtype in handed_on if shape not in weights]


def linear(width: int) -> torch.nn.Module:
    return torch.nn.Linear(H, width, bias=False, dtype=HALF)


@pytest.fixture
def mlp() -> torch.nn.Module:
    return LlamaMLP(LlamaConfig(hidden_size=H, intermediate_size=F)).to(HALF)


def test_a_norm_keeps_its_input_the_deviation_and_its_output() -> None:
    norm, projection = LlamaRMSNorm(H).to(HALF), linear(V)
    assert kept(lambda x: projection(norm(x)), norm, projection) == [
        ((B, S, H), HALF),
        ((B, S, 1), FULL),
        ((T, H), HALF),
    ]


def test_a_gated_mlp_keeps_gate_up_and_their_product(mlp: torch.nn.Module) -> None:
    assert kept(mlp, mlp) == [((T, H), HALF), ((T, F), HALF), ((T, F), HALF), ((T, F), HALF)]


def test_a_loss_keeps_the_logits_in_half_precision() -> None:
    head, labels = linear(V), torch.zeros(B, S, dtype=torch.int64)
    tensors = kept(lambda x: ForCausalLMLoss(head(x), labels, V), head)
    assert [tensor for tensor in tensors if V in tensor[0]] == [((T, V), HALF)]
    assert tensors.count(((T, 1), FULL)) == 2  # the largest logit and the logarithm of the sum
