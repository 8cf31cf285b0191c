"""Prompt tuning and P-tuning: trained virtual tokens before the embedded ones (peft/peft_model.py,
PeftModelForCausalLM.forward and get_prompt; peft/tuners/prompt_tuning and p_tuning, model.py)."""

from dataclasses import replace
from itertools import pairwise

from calc.dtype import DType
from calc.ledger import Component, Gradient, Product, Row, Section, Shape, Tensor
from calc.operators import TOKENS, Numerics, autocast_input, autocast_weight, embedding, parameter, stamped
from calc.primitives import cast, frame, like, matmul, unary
from calc.scenario import AdapterKind

from .facts import TEXT, AdapterFacts
from .freezing import with_tensors

ENCODER = "prompt_encoder"
PROMPT: Shape = ("T",)
TOKEN_IDS = Tensor("virtual token ids", ("B", *PROMPT), DType.INT64)
PROMPT_LABELS = Tensor("labels of virtual tokens", ("B", *PROMPT), DType.INT64)
LABELS = Tensor("labels with virtual tokens", TOKENS, DType.INT64)


def with_prompts(section: Section, facts: AdapterFacts, numerics: Numerics) -> Section:
    """The frozen embedding with virtual tokens before its own; the frozen head, which is the last to hold them."""
    if section.input is not None:
        held = frame(*_held(numerics)) if section.name == "head" else None
        return replace(section, rows=(*section.rows, held)) if held else section
    [tokens] = section.leaves
    words = Tensor("embedded input_ids", (*TEXT, "H"), tokens.dtype)
    written = next(index for index, row in enumerate(section.rows) if tokens in row.writes) + 1

    def of_text(tensor: Tensor) -> Tensor:
        if tensor == tokens:
            return words
        return replace(tensor, shape=(*TEXT, *tensor.shape[2:])) if tensor.shape[:2] == TOKENS else tensor

    rows = (
        *(with_tensors(row, of_text) for row in section.rows[:written]),
        *stamped(_before(words, tokens, facts, numerics), Component.ADAPTER, ENCODER),
        *section.rows[written:],
    )
    held = tuple(dict.fromkeys((*section.held, *_held(numerics))))
    return replace(section, rows=rows, leaves=(words,), held=held)


def _held(numerics: Numerics) -> tuple[Tensor, ...]:
    """What PeftModelForCausalLM.forward's variables hold until it returns."""
    return (PROMPT_LABELS, LABELS, _prompts(numerics), Tensor("inputs_embeds", (*TOKENS, "H"), numerics.weights))


def _prompts(numerics: Numerics) -> Tensor:
    return Tensor("prompts", ("B", *PROMPT, "H"), numerics.weights)


def _before(words: Tensor, tokens: Tensor, facts: AdapterFacts, numerics: Numerics) -> list[Row]:
    """Virtual tokens, encoded once and repeated for each sequence, then the words."""
    types = numerics.of(DType.FP32)
    prompts = _prompts(numerics)
    embedded = Tensor(f"{ENCODER}.embedding output", (1, *PROMPT, "H"), types.weights)
    weight = parameter(f"{ENCODER}.embedding.weight", (*PROMPT, "H"), types, num_columns=1)
    rows = [
        Row(name="cat", reads=(), writes=(PROMPT_LABELS, LABELS)),
        Row(name="to", reads=(), writes=(TOKEN_IDS,)),
        embedding(weight, TOKEN_IDS, embedded),
    ]
    encoded = embedded
    if facts.kind is AdapterKind.P_TUNING:
        sides: tuple[Shape, ...] = (("H",), ("E",), ("E",), ("H",))
        encoder, encoded = mlp(f"{ENCODER}.mlp_head", embedded, sides, "relu", types)
        rows += encoder
    repeated = like(encoded, "prompts repeated", shape=prompts.shape)
    if repeated.dtype is prompts.dtype:
        repeated = prompts
    rows += [Row(name="repeat", reads=(encoded,), writes=(repeated,), gradients=(Gradient(of=encoded),))]
    rows.append(frame(TOKEN_IDS))
    if repeated is not prompts:
        rows.append(cast(repeated, prompts))
    rows.append(
        Row(
            name="cat",
            reads=(prompts, words),
            writes=(tokens,),
            gradients=tuple(Gradient(of=part, passes=True, viewed=True) for part in (prompts, words)),
        )
    )
    return rows


def mlp(path: str, x: Tensor, sides: tuple[Shape, ...], activation: str, types: Numerics) -> tuple[list[Row], Tensor]:
    """nn.Sequential of linear layers from each of `sides` to the next, with an activation that keeps its result
    between, on x of virtual tokens."""
    rows: list[Row] = []
    entered = x
    outer = x.shape[: -len(sides[0])]
    for number, (in_dims, out_dims) in enumerate(pairwise(sides)):
        if number:
            activated = like(x, f"{path}.{2 * number - 1} output")
            rows.append(unary(activation, x, activated, saves_output=True))
            x = activated
        name = f"{path}.{2 * number}"
        cast_bias, bias = autocast_weight(parameter(f"{name}.bias", out_dims, types), types)
        cast_weight, weight = autocast_weight(
            parameter(f"{name}.weight", (*out_dims, *in_dims), types, len(in_dims)), types
        )
        cast_x, lower = autocast_input(x, types, name)
        out = Tensor(f"{name} output", (*outer, *out_dims), types.compute)
        product = matmul("linear", lower, weight, out, Product((), outer, out_dims, in_dims), bias=bias)
        rows += [*cast_bias, *cast_weight, *cast_x, product, frame(x)]
        x = out
    return [*rows, frame(entered)], x
