"""The field's founding formulas, each a pure function of sizes.

    B  batch_size        L  num_layers     N  num_heads                  Φ  num_parameters
    S  sequence_length   V  vocab_size     d  size of a head, H = N·d    r  rank
    H  hidden_size

They describe the GPT block: multi-head attention, an MLP of width 4H, biases, LayerNorm, dropout, one matrix for
embedding and head. Python integers give exact integers; SymPy symbols and NumPy arrays work too (use float64: int64
overflows silently beyond 9.2e18). Tests prove each equal to the ledger, minus extras that are named, for all values.
"""

from dataclasses import dataclass
from typing import Any

from .errors import ConfigError
from .recipes import recipe_named
from .scenario import Recompute

Number = Any
"""An integer, a float64 array or a SymPy expression."""


def transformer_parameters(*, num_layers: Number, vocab_size: Number, hidden_size: Number) -> Number:
    """Parameters Φ of a GPT, in numbers.

    Φ = V·H + L·(12·H² + 13·H); per layer 4·H² attention, 8·H² MLP, 4·H + 5·H their biases, 4·H two LayerNorms.
    Source: Narayanan et al. 2021, "Efficient Large-Scale Language Model Training on GPU Clusters Using Megatron-LM",
    eq. 2, without its positions.
    Leaves out: learned positions (P·H) and the final LayerNorm (2·H).
    """
    return vocab_size * hidden_size + num_layers * (12 * hidden_size**2 + 13 * hidden_size)


def half_precision_bytes(*, num_parameters: Number) -> Number:
    """Bytes of one half-precision value per parameter: the weights; the gradients are as much again.

    2·Φ.
    Source: IEEE binary16 and bfloat16, 2 bytes each.
    Leaves out: optimizer states and any fp32 copy.
    """
    return 2 * num_parameters


def adam_mixed_precision_bytes(*, num_parameters: Number, recipe: str = "textbook-20") -> Number:
    """Bytes of weights, gradients and Adam's states together, all alive at once.

    The recipe's bytes per parameter times Φ; textbook-20: (Φ + Φ)·2 + (Φ + Φ + 2·Φ)·4 = 20·Φ, of them 16·Φ the
    optimizer's.
    Source: with each recipe, in `calc.recipes`.
    Leaves out: activations, the optimizer step's temporaries and half-precision casts that autocast keeps.
    """
    return recipe_named(recipe).bytes_per_parameter * num_parameters


def activation_bytes_per_layer(
    *, batch_size: Number, sequence_length: Number, hidden_size: Number, num_heads: Number, recompute: str = "none"
) -> Number:
    """Bytes that one layer keeps for backward.

    none: 34·B·S·H + 5·B·N·S².  selective, the attention core runs again: 34·B·S·H.  full, only the layer's input is
    kept: 2·B·S·H.
    Source: Korthikanti et al. 2022, "Reducing Activation Recomputation in Large Transformer Models", eq. 1, table 2.
    Note: these are bytes already: 2 per half-precision element, 1 per element of a dropout mask. A text that says
    "times 2 in half precision" counts twice; its own example, GPT-3 at B = 1, S = 1024 in about 90 GB, is the formula
    as it stands.
    Leaves out: LayerNorm statistics, embeddings, the final LayerNorm, logits and loss.
    """
    layer_input = 2 * batch_size * sequence_length * hidden_size
    linear_in_sequence = 17 * layer_input
    attention_matrices = 5 * batch_size * num_heads * sequence_length**2
    match recompute:
        case Recompute.NONE:
            return linear_in_sequence + attention_matrices
        case Recompute.SELECTIVE:
            return linear_in_sequence
        case Recompute.FULL:
            return layer_input
    raise ConfigError("recompute", recompute, f"should be one of {', '.join(Recompute)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionFlops:
    """Floating-point operations of attention, by part."""

    qkv_projection: Number
    scores: Number
    scaling: Number
    softmax: Number
    values: Number
    output_projection: Number

    @property
    def matmul(self) -> Number:
        """The matrix products, what torch.utils.flop_counter counts."""
        return self.qkv_projection + self.scores + self.values + self.output_projection

    @property
    def elementwise(self) -> Number:
        """What is done element by element on the N score matrices."""
        return self.scaling + self.softmax


def attention_flops(
    *, batch_size: Number, sequence_length: Number, hidden_size: Number, num_heads: Number
) -> AttentionFlops:
    """FLOPs of one layer's multi-head attention, forward, by part.

    qkv_projection 6·B·S·H²; scores and values 2·B·N·d·S² = 2·B·H·S² each; output_projection 2·B·S·H²; scaling B·N·S²;
    softmax 3·B·N·S² (exp, sum, division).
    Source: Vaswani et al. 2017, "Attention Is All You Need", eq. 1; 2·m·n·k per product as in torch.utils.flop_counter.
    Leaves out: biases, dropout and the causal mask (about half of the scores are computed in vain).
    """
    projection = 2 * batch_size * sequence_length * hidden_size**2
    score_product = 2 * batch_size * hidden_size * sequence_length**2
    score_elements = batch_size * num_heads * sequence_length**2
    return AttentionFlops(
        qkv_projection=3 * projection,
        scores=score_product,
        scaling=score_elements,
        softmax=3 * score_elements,
        values=score_product,
        output_projection=projection,
    )


def lora_parameters(*, in_features: Number, out_features: Number, rank: Number) -> Number:
    """Parameters that LoRA adds to one linear module.

    r·(in + out): A is [r, in], B is [out, r].
    Source: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", section 4.1.
    Leaves out: nothing; the branch has no bias.
    """
    return rank * (in_features + out_features)
