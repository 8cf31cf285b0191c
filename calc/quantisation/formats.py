"""How each format stores a matrix of [rows, columns], rows being what a product gives: its tensors, as named shapes.

Left out: what a file holds beside tensors, and bitsandbytes' `quant_state`, some 150 bytes of JSON for each module.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from calc.adapters.modules import LinearModule
from calc.adapters.quantised import WEIGHTS_PER_SCALE, quant_state
from calc.dimensions import Blocks
from calc.dtype import DType
from calc.ledger import Dimension, Kind, Product, Row, Shape, Tensor
from calc.operators import Numerics
from calc.scenario import WeightDType

if TYPE_CHECKING:
    from .vllm import Device

WORD_BITS = 32
"""Of the integers that weights are packed into."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """The weight of a linear module, or those of all experts, each by itself."""

    module: str
    """Within its part of the model."""
    rows: Shape
    columns: Shape
    dtype: DType
    """Of the weight before, and of scales that have the model's type."""
    batch: Shape = ()
    """How many there are: experts, and gate and up that lie side by side."""
    in_layer: bool = True
    has_bias: bool = False

    @property
    def is_experts(self) -> bool:
        return bool(self.batch)

    def tensor(self, name: str, shape: Shape, dtype: DType) -> Tensor:
        """A tensor of its own for each matrix, which says how the weights are to be read."""
        return Tensor(f"{self.module}.{name}", (*self.batch, *shape), dtype, Kind.BUFFERS)

    def weights(self, name: str, shape: Shape, dtype: DType) -> Tensor:
        """What holds the weights themselves."""
        packs = (*self.batch, *self.rows, *self.columns)
        return Tensor(f"{self.module}.{name}", (*self.batch, *shape), dtype, Kind.PARAMETERS, packs=packs)

    def groups(self, size: int) -> Dimension:
        """Of `size` columns that share a scale; all of them where it is not positive."""
        return Blocks(self.columns, size) if size > 0 else 1


Stored = Callable[[Matrix], Iterable[Tensor]]
"""The tensors a format stores a matrix as."""

Forward = Callable[[LinearModule, Numerics], list[Row]]
"""The rows of a linear module whose weight is stored so, in place of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """How matrices are stored, and how transformers multiplies with them."""

    stored: Stored | None = None
    """None: not as tensors of its own for each matrix."""
    forward: Forward | None = None
    """None: its generation is not written down."""
    of_experts: Callable[[list[Row]], list[Row]] | None = None
    """The rows of a mixture's experts whose weights are stored so, in place of their own."""
    in_vllm: "Callable[[Device], Format] | None" = None
    """As vLLM keeps it on a device; None: its engine is not written down."""
    kernel: str = ""
    """Whose products these are; notes.py says what is assumed of them."""
    dtypes: tuple[DType, ...] = (DType.BF16, DType.FP16, DType.FP32)
    """What its kernels take, the first unless something else is asked for."""
    multiplies_in: DType | None = None
    """Of its products, where that is not the activations' type."""
    not_of: frozenset[str] = frozenset()
    """Types of models that transformers does not load so, or not as nn.Linear alone."""
    group: tuple[int, int] = (1, 1)
    """Rows and columns that share scales: a GPU that has a share of a matrix has whole groups."""
    smallest_compute_capability: float = 0.0
    """Of GPUs that run it; on others transformers writes the weights out as it loads them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantisation:
    """A format, and what it is applied to."""

    method: str
    """As `quant_method` names it."""
    format: Format
    converts: Callable[[Matrix, str], bool]
    """Whether a matrix is quantised in the module of this full name."""
    name: WeightDType | None = None
    """As a scenario calls it; None: a config's own."""
    types_of_ends: tuple[tuple[str, DType], ...] = ()
    """Of a GGUF file: embedding's and head's."""


WEIGHT = ".weight"
"""How the names of linear modules' weights end."""


def matrix_of(weight: Tensor, *, has_bias: bool, in_layer: bool = True) -> Matrix:
    """The weight of a linear module."""
    split = len(weight.shape) - weight.num_columns
    return Matrix(
        module=weight.name.removesuffix(WEIGHT),
        rows=weight.shape[:split],
        columns=weight.shape[split:],
        dtype=weight.dtype,
        in_layer=in_layer,
        has_bias=has_bias,
    )


def matrix_of_experts(tensor: Tensor, product: Product) -> Matrix:
    """The weights of all experts: gate and up are matrices of their own where they are halves, not woven."""
    number, rows = tensor.shape[0], product.n
    halves = rows[:1] == (2,)
    return Matrix(
        module=tensor.name,
        rows=rows[1:] if halves else rows,
        columns=product.k,
        dtype=tensor.dtype,
        batch=(number, *rows[:1]) if halves else (number,),
    )


def packed(bits: int, dimensions: Shape) -> Dimension:
    """The words that hold `bits` for each of `dimensions`' elements."""
    return Blocks((bits, *dimensions), WORD_BITS)


def gptq(bits: int, group_size: int, *, always_biased: bool) -> Stored:
    """QuantLinear (auto_gptq 0.7.1, nn_modules/qlinear/qlinear_cuda_old.py; gptqmodel 7.7.0 has the same buffers).
    AutoGPTQ gives each module a bias, of zeros where it had none (modeling/_utils.py, make_quant)."""

    def stored(matrix: Matrix) -> Iterator[Tensor]:
        groups = matrix.groups(group_size)
        yield matrix.weights("qweight", (packed(bits, matrix.columns), *matrix.rows), DType.INT32)
        yield matrix.tensor("qzeros", (groups, packed(bits, matrix.rows)), DType.INT32)
        yield matrix.tensor("scales", (groups, *matrix.rows), DType.FP16)
        yield matrix.tensor("g_idx", matrix.columns, DType.INT32)
        if always_biased and not matrix.has_bias:
            yield matrix.tensor("bias", matrix.rows, DType.FP16)

    return stored


