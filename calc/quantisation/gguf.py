"""Weights as a GGUF file keeps them: which type llama.cpp gives each tensor, without an importance matrix.

From src/llama-quant.cpp at 007dbbf (llama_tensor_get_type_impl, tensor_type_fallback): a type for all matrices, the
embedding's among them, and more bits for some. Types are blocks of 32 or 256 weights of a row (ggml-common.h at
007dbbf), whose bytes per weight are the types' item sizes. Vectors are in fp32.

Left out: what a file holds beside weights (the tokenizer), and rope_freqs of Llama 3.1, 256 bytes.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache

from calc.adapters.freezing import with_tensors
from calc.architecture import Architecture
from calc.dtype import DType
from calc.errors import ConfigError
from calc.kinds import Head
from calc.ledger import Kind, Section, Tensor
from calc.scenario import WeightDType
from calc.wirings import parts_of

MOSTLY = {
    WeightDType.Q8_0: DType.Q8_0,
    WeightDType.Q6_K: DType.Q6_K,
    WeightDType.Q5_K_M: DType.Q5_K,
    WeightDType.Q5_K_S: DType.Q5_K,
    WeightDType.Q4_K_M: DType.Q4_K,
    WeightDType.Q4_K_S: DType.Q4_K,
    WeightDType.Q4_0: DType.Q4_0,
}
"""The type of most matrices of a file of this name (llama_ftype_get_default_type)."""
OF_ODD_WIDTH = {DType.Q4_K: DType.Q5_0, DType.Q5_K: DType.Q5_1, DType.Q6_K: DType.Q8_0}
"""Of rows that are no multiple of 256 (tensor_type_fallback)."""
VALUES, DOWN = "self_attn.v_proj", "mlp.down_proj"
MODULES = (
    *("self_attn.q_proj", "self_attn.k_proj", VALUES, "self_attn.o_proj"),
    *("mlp.gate_proj", "mlp.up_proj", DOWN),
)
FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
"""Whose matrices llama.cpp keeps apart as transformers does."""
LAYERS_OF_70B = 80
HEAD_WEIGHT = "lm_head.weight"

Types = tuple[tuple[str, DType], ...]
"""Of the weights of these names."""


@lru_cache(maxsize=64)
def with_types(architecture: Architecture, name: WeightDType) -> tuple[Architecture, Types]:
    """`architecture` with the types of its layers' matrices, and those of embedding and head. Raises ConfigError for a
    model whose tensors another rule is for."""
    if architecture.model_type not in FAMILIES or architecture.kind.head is not Head.CAUSAL_LM:
        problem = f"is not supported yet for {architecture.model_type}; supported: {', '.join(FAMILIES)}"
        raise ConfigError("weight_dtype", name.value, problem)
    by_layer = [tuple(_of_layer(architecture, name, index)) for index in range(architecture.num_layers)]
    return architecture.with_weight_types(by_layer), tuple(_of_ends(architecture, name))


def block_size(dtype: DType) -> int:
    """Weights of a row that are a block."""
    return 256 if dtype in OF_ODD_WIDTH else 32


def _of_layer(architecture: Architecture, name: WeightDType, index: int) -> Iterator[tuple[str, DType]]:
    layer = architecture.layers[0][0]
    widths = {DOWN: layer.intermediate_size, "self_attn.o_proj": layer.num_attention_heads * layer.head_dim}
    for module in MODULES:
        dtype = _with_more_bits(architecture, name, module, index)
        width = widths.get(module, architecture.hidden_size)
        yield f"{module}.weight", _that_fits(dtype, width)


def _with_more_bits(architecture: Architecture, name: WeightDType, module: str, index: int) -> DType:
    """attn_v and ffn_down of some layers."""
    mostly, num_layers = MOSTLY[name], architecture.num_layers
    if module not in {VALUES, DOWN}:
        return mostly
    if name in {WeightDType.Q4_K_M, WeightDType.Q5_K_M} and uses_more_bits(index, num_layers):
        return DType.Q6_K
    if name is WeightDType.Q4_K_S and index < (4 if module == VALUES else num_layers // 8):
        return DType.Q5_K
    if mostly is DType.Q4_K and module == VALUES and _is_70b(architecture):
        return DType.Q5_K
    return mostly


def uses_more_bits(index: int, num_layers: int) -> bool:
    """use_more_bits: the first and the last eighth, and every third layer between."""
    eighth = num_layers // 8
    return index < eighth or index >= 7 * num_layers // 8 or (index - eighth) % 3 == 2


def _is_70b(architecture: Architecture) -> bool:
    """LLM_TYPE_70B (llama-model.cpp): Qwen2 of 80 layers, and Llama where heads share keys."""
    layer = architecture.layers[0][0]
    shares_keys = layer.num_key_value_heads < layer.num_attention_heads
    named_so = {"qwen2": True, "qwen3": False}.get(architecture.model_type, shares_keys)
    return architecture.num_layers == LAYERS_OF_70B and named_so


def _of_ends(architecture: Architecture, name: WeightDType) -> Iterator[tuple[str, DType]]:
    """The output's matrix has 6 bits or more; the embedding too, where it is the same."""
    mostly, width = MOSTLY[name], architecture.hidden_size
    output = DType.Q8_0 if mostly is DType.Q8_0 or width % block_size(mostly) else DType.Q6_K
    tied = architecture.tied_embeddings
    yield parts_of(architecture.wiring).end.embedding_weight, _that_fits(output if tied else mostly, width)
    if not tied:
        yield HEAD_WEIGHT, _that_fits(output, width)


def _that_fits(dtype: DType, width: int) -> DType:
    """A type whose blocks fill rows of `width`."""
    if width % block_size(dtype) and dtype in OF_ODD_WIDTH:
        dtype = OF_ODD_WIDTH[dtype]
    return DType.FP16 if width % block_size(dtype) else dtype


def in_types(section: Section, types: Types) -> Section:
    """`section` with weights of these types, and its vectors in fp32."""
    by_name = dict(types)

    def changed(tensor: Tensor) -> Tensor:
        if tensor.kind is not Kind.PARAMETERS:
            return tensor
        return replace(tensor, dtype=by_name.get(tensor.name, DType.FP32))

    return replace(section, rows=tuple(with_tensors(row, changed) for row in section.rows))
