"""What a Scenario says of linear layers in fp8, checked against the model, its sizes and the other choices."""

import json
from collections.abc import Iterator
from enum import StrEnum

from .architecture import Architecture, Layer
from .errors import ConfigError
from .hardware import Gpu
from .kinds import Mixture, Wiring
from .recipes import RECIPES
from .scenario import Float8Recipe, Implementation, Precision, Recompute, Scenario

MULTIPLE = 16
"""Of which the columns of a product in fp8 and what it adds up are a number (ATen's _scaled_mm). For the gradient of a
weight it adds up tokens."""
STEPS = (1, 2, 4, 8, 16)
"""Its divisors: one side of a batch is a multiple of the one that the other leaves."""
SMALLEST_COMPUTE_CAPABILITY = 8.9
"""Of GPUs with products in fp8 (ATen/native/cuda/ScaledBlas.cpp, _scaled_mm_allowed_device)."""
WITHOUT = {
    "implementation": frozenset({Implementation.MEGATRON}),
    "precision": frozenset(
        precision for precision in Precision if precision in {*RECIPES, Precision.BF16_WEIGHTS_AUTOCAST}
    ),
    "recompute": frozenset({Recompute.OPERATORS}),
    "use_liger_kernel": frozenset({True}),
}
"""Values that do not go with it yet."""


def float8_recipe(scenario: Scenario, architecture: Architecture, sequence_length: int) -> Float8Recipe | None:
    """The recipe of linear layers in fp8, once it is clear that this model's can be such; none: they are not."""
    recipe = scenario.float8_recipe
    if recipe is None:
        return None
    if scenario.adapter is not None:
        raise ConfigError("float8_recipe", recipe.value, "is not supported yet with an adapter")
    for field, values in WITHOUT.items():
        value = getattr(scenario, field)
        if value in values:
            named = value.value if isinstance(value, StrEnum) else json.dumps(value)
            raise ConfigError("float8_recipe", recipe.value, f"is not supported yet with {field} = {named}")
    obstacle = _obstacle(architecture)
    if obstacle is not None:
        raise ConfigError("float8_recipe", recipe.value, f"should be none: {obstacle}")
    if scenario.micro_batch_size * sequence_length % MULTIPLE:
        size = scenario.micro_batch_size
        problem = f"times micro_batch_size = {size} should be a multiple of {MULTIPLE} for products in fp8"
        raise ConfigError("sequence_length", sequence_length, problem)
    return recipe


def check_gpu(gpu: Gpu | None, recipe: Float8Recipe | None) -> None:
    """Refuses a GPU without products in fp8; of those without CUDA nothing is known here."""
    if gpu is not None and recipe is not None and not multiplies_in_float8(gpu):
        problem = f"has no products in fp8, which float8_recipe = {recipe} needs: compute capability 8.9 or more"
        raise ConfigError("gpu", gpu.name, problem)


def multiplies_in_float8(gpu: Gpu) -> bool:
    return gpu.compute_capability is None or float(gpu.compute_capability) >= SMALLEST_COMPUTE_CAPABILITY


def _obstacle(architecture: Architecture) -> str | None:
    """Why a model's linear layers are not modelled in fp8, or None."""
    if architecture.wiring is Wiring.GPT2:
        return "torchao converts nn.Linear, and GPT-2's layers have Conv1D"
    if architecture.is_encoder_decoder:
        return "it is not supported yet for an encoder-decoder"
    if architecture.wiring is Wiring.FALCON:
        return "Falcon adds to a linear layer's output in place, which torch forbids of torchao's"
    for layer, _ in architecture.layers:
        if isinstance(layer.kind.mlp, Mixture):
            return "it is not supported yet for a mixture of experts"
        if layer.latent:
            return "it is not supported yet for latent attention"
        odd = next((width for width in _widths(architecture, layer) if width % MULTIPLE), None)
        if odd is not None:
            return f"products in fp8 take widths that are multiples of {MULTIPLE}, and a linear layer has {odd:,}"
    return None


def _widths(architecture: Architecture, layer: Layer) -> Iterator[int]:
    """Of the inputs and outputs of its linear layers."""
    queries, keys = layer.num_attention_heads * layer.head_dim, layer.num_key_value_heads * layer.head_dim
    yield from (architecture.hidden_size, layer.intermediate_size, queries)
    yield queries + 2 * keys if layer.kind.fused_query_key_value else keys