def awq(bits: int, group_size: int) -> Stored:
    """WQLinear_GEMM (autoawq 0.2.9, modules/linear/gemm.py)."""

    def stored(matrix: Matrix) -> Iterator[Tensor]:
        groups, words = matrix.groups(group_size), packed(bits, matrix.rows)
        yield matrix.weights("qweight", (*matrix.columns, words), DType.INT32)
        yield matrix.tensor("qzeros", (groups, words), DType.INT32)
        yield matrix.tensor("scales", (groups, *matrix.rows), DType.FP16)

    return stored


def bitsandbytes_4bit(*, double_quantisation: bool) -> Stored:
    """Params4bit with its QuantState (bitsandbytes 0.50.2), the layout of a QLoRA base."""

    def stored(matrix: Matrix) -> Iterator[Tensor]:
        yield matrix.weights("weight", (*matrix.rows, *matrix.columns), DType.FOUR_BIT)
        scales: Shape = (Blocks((*matrix.rows, *matrix.columns), WEIGHTS_PER_SCALE),)
        for state in quant_state("weight", scales, double_quantisation=double_quantisation):
            yield matrix.tensor(state.name, state.shape, state.dtype)

    return stored


def bitsandbytes_8bit(matrix: Matrix) -> Iterator[Tensor]:
    """Linear8bitLt (bitsandbytes 0.50.2, nn/modules.py, _save_to_state_dict)."""
    yield matrix.weights("weight", (*matrix.rows, *matrix.columns), DType.INT8)
    yield matrix.tensor("SCB", matrix.rows, DType.FP32)
    yield matrix.tensor("weight_format", (), DType.UINT8)


def fp8(block: tuple[int, int] | None, scales: DType, *, static_activations: bool) -> Stored:
    """FP8Linear (transformers 5.23.0, integrations/finegrained_fp8.py); DeepSeek-V3's README_WEIGHTS.md: fp32
    scales."""

    def stored(matrix: Matrix) -> Iterator[Tensor]:
        yield matrix.weights("weight", (*matrix.rows, *matrix.columns), DType.FP8)
        if block is None:
            yield matrix.tensor("weight_scale_inv", (), DType.FP32)
        else:
            blocks = tuple(map(Blocks, (matrix.rows, matrix.columns), block))
            yield matrix.tensor("weight_scale_inv", blocks, scales)
        if static_activations:
            yield matrix.tensor("activation_scale", (), DType.FP32)

    return stored


def fbgemm_fp8(matrix: Matrix) -> Iterator[Tensor]:
    """FbgemmFp8Linear (transformers 5.23.0, integrations/fbgemm_fp8.py)."""
    yield matrix.weights("weight", (*matrix.rows, *matrix.columns), DType.FP8)
    yield matrix.tensor("weight_scale", (*matrix.rows, 1), DType.FP32)


MXFP4_BLOCK = 32
"""Elements that share a scale of one byte (OCP Microscaling Formats 1.0, table 1)."""


def mxfp4(matrix: Matrix) -> Iterator[Tensor]:
    """gpt-oss' experts, two values a byte (transformers 5.23.0, integrations/mxfp4.py, convert_moe_packed_tensors)."""
    blocks = Blocks(matrix.columns, MXFP4_BLOCK)
    yield matrix.weights("blocks", (*matrix.rows, blocks, MXFP4_BLOCK // 2), DType.UINT8)
    yield matrix.tensor("scales", (*matrix.rows, blocks), DType.UINT8)


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressedWeights:
    """A scheme of compressed-tensors, as `config_groups` has it (compressed_tensors 0.20.0, quant_args.py)."""

    element: DType
    """What a weight is stored as; packed ones in words."""
    packed_bits: int | None
    """None: not packed."""
    scales: Callable[[Matrix], Shape]
    """The shape of its scales, by the strategy (quantization/lifecycle/initialize.py, initialize_qparams)."""
    symmetric: bool
    reordered: bool
    """With the group of each column (`actorder` = group, of versions before 0.20)."""
    static_inputs: bool


def compressed_tensors(scheme: CompressedWeights) -> Stored:
    """PackedQuantizationCompressor and NaiveQuantizationCompressor (compressed_tensors 0.20.0, compressors/)."""

    def stored(matrix: Matrix) -> Iterator[Tensor]:
        scales, bits = scheme.scales(matrix), scheme.packed_bits
        if bits is None:
            yield matrix.weights("weight", (*matrix.rows, *matrix.columns), scheme.element)
        else:
            yield matrix.weights("weight_packed", (*matrix.rows, packed(bits, matrix.columns)), DType.INT32)
            yield matrix.tensor("weight_shape", (2,), DType.INT64)
        yield matrix.tensor("weight_scale", scales, matrix.dtype)
        if not scheme.symmetric:
            zero_points = scales if bits is None else (packed(bits, scales[:-1]), scales[-1])
            yield matrix.tensor("weight_zero_point", zero_points, scheme.element if bits is None else DType.INT32)
        if scheme.reordered:
            yield matrix.tensor("weight_g_idx", matrix.columns, DType.INT32)
        if scheme.static_inputs:
            yield matrix.tensor("input_scale", (1,), matrix.dtype)

    return stored
