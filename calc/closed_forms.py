"""The field's founding formulas, each a pure function of sizes.

    B  batch_size        L  num_layers     N  num_heads                  Φ  num_parameters
    S  sequence_length   V  vocab_size     d  size of a head, H = N·d    r  rank
    H  hidden_size           M  elements that fit into on-chip memory

They describe the GPT block: multi-head attention, an MLP of width 4H, biases, LayerNorm, dropout, one matrix for
embedding and head. Python integers give exact integers; SymPy symbols and NumPy arrays work too (use float64: int64
overflows silently beyond 9.2e18). Tests prove each equal to the ledger, minus extras that are named, for all values.
"""

from dataclasses import dataclass
from math import comb
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


def causal_attention_flops(*, batch_size: Number, sequence_length: Number, hidden_size: Number) -> Number:
    """FLOPs of scores and values of one layer, forward, without those that a causal mask throws away.

    2·B·H·S·(S + 1): of the S² pairs of tokens S·(S + 1)/2 are kept, of 4·H operations each; all pairs are 4·B·H·S².
    Source: Dao 2023, "FlashAttention-2", section 4.1, where it divides by 2.
    Note: half of what attention_flops counts, but for the diagonal. Of the answers model_flops_per_token_causal counts
    so; forward, backward, recompute, total and model_flops_per_token count all pairs, as torch.utils.flop_counter does.
    Leaves out: projections, scaling and softmax; a sliding window, which keeps fewer.
    """
    return 2 * batch_size * hidden_size * sequence_length * (sequence_length + 1)


HALF_PRECISION_BYTES = 2


def standard_attention_traffic_bytes(
    *, batch_size: Number, sequence_length: Number, head_dim: Number, num_heads: Number
) -> Number:
    """Bytes that attention with a matrix of scores reads from and writes to the GPU's memory, one layer, forward.

    2·B·N·(4·S·d + 4·S²), Θ(S·d + S²): Q, K, V read and the output written, S·d each; scores written and read,
    probabilities written and read, S² each.
    Source: Dao et al. 2022, "FlashAttention: Fast and Memory-Efficient Exact Attention with IO-Awareness", algorithm 0
    and theorem 2.
    Leaves out: the mask, dropout and scaling, which eager PyTorch writes out too; what caches save.
    """
    return HALF_PRECISION_BYTES * batch_size * num_heads * (4 * sequence_length * head_dim + 4 * sequence_length**2)


def flash_attention_traffic_bytes(
    *, batch_size: Number, sequence_length: Number, head_dim: Number, num_heads: Number, sram_bytes: Number
) -> Number:
    """Bytes that FlashAttention reads from and writes to the GPU's memory, one layer, forward.

    2·B·N·(3·S·d + 2·S + ⌈S / ⌈M / (4·d)⌉⌉·(3·S·d + 4·S)), Θ(S²·d²/M): K and V are read once, the output and two
    statistics a row begin as zeros, S·d + 2·S; for each of the blocks of ⌈M / (4·d)⌉ keys Q, the output and the
    statistics are read, the latter three written again. M counts half-precision elements of the on-chip memory.
    Source: Dao et al. 2022, "FlashAttention: Fast and Memory-Efficient Exact Attention with IO-Awareness", algorithm 1
    and theorem 2.
    Note: the algorithm as published, for d ≤ M ≤ S·d. Today's kernels (FlashAttention-2, PyTorch's) go over the queries
    outside and write the output once: they read K and V for each block of queries, the same order of traffic.
    Leaves out: a causal mask, with which kernels skip about half of the blocks; dropout; backward.
    """
    sram_elements = sram_bytes // HALF_PRECISION_BYTES
    num_key_blocks = _ceil_div(sequence_length, _ceil_div(sram_elements, 4 * head_dim))
    outputs_and_queries = 3 * sequence_length * head_dim + 4 * sequence_length
    once = 3 * sequence_length * head_dim + 2 * sequence_length
    return HALF_PRECISION_BYTES * batch_size * num_heads * (once + num_key_blocks * outputs_and_queries)


