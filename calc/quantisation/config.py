"""config.json's `quantization_config` -> Quantisation."""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any

from calc.adapters.facts import OUTPUT_LAYER
from calc.dimensions import Blocks
from calc.dtype import DType
from calc.errors import ConfigError
from calc.families.fields import Fields

from . import forward, vllm
from .formats import (
    CompressedWeights,
    Format,
    Matrix,
    Quantisation,
    awq,
    bitsandbytes_4bit,
    bitsandbytes_8bit,
    compressed_tensors,
    fbgemm_fp8,
    fp8,
    gptq,
    mxfp4,
)

FIELD = "quantization_config"
DTYPES = {"bfloat16": DType.BF16, "float16": DType.FP16, "float32": DType.FP32}
"""By torch's names."""
BITSANDBYTES = "bitsandbytes"
GROUP_SIZE = 128
"""GPTQ's and AWQ's default."""
FP8_BLOCK = (128, 128)
BF16_SCALES = ("qwen3", "qwen3_moe")
"""Types whose fp8 checkpoints were published with bf16 scales; DeepSeek's, and what transformers writes, are fp32."""

Converts = Callable[[Matrix, str], bool]


def read_quantisation(config: Mapping[str, Any]) -> Quantisation | None:
    """How the checkpoint that `config` describes keeps its weights; None: as they are.

    Raises ConfigError for a method that is not known, and for fields that cannot be meant.
    """
    given = config.get(FIELD)
    if given is None:
        return None
    if not isinstance(given, Mapping):
        raise ConfigError(f"model.{FIELD}", given, "should be an object or null")
    return _read(json.dumps(dict(given), default=str), config.get("model_type"))


@lru_cache(maxsize=256)
def _read(text: str, model_type: str | None) -> Quantisation:
    """The same object for the same text: what is built of it is kept by it."""
    given = json.loads(text)
    # Before transformers named the method in it, bitsandbytes' was the only one.
    method = given.get("quant_method", BITSANDBYTES)
    if not isinstance(method, str) or method not in METHODS:
        raise ConfigError(f"model.{FIELD}.quant_method", method, f"should be one of {', '.join(METHODS)}")
    try:
        kept, converts = METHODS[method](Fields(given), model_type)
    except ConfigError as error:
        field = error.field.removeprefix("model.")
        raise ConfigError(f"model.{FIELD}.{field}", error.value, error.expected) from None
    return Quantisation(method=method, format=kept, converts=converts)


def _gptq(fields: Fields, model_type: str | None) -> tuple[Format, Converts]:
    """AutoGPTQ's and GPTQModel's: the linear modules of layers. GPTQModel says that it wrote the file."""
    fields.refuse("dynamic", "bits of single modules are not supported yet")
    fields.only("checkpoint_format", "gptq")
    fields.refuse("is_marlin_format", "weights that were repacked for one kernel are not supported yet")
    meta = fields.value("meta", default={})
    by_gptqmodel = isinstance(meta, Mapping) and "gptqmodel" in str(meta.get("quantizer", ""))
    names = [name for names in _nested(fields, "modules_in_block_to_quantize") for name in names]
    head = fields.flag("lm_head", default=False)

    def converts(matrix: Matrix, module: str) -> bool:
        if not matrix.in_layer:
            return head and matrix.module == OUTPUT_LAYER
        return matrix.module != SHARED_EXPERT_GATE and (not names or matrix.module in names)

    bits, size = _bits(fields, 2, 3, 4, 8), _group_size(fields)
    reordered, symmetric = fields.flag("desc_act", default=False), fields.flag("sym", default=True)
    in_vllm = bits in MARLIN_BITS and size in vllm.GROUP_SIZES and symmetric and not (reordered or head)
    stored = gptq(bits, size, always_biased=not by_gptqmodel)
    kept = Format(
        stored=stored,
        forward=forward.as_stored(stored) if bits in MARLIN_BITS else None,
        in_vllm=vllm.gptq(bits, size) if in_vllm else None,
        kernel="gptqmodel",
        dtypes=(DType.BF16, DType.FP16),
        group=(1, max(1, size)),
    )
    return kept, converts


MARLIN_BITS = (4, 8)
"""Those of gptqmodel's fastest kernels; for 2 and 3 bits there are others."""


