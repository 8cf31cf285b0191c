"""Gemma: RMSNorm with 1 + weight, scaled embeddings; Gemma 2 and 3 with norms on both sides and sliding windows."""

from dataclasses import replace

from calc.architecture import Architecture
from calc.kinds import Activation, EmbeddingScale, LayerKind, Norm, Norms, PositionTables, QueryKeyNorm, Rotary

from .fields import Fields
from .llama import LLAMA_LAYER, LLAMA_MODEL, Defaults, llama_like, sliding_but_every

GEMMA_MODEL = replace(LLAMA_MODEL, norm=Norm.RMS_GEMMA, embedding_scale=EmbeddingScale.BUFFER)


BOTH_NORMS = Norms(
    before_attention="input_layernorm",
    after_attention="post_attention_layernorm",
    before_mlp="pre_feedforward_layernorm",
    after_mlp="post_feedforward_layernorm",
)
GEMMA2 = Defaults(
    vocab_size=256000,
    hidden_size=2304,
    intermediate_size=9216,
    num_hidden_layers=26,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=256,
    tie_word_embeddings=True,
)


def gemma_layer(fields: Fields) -> LayerKind:
    """What the layers of all Gemmas share."""
    fields.refuse("use_bidirectional_attention", "bidirectional attention is not supported yet")
    bias = fields.flag("attention_bias", default=False)
    return replace(
        LLAMA_LAYER,
        activation=Activation.GELU_PYTORCH_TANH,
        norm=Norm.RMS_GEMMA,
        query_key_value_bias=bias,
        output_bias=bias,
    )


def gemma(fields: Fields) -> Architecture:
    """GemmaForCausalLM."""
    return llama_like(
        fields,
        "gemma",
        Defaults(
            vocab_size=256000,
            hidden_size=3072,
            intermediate_size=24576,
            num_hidden_layers=28,
            num_attention_heads=16,
            num_key_value_heads=16,
            head_dim=256,
            max_position_embeddings=8192,
            tie_word_embeddings=True,
        ),
        layer=gemma_layer(fields),
        model=GEMMA_MODEL,
    )


def gemma2(fields: Fields) -> Architecture:
    """Gemma2ForCausalLM: every other layer slides; scores and logits are capped."""
    soft_capped, logits_soft_capped = (
        fields.is_given(name, default=True) for name in ("attn_logit_softcapping", "final_logit_softcapping")
    )
    return llama_like(
        fields,
        "gemma2",
        replace(GEMMA2, max_position_embeddings=8192),
        layer=replace(gemma_layer(fields), norms=BOTH_NORMS, soft_capped=soft_capped),
        model=replace(
            GEMMA_MODEL,
            logits_soft_capped=logits_soft_capped,
            always_makes_causal_mask=True,
            always_makes_sliding_mask=True,
        ),
        pattern=lambda layer, num_layers: sliding_but_every(fields, 2, layer, num_layers),
        activation="hidden_activation",
    )


def gemma3_text(fields: Fields) -> Architecture:
    """Gemma3ForCausalLM: every sixth layer is global; RMSNorm on each head's queries and keys; no caps on scores."""
    every = fields.size("sliding_window_pattern", default=6)
    layer = gemma_layer(fields)
    rotary = Rotary(tables=PositionTables.BY_WINDOW)
    return llama_like(
        fields,
        "gemma3_text",
        replace(GEMMA2, vocab_size=262208, max_position_embeddings=131072),
        layer=replace(
            layer, norms=BOTH_NORMS, query_key_norm=QueryKeyNorm.HEAD, norms_after_projections=True, rotary=rotary
        ),
        model=replace(
            GEMMA_MODEL,
            rotary=rotary,
            logits_soft_capped=fields.is_given("final_logit_softcapping", default=False),
            always_makes_causal_mask=True,
            always_makes_sliding_mask=True,
        ),
        pattern=lambda layer, num_layers: sliding_but_every(fields, every, layer, num_layers),
        activation="hidden_activation",
    )