def _ceil_div(numerator: Number, denominator: Number) -> Number:
    return -(-numerator // denominator)


def kv_cache_bytes(
    *,
    num_layers: Number,
    batch_size: Number,
    num_tokens: Number,
    num_key_value_heads: Number,
    head_dim: Number,
    element_bytes: Number = HALF_PRECISION_BYTES,
) -> Number:
    """Bytes of the keys and values that generation keeps of all tokens, all layers.

    2·L·B·T·K·d·b: a key and a value of d elements of b bytes for each of T tokens and K key/value heads.
    Source: Pope et al. 2022, "Efficiently Scaling Transformer Inference", section 2.1; Ainslie et al. 2023, "GQA" (K).
    Leaves out: windows, which keep fewer tokens; latent attention; what pages leave empty.
    """
    return 2 * num_layers * batch_size * num_tokens * num_key_value_heads * head_dim * element_bytes


def latent_kv_cache_bytes(
    *,
    num_layers: Number,
    batch_size: Number,
    num_tokens: Number,
    latent_dim: Number,
    rotary_dim: Number,
    element_bytes: Number = HALF_PRECISION_BYTES,
) -> Number:
    """Bytes of the cache of latent attention, all layers.

    L·B·T·(c + r)·b: a latent of c elements and one turned key of r, the same for all heads, for each of T tokens.
    Source: DeepSeek-AI 2024, "DeepSeek-V2", section 2.1.4 and table 1, there (d_c + d_h^R)·l elements a token.
    Leaves out: keys and values that are made anew of it in each pass.
    """
    return num_layers * batch_size * num_tokens * (latent_dim + rotary_dim) * element_bytes


def cross_layer_kv_cache_bytes(
    *,
    num_layers: Number,
    layers_per_cache: Number,
    batch_size: Number,
    num_tokens: Number,
    num_key_value_heads: Number,
    head_dim: Number,
    element_bytes: Number = HALF_PRECISION_BYTES,
) -> Number:
    """Bytes of the cache where layers next to each other share keys and values (CLA).

    2·⌈L / n⌉·B·T·K·d·b: n layers in a row have one cache.
    Source: Brandon et al. 2024, "Reducing Transformer Key-Value Cache Size with Cross-Layer Attention", section 2.
    Leaves out: windows; a last cache is whole where n does not divide L.
    """
    return kv_cache_bytes(
        num_layers=_ceil_div(num_layers, layers_per_cache),
        batch_size=batch_size,
        num_tokens=num_tokens,
        num_key_value_heads=num_key_value_heads,
        head_dim=head_dim,
        element_bytes=element_bytes,
    )


def yoco_kv_cache_bytes(
    *,
    num_layers: Number,
    window: Number,
    batch_size: Number,
    num_tokens: Number,
    num_key_value_heads: Number,
    head_dim: Number,
    element_bytes: Number = HALF_PRECISION_BYTES,
) -> Number:
    """Bytes of the caches of a decoder-decoder (YOCO) whose lower half has a sliding window, for T ≥ W tokens.

    2·B·(T + L/2·W)·K·d·b: the upper half's layers share one cache of all T tokens; each layer of the lower half keeps
    the last W.
    Source: Sun et al. 2024, "You Only Cache Once: Decoder-Decoder Architectures for Language Models", sections 2 and 3.
    Leaves out: gated retention in the lower half, which keeps a state of constant size instead.
    """
    tokens = num_tokens + num_layers // 2 * window
    return 2 * batch_size * tokens * num_key_value_heads * head_dim * element_bytes


def expert_capacity(
    *, num_tokens: Number, num_experts: Number, experts_per_token: Number = 2, capacity_factor: Number = 1
) -> Number:
    """Tokens that one expert takes at most, so that all experts can be computed at once and of one size.

    ⌈c·k·N / E⌉ for N tokens of which each is sent to k of E experts: k·N/E come to each when they are spread evenly,
    2·N/E with two experts a token; the capacity factor c leaves room for more.
    Source: Lepikhin et al. 2020, "GShard", section 2.2 (k = 2); Fedus et al. 2021, "Switch Transformers", eq. 3 (c).
    Note: tokens beyond it are dropped, they go around the expert by the residual stream. transformers has no capacity:
    its experts take what comes, so no tensor's size depends on where tokens go.
    Leaves out: nothing; places that no token takes are computed all the same.
    """
    return _ceil_div(capacity_factor * experts_per_token * num_tokens, num_experts)


def expert_activation_bytes(
    *, num_experts: Number, capacity: Number, hidden_size: Number, expert_size: Number
) -> Number:
    """Activations that the gated experts of one layer keep for backward at most, in half precision.

    2·E·C·(2·H + 4·F): for each of an expert's C places its input and its output, and gate, up, activation and product.
    Source: Lepikhin et al. 2020, "GShard", section 2.2, for the places; the tensors are those of transformers' experts.
    Note: without a capacity the same k·N places of the tokens are kept, wherever they go; one expert may get N of them.
    Leaves out: the router, indices, and the weights of a token's experts.
    """
    return HALF_PRECISION_BYTES * num_experts * capacity * (2 * hidden_size + 4 * expert_size)


def expert_combinations(*, num_experts: int, experts_per_token: int) -> int:
    """Ways to choose a token's experts.

    C(E, k): 2 of 16 are 120, 8 of 64 are 4,426,165,368.
    Source: Dai et al. 2024, "DeepSeekMoE: Towards Ultimate Expert Specialization", section 3.1.
    Leaves out: groups of experts, which allow fewer; shared experts, which are not chosen.
    """
    return comb(num_experts, experts_per_token)


def lora_parameters(*, in_features: Number, out_features: Number, rank: Number) -> Number:
    """Parameters that LoRA adds to one linear module.

    r·(in + out): A is [r, in], B is [out, r].
    Source: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", section 4.1.
    Leaves out: nothing; the branch has no bias.
    """
    return rank * (in_features + out_features)