WITH_CONV1D = frozenset({"gpt2"})
"""Whose layers have no nn.Linear."""
WITH_LINEARS_OF_ITS_OWN = frozenset({"falcon"})
"""FalconLinear is none to `type(module) is nn.Linear`, by which bitsandbytes' and fp8's linears are put in:
transformers 5.23.0 loads such a model unquantised."""
WITH_SCALED_ACTIVATIONS = frozenset({"starcoder2", "falcon", "mpt", "gptj", "gpt_neox", "gpt_bigcode", "bloom"})
"""AWQ_SCALES_MAPPINGS (transformers 5.23.0, integrations/awq.py): an operation more after the activation."""
SHARED_EXPERT_GATE = "mlp.shared_expert_gate"
"""One row, which AutoGPTQ, GPTQModel and AutoAWQ leave as it is."""


def _nested(fields: Fields, name: str) -> list[list[str]]:
    value = fields.value(name, default=[])
    whole = isinstance(value, list) and all(
        isinstance(names, list) and all(isinstance(each, str) for each in names) for names in value
    )
    if not whole:
        raise ConfigError(f"model.{name}", value, "should be a list of lists of names")
    return value


def _bits(fields: Fields, *allowed: int) -> int:
    bits = fields.size("bits", default=4)
    if bits not in allowed:
        raise ConfigError("model.bits", bits, f"should be one of {', '.join(map(str, allowed))}")
    return bits


def _group_size(fields: Fields) -> int:
    """Columns that share a scale; -1: all."""
    size = fields.value("group_size", default=GROUP_SIZE)
    return size if size == -1 else fields.size("group_size", default=GROUP_SIZE)


def _awq(fields: Fields, model_type: str | None) -> tuple[Format, Converts]:
    version = fields.value("version", default="gemm")
    if str(version).lower() != "gemm":
        raise ConfigError("model.version", version, 'is not supported yet; should be "gemm"')
    fields.only("zero_point", True)
    named = _unlike(_names(fields, "modules_to_not_convert"), "modules_to_not_convert")

    def converts(matrix: Matrix, module: str) -> bool:
        return matrix.in_layer and matrix.module != SHARED_EXPERT_GATE and named(matrix, module)

    bits, size = _bits(fields, 4), _group_size(fields)
    stored = awq(bits, size)
    kept = Format(
        stored=stored,
        forward=forward.as_stored(stored),
        in_vllm=vllm.awq(bits, size) if size in vllm.GROUP_SIZES else None,
        kernel="gptqmodel",
        dtypes=(DType.FP16,),  # AwqQuantizer.update_dtype: its kernels take no bf16
        not_of=WITH_CONV1D | WITH_SCALED_ACTIVATIONS,
        group=(1, max(1, size)),
    )
    return kept, converts


def _bitsandbytes(fields: Fields, model_type: str | None) -> tuple[Format, Converts]:
    names = ("load_in_4bit", "_load_in_4bit"), ("load_in_8bit", "_load_in_8bit")
    four, eight = (any(fields.flag(name, default=False) for name in pair) for pair in names)
    if four is eight:
        raise ConfigError("model.load_in_4bit", four, "should be true, or load_in_8bit, and one of the two")
    converts = _as_transformers(fields, "llm_int8_skip_modules")
    if eight:
        fields.only("llm_int8_has_fp16_weight", False)
        if fields.value("llm_int8_threshold", default=LLM_INT8_THRESHOLD) != LLM_INT8_THRESHOLD:
            return Format(stored=bitsandbytes_8bit), converts
        kept = Format(
            stored=bitsandbytes_8bit,
            forward=forward.bitsandbytes_8bit,
            kernel="LLM.int8",
            not_of=WITH_LINEARS_OF_ITS_OWN,
            multiplies_in=DType.INT8,
        )
        return kept, converts
    double = fields.flag("bnb_4bit_use_double_quant", default=False)
    compute = str(fields.value("bnb_4bit_compute_dtype", default="float32")).removeprefix("torch.")
    if compute not in DTYPES:
        raise ConfigError("model.bnb_4bit_compute_dtype", compute, f"should be one of {', '.join(DTYPES)}")
    runs = forward.bitsandbytes_4bit(double_quantisation=double, compute=DTYPES[compute])
    stored = bitsandbytes_4bit(double_quantisation=double)
    return Format(stored=stored, forward=runs, kernel="bitsandbytes", not_of=WITH_LINEARS_OF_ITS_OWN), converts


LLM_INT8_THRESHOLD = 6.0
"""BitsAndBytesConfig's; 0 looks for no outliers."""


def _fp8(fields: Fields, model_type: str | None) -> tuple[Format, Converts]:
    fields.only("fmt", "e4m3")
    fields.only("scale_fmt", "float")
    scheme = fields.value("activation_scheme", default="dynamic")
    if scheme not in ("dynamic", "static"):
        raise ConfigError("model.activation_scheme", scheme, "should be dynamic or static")
    block = None if fields.is_null("weight_block_size") else fields.value("weight_block_size", default=list(FP8_BLOCK))
    if block is not None:
        block = _block(block, "weight_block_size")
    scales = DType.BF16 if model_type in BF16_SCALES else DType.FP32
    converts = _as_transformers(fields, "modules_to_not_convert")
    static = scheme == "static"
    stored = fp8(block, scales, static_activations=static)
    in_kernel = static or block != FP8_BLOCK  # where the Triton kernel quantises the input itself
    runs = forward.as_stored(stored) if in_kernel else forward.fp8_blocks(stored)
    kept = Format(
        stored=stored,
        forward=runs,
        in_vllm=None if in_kernel else vllm.fp8_blocks(FP8_BLOCK),
        kernel="fp8",
        dtypes=(DType.BF16, DType.FP16),
        multiplies_in=DType.FP8,
        not_of=WITH_CONV1D | WITH_LINEARS_OF_ITS_OWN,
        group=block or (1, 1),
        smallest_compute_capability=FP8_COMPUTE_CAPABILITY,
    )
    return kept, converts


FP8_COMPUTE_CAPABILITY = 8.9
"""FineGrainedFP8HfQuantizer.validate_environment."""


def _block(value: Any, name: str) -> tuple[int, int]:
    sizes = value if isinstance(value, list | tuple) and len(value) == len(FP8_BLOCK) else ()
    if not sizes or not all(type(size) is int and size > 0 for size in sizes):
        raise ConfigError(f"model.{name}", value, "should be two positive whole numbers")
    return sizes[0], sizes[1]


def _fbgemm(fields: Fields, model_type: str | None) -> tuple[Format, Converts]:
    return Format(stored=fbgemm_fp8), _as_transformers(fields, "modules_to_not_convert")


def _mxfp4(fields: Fields, model_type: str | None) -> tuple[Format, Converts]:
    named = _as_transformers(fields, "modules_to_not_convert")
    kept = Format(
        stored=mxfp4,
        forward=forward.as_they_are,
        of_experts=forward.mxfp4_experts,
        kernel="mxfp4",
        dtypes=(DType.BF16,),
        smallest_compute_capability=MXFP4_COMPUTE_CAPABILITY,
    )
    return kept, lambda matrix, module: matrix.is_experts and named(matrix, module)


MXFP4_COMPUTE_CAPABILITY = 7.5
"""Mxfp4HfQuantizer.validate_environment."""


PACKED, AS_ELEMENTS = "pack-quantized", ("int-quantized", "float-quantized", "naive-quantized")
ELEMENTS = {"int": DType.INT8, "float": DType.FP8}
BYTE_BITS = 8
LINEAR = "Linear"
"""The class by which compressed-tensors means all linear modules."""


def _compressed_tensors(fields: Fields, model_type: str | None) -> tuple[Format, Converts]:
    """One scheme for the modules of `targets`, but for those of `ignore`."""
    groups = fields.value("config_groups", default={})
    if not isinstance(groups, Mapping) or len(groups) != 1:
        raise ConfigError("model.config_groups", groups, "should be one group; several are not supported yet")
    [group] = groups.values()
    layout = fields.value("format", default=None)
    if layout != PACKED and layout not in AS_ELEMENTS:
        raise ConfigError("model.format", layout, f"should be one of {', '.join((PACKED, *AS_ELEMENTS))}")
    weights = group.get("weights") if isinstance(group, Mapping) else None
    if not isinstance(weights, Mapping):
        raise ConfigError("model.config_groups", groups, "should say how weights are kept")
    inputs = group.get("input_activations")
    scheme = _scheme(Fields(weights), packed=layout == PACKED, static_inputs=bool(inputs and not inputs.get("dynamic")))
    targets, ignored = group.get("targets"), _names(fields, "ignore")
    if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
        raise ConfigError("model.config_groups", groups, "should name its targets")
    wanted, unwanted = _named(targets, "config_groups"), _named(ignored, "ignore")

    def converts(matrix: Matrix, module: str) -> bool:
        return wanted(module) and not unwanted(module)

    return Format(stored=compressed_tensors(scheme)), converts


def _scheme(fields: Fields, *, packed: bool, static_inputs: bool) -> CompressedWeights:
    bits = fields.size("num_bits", default=8)
    kind = fields.value("type", default="int")
    if kind not in ELEMENTS:
        raise ConfigError("model.type", kind, f"should be one of {', '.join(ELEMENTS)}")
    if bits > BYTE_BITS or (bits < BYTE_BITS and not packed):
        raise ConfigError("model.num_bits", bits, f"should be {BYTE_BITS}, or fewer where {PACKED} is the format")
    return CompressedWeights(
        element=ELEMENTS[kind],
        packed_bits=bits if packed else None,
        scales=_scales(fields),
        symmetric=fields.flag("symmetric", default=True),
        reordered=fields.value("actorder", default=None) == "group",
        static_inputs=static_inputs,
    )


def _scales(fields: Fields) -> Callable[[Matrix], Any]:
    """The shape of a matrix' scales."""
    strategy = fields.value("strategy", default=None)
    match strategy:
        case "tensor":
            return lambda matrix: (1,)
        case "channel":
            return lambda matrix: (*matrix.rows, 1)
        case "group":
            size = fields.size("group_size", default=GROUP_SIZE)
            return lambda matrix: (*matrix.rows, matrix.groups(size))
        case "block":
            rows, columns = _block(fields.value("block_structure", default=None), "block_structure")
            return lambda matrix: (Blocks(matrix.rows, rows), Blocks(matrix.columns, columns))
    raise ConfigError("model.strategy", strategy, "should be one of tensor, channel, group, block")


def _named(targets: Iterable[str], field: str) -> Callable[[str], bool]:
    """match_name and _match_class of compressed_tensors 0.20.0, utils/match.py."""
    patterns = [_pattern(target.removeprefix("re:"), field) for target in targets if target.startswith("re:")]
    names = frozenset(targets)
    return lambda module: module in names or LINEAR in names or any(each.match(module) for each in patterns)


MOST_REPEATS = 4
REPEAT, REPEATED_GROUP = re.compile(r"[*+{]|(?<!\()\?"), re.compile(r"\)[*+{?]")


def _pattern(text: str, field: str, end: str = "") -> re.Pattern[str]:
    """`text` and then `end`. A search may take as long as the name's length to the power of the number of repeats, and
    of repeated groups ages: a server would stand still."""
    if REPEATED_GROUP.search(text) or len(REPEAT.findall(text)) > MOST_REPEATS:
        raise ConfigError(f"model.{field}", text, f"should have at most {MOST_REPEATS} repeats, none of a group")
    try:
        return re.compile(f"(?:{text}){end}")
    except re.error:
        raise ConfigError(f"model.{field}", text, "should be a regular expression") from None


def _names(fields: Fields, name: str) -> list[str]:
    value = fields.value(name, default=[])
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise ConfigError(f"model.{name}", value, "should be a list of names")
    return value


def _as_transformers(fields: Fields, field: str) -> Converts:
    """All but those that `field` names; without it all but the head (quantizers/base.py, get_keys_to_not_convert)."""
    given = fields.value(field, default=None)
    return _unlike((OUTPUT_LAYER,) if given is None else _names(fields, field), field)


def _unlike(names: Iterable[str], field: str) -> Converts:
    """should_convert_module (transformers 5.23.0, quantizers/quantizers_utils.py): names are patterns up to where a
    module's name ends, or its end."""
    patterns = [_pattern(name, field, MODULE_END) for name in names]
    ends = tuple(names)
    return lambda matrix, module: not module.endswith(ends) and not any(each.match(module) for each in patterns)


MODULE_END = r"(?:(?<=\.)|(?=\.|$))"

METHODS: dict[str, Callable[[Fields, str | None], tuple[Format, Converts]]] = {
    "gptq": _gptq,
    "awq": _awq,
    BITSANDBYTES: _bitsandbytes,
    "fp8": _fp8,
    "fbgemm_fp8": _fbgemm,
    "compressed-tensors": _compressed_tensors,
    "mxfp4": _mxfp4,
}
