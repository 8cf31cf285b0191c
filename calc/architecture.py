"""What a model is made of, whoever wrote its configuration."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from itertools import groupby
from typing import NamedTuple

from .scenario import ProblemType


class Wiring(StrEnum):
    """How a layer's operations are put together."""

    GPT2 = "gpt2"
    BERT = "bert"
    ROBERTA = "roberta"
    BLOOM = "bloom"
    FALCON = "falcon"
    GPT_BIGCODE = "gpt_bigcode"
    GPT_NEO = "gpt_neo"
    GPT_NEOX = "gpt_neox"
    GPTJ = "gptj"
    LLAMA = "llama"
    LLAMA4 = "llama4"
    MODERNBERT = "modernbert"
    MPT = "mpt"
    OPT = "opt"
    PHI = "phi"
    T5 = "t5"
    MEGATRON = "megatron"
    """The fused GPT block of Megatron-LM, as the paper counts it."""


class Head(StrEnum):
    """What a model is trained for; how the names of transformers' classes end."""

    CAUSAL_LM = "ForCausalLM"
    MASKED_LM = "ForMaskedLM"
    SEQ2SEQ_LM = "ForConditionalGeneration"
    """Of an encoder-decoder."""
    SEQUENCE_CLASSIFICATION = "ForSequenceClassification"


class Activation(StrEnum):
    """Activation functions, as transformers names them in ACT2FN."""

    GELU_NEW = "gelu_new"
    GELU = "gelu"
    GELU_PYTORCH_TANH = "gelu_pytorch_tanh"
    RELU = "relu"
    SILU = "silu"


class Norm(StrEnum):
    """Normalisations, by the class of transformers that computes them."""

    RMS = "LlamaRMSNorm"
    RMS_OLMO = "Olmo2RMSNorm"
    """Weighted before it is rounded."""
    RMS_LLAMA4 = "Llama4TextRMSNorm"
    """As LlamaRMSNorm, whose frame holds less."""
    RMS_GEMMA = "GemmaRMSNorm"
    """Its weight is what is added to 1."""
    RMS_T5 = "T5LayerNorm"
    LAYER = "LayerNorm"
    """torch's own, with weight and bias."""
    LAYER_WITHOUT_BIAS = "LayerNorm without bias"
    LAYER_OLMO = "OlmoLayerNorm"
    """torch's own in fp32, without weights."""
    LAYER_COHERE = "CohereLayerNorm"
    """In steps, without a bias."""


class QueryKeyNorm(StrEnum):
    """Over what queries and keys are normalised before their positions."""

    NONE = "none"
    HEAD = "head"
    """Each head by itself, one weight for all."""
    PROJECTION = "projection"
    """All heads together, before they are parted."""
    LENGTH = "length"
    """Each head by itself, without weights, behind its positions (Llama4TextL2Norm)."""


class Mlp(StrEnum):
    """How an MLP is put together."""

    GATED = "gated"
    """down(act(gate(x)) · up(x)), as LlamaMLP."""
    GATED_FUSED = "gated, fused"
    """The same with one projection for gate and up, as Phi3MLP."""
    PLAIN = "plain"
    """c_proj(act(c_fc(x))), as Starcoder2MLP."""


class Router(StrEnum):
    """How a token's experts and their weights are found."""

    SOFTMAX = "the best of all probabilities"
    SIGMOID_GROUPS = "the best of the best groups, by sigmoids and a correction"
    """DeepseekV3TopkRouter."""
    SCALED_SOFTMAX = "the best of all probabilities in fp32, scaled"
    """DeepseekV2TopkRouter, greedy."""
    SOFTMAX_GROUPS = "the best of the best groups' probabilities"
    """The same, group_limited_greedy."""
    SOFTMAX_OF_BEST = "probabilities of the best logits alone"
    """GptOssTopKRouter."""
    SOFTMAX_OF_BEST_IN_FP32 = "probabilities of the best logits alone, in fp32"
    """GraniteMoeTopKRouter."""
    SIGMOID_OF_BEST = "sigmoids of the best logits, 0 for all others"
    """Llama4Router."""
    SPARSE_MIXER = "two, drawn one after the other"
    """PhimoeTopKRouter."""


class Expert(StrEnum):
    """How the experts are put together."""

    GATED = "gated"
    """As GATED_FUSED."""
    CLAMPED = "clamped"
    """With biases and clamped halves, which alternate (GptOssExperts)."""


class SharedExpert(StrEnum):
    """An expert for all tokens beside the others."""

    NONE = "none"
    GATED = "gated"
    """With a gate of its own, before the others."""
    ADDED = "added"
    """After the others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """A mixture of experts in an MLP's place."""

    modules: tuple[str, ...] = ("gate", "experts")
    """Those with weights of their own, in the order of their registration."""
    gate: str = "gate"
    """The router's module."""
    router: Router = Router.SOFTMAX
    expert: Expert = Expert.GATED
    shared_expert: SharedExpert = SharedExpert.NONE
    one_group: bool = False
    """Where the router has groups."""
    correction_in_fp32: bool = False
    """Of the router's scores, whatever the weights' type."""
    normalises_weights: bool = True
    """A token's weights of its experts add up to 1."""
    casts_logits: bool = False
    """The router's logits are cast to fp32 before the softmax, which else is asked for it."""
    rounds_weights: bool = True
    """A token's weights are cast to the type of the logits."""
    one_expert_per_token: bool = False
    runs_all_experts: bool = False
    """Each token goes through every expert, weighted by 0 where it was not chosen (Llama4TextMoe)."""
    records_logits: bool = False
    """The router's logits are among the model's outputs, for its auxiliary loss."""


class PositionTables(StrEnum):
    """Which rotary tables a model makes, cos and sin of each position."""

    ROUNDED = "rounded"
    """In the residual stream's type."""
    FP32 = "fp32"
    BY_WINDOW = "by window"
    """Rounded, and others for layers with a sliding window than for those without."""


class Pairs(StrEnum):
    """Which elements positions turn with each other."""

    HALVES = "halves"
    """The first with the one in the middle: x·cos + rotate_half(x)·sin."""
    NEIGHBOURS = "neighbours"
    """Each even one with the next, by slices."""
    COMPLEX = "complex"
    """Neighbours as complex numbers, times a table of such."""
    SPLIT_HALVES = "split halves"
    """As HALVES, each half by itself with half of a table."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotary:
    """How queries and keys are turned by their positions. All defaults: as Llama does."""

    pairs: Pairs = Pairs.HALVES
    tables: PositionTables = PositionTables.ROUNDED
    repeats_tables: bool = False
    """Each layer makes tables for pairs from the model's (repeat_interleave)."""
    inputs_in_fp32: bool = False
    """q and k are cast first."""
    factors_in_fp32: bool = False
    """Each factor is cast where it is multiplied."""
    casts_twice: bool = False
    """q and k are cast for each of their factors, before halves are turned."""
    rounds: bool = False
    """The result is cast back to the type of q and k."""
    partial: bool = False
    """The first elements of a head are turned and the others put behind them, even where there are none."""
    joins_each: bool = False
    """q's parts are joined before k is turned."""
    parted_outside: bool = False
    """The attention itself parts them, and holds both parts until it returns."""


LLAMA_ROTARY = Rotary()
PARTIAL_ROTARY = Rotary(partial=True)
PHI_ROTARY = Rotary(partial=True, parted_outside=True)


class ResidualDropout(StrEnum):
    """Where what is added to the residual stream is dropped."""

    INSIDE = "inside"
    """By attention and MLP themselves."""
    WHERE_ADDED = "where added"
    """By the layer, which goes on holding what it dropped of."""
    MLP_ALONE = "MLP alone"


class SharedHeads(StrEnum):
    """How keys and values of fewer heads come to all query heads."""

    REPEATED = "repeated"
    """By the attention function, or by the kernel that takes fewer."""
    EXPANDED = "expanded"
    """Right behind their projection, before positions."""
    BROADCAST = "broadcast"
    """By the matrix products, of one head."""
    OWN = "own"
    """Each has one of its own."""
    PICKED = "picked"
    """The same, copied out of the projection."""


class Softmax(StrEnum):
    """In which type probabilities are computed, and given."""

    IN_FP32 = "in fp32"
    """And rounded to the queries' type, as Llama's."""
    ROUNDED = "rounded"
    """In the type of the scores, and cast to the values', as GPT-2's."""
    PLAIN = "plain"
    """In the type of the scores, as BERT's."""


class Norms(NamedTuple):
    """What a layer's norms are called, by their place; none where it has none."""

    before_attention: str | None = None
    after_attention: str | None = None
    """Of what attention adds to the residual stream."""
    before_mlp: str | None = None
    after_mlp: str | None = None


PRE_NORMS = Norms(before_attention="input_layernorm", before_mlp="post_attention_layernorm")


class PositionBias(StrEnum):
    """A learned number for each head and distance, of one table for all layers of a stack."""

    MADE = "made"
    """By this layer, which has the table."""
    GIVEN = "given"


class LatentAttention(StrEnum):
    """What comes of low-rank latents (multi-head latent attention)."""

    KEYS_AND_VALUES = "keys and values"
    ALL = "queries, keys and values"


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerKind:
    """What decides which rows a layer has, beside its sizes and the plan."""

    wiring: Wiring
    activation: Activation
    norm: Norm
    norms: Norms = PRE_NORMS
    query_key_value_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    query_key_norm: QueryKeyNorm = QueryKeyNorm.NONE
    queries_tempered: bool = False
    """Queries are multiplied by a number of their position."""
    norms_after_projections: bool = False
    """Queries and keys are normalised when the values are there, too."""
    rotary: Rotary | None = None
    """None: no positions."""
    multi_query: bool = False
    """One key/value head for all queries, whose projection lies behind that of the queries."""
    shared_heads: SharedHeads = SharedHeads.REPEATED
    chunked: bool = False
    """Its sliding window is a chunk: the mask is made for each sequence apart."""
    always_masked: bool = False
    """Its attention gets a mask where no kernel needs one, too."""
    query_key_by_head: bool = False
    """Positions leave queries and keys in memory as [B, N, S, D], not by token."""
    parallel: bool = False
    """Attention and MLP read the same residual stream, and are added to it together."""
    mlp: Mlp | Mixture = Mlp.GATED
    fused_query_key_value: bool = False
    """One projection for all three."""
    latent: LatentAttention | None = None
    soft_capped: bool = False
    """Scores go through tanh, which no fused kernel does."""
    sinks: bool = False
    """Each head has one more score, for no token, which no fused kernel has."""
    residual_dropout: ResidualDropout = ResidualDropout.INSIDE
    holds_results: bool = False
    """Its frame holds the first norm's output and what attention and MLP gave until it returns."""
    residual_scaled: bool = False
    """What is added to the residual stream is multiplied by a number."""
    bidirectional: bool = False
    """A token attends to those behind it, too."""
    decodes: bool = False
    """It attends to an encoder's output, too (cross attention)."""
    position_bias: PositionBias | None = None
    """What is added to scores, by the distance of their tokens."""
    returns_weights: bool = False
    """A layer returns its attention's probabilities to the model, which nothing reads."""
    softmax: Softmax = Softmax.IN_FP32
    """Of eager attention."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Experts:
    """The sizes of a mixture of experts; the layer's `intermediate_size` is that of one of them."""

    num_experts: int
    num_experts_per_tok: int
    shared_intermediate_size: int = 0
    num_groups: int = 1
    """Of which a token's experts come of the best `num_groups_per_tok`."""
    num_groups_per_tok: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Latent:
    """The sizes of latent attention; `rotary_dim` elements of a query's head and one key for all heads are turned."""

    query_rank: int
    """0: queries come of the residual stream."""
    key_value_rank: int
    value_head_dim: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One transformer layer: its kind and its sizes."""

    kind: LayerKind
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    rotary_dim: int = 0
    """Elements of a head that are turned by positions, where those are not all."""
    experts: Experts | None = None
    latent: Latent | None = None
    sliding_window: int | None = None
    frozen: bool = False
    """Its weights are not trained."""
    num_prefix_tokens: int = 0
    """Keys and values before those of the text: trained (prefix tuning), or a cache's that it sees."""
    num_stored_tokens: int = 0
    """Of a cache: those whose keys and values lie in memory, more than it sees where its window has cut them off."""

    @property
    def head_dims(self) -> tuple[int, int]:
        """Of queries and keys, and of values."""
        return self.head_dim, self.latent.value_head_dim if self.latent else self.head_dim


class CacheHolder(StrEnum):
    """Who holds a key/value cache when forward ends."""

    NOBODY = "nobody"
    OUTPUTS = "outputs"
    """Though none was asked for."""


class EmbeddingScale(StrEnum):
    """What token embeddings are multiplied by."""

    NONE = "none"
    NUMBER = "number"
    BUFFER = "buffer"
    """A tensor of one element that the model owns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelKind:
    """What decides which rows embeddings and head have, beside sizes and the plan."""

    wiring: Wiring
    norm: Norm
    """Of the last layer's output."""
    head: Head = Head.CAUSAL_LM
    head_activation: Activation = Activation.GELU
    """Of a head that has a layer of its own."""
    writes_attention_out: bool = False
    """Its attention calls no kernel."""
    calls_kernels_itself: bool = False
    """Its attention is no function of its own, though it calls kernels."""
    head_bias: bool = False
    """Of the language-model head."""
    learned_positions: bool = False
    """A table of them, which limits the sequence."""
    unused_positions: int = 0
    """The first of them, which no token has."""
    rotary: Rotary | None = None
    always_makes_causal_mask: bool = False
    """Also where all its layers slide, and none reads it."""
    cache_holder: CacheHolder | None = None
    """Of a key/value cache that the model is given; none: its layers are not known to take one."""
    always_makes_sliding_mask: bool = False
    """Also where no layer slides."""
    kernels_get_it: bool = False
    """That mask is made for kernels, too, which need none: its window is 0."""
    embedding_scale: EmbeddingScale = EmbeddingScale.NONE
    logits_scaled: bool = False
    """Multiplied by a number."""
    logits_soft_capped: bool = False
    """Through tanh."""
    head_input_scaled: bool = False
    """What the head reads is multiplied by a number."""
    head_normalised: bool = False
    """Each row of the head's weight is divided by its length first."""

    @property
    def has_attention_function(self) -> bool:
        """One that may be checkpointed alone; else layers return more than their output, too."""
        return not (self.writes_attention_out or self.calls_kernels_itself)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropouts:
    """Dropout probabilities; none where the family has no such dropout."""

    embedding: float | None = None
    attention: float | None = None
    residual: float | None = None
    mlp: float | None = None
    """Of what an MLP's last projection reads."""
    classifier: float | None = None
    """Of what a classification head reads."""

    def all_at(self, probability: float) -> "Dropouts":
        """One probability for all that there are."""
        given = [each.name for each in fields(self) if getattr(self, each.name) is not None]
        return replace(self, **dict.fromkeys(given, probability))


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """A model: embeddings, runs of equal layers, head. An encoder-decoder's are the encoder's, then the decoder's."""

    model_type: str
    kind: ModelKind
    vocab_size: int
    hidden_size: int
    max_position_embeddings: int
    tied_embeddings: bool
    layers: tuple[tuple[Layer, int], ...]
    """Runs of equal layers, in order: (layer, how many)."""
    dropouts: Dropouts = Dropouts()
    type_vocab_size: int | None = None
    """Kinds of tokens, each with an embedding."""
    num_position_buckets: int | None = None
    """Distances of tokens that have a bias of their own."""
    num_labels: int | None = None
    """Of a classification head; none = a language-model head."""
    part_of: str | None = None
    """The type of the model that sees images, too, whose text part it is."""
    step_of: str | None = None
    """Whose step it is given, where transformers cannot build the model: its code lies beside its weights."""
    problem_type: ProblemType | None = None
    """What the labels of such a head are, where config or scenario say so."""

    @property
    def num_layers(self) -> int:
        return sum(count for _, count in self.layers)

    @property
    def wiring(self) -> Wiring:
        return self.kind.wiring

    @property
    def stacks(self) -> list[tuple[tuple[Layer, int], ...]]:
        """All layers, or those of the encoder and those of the decoder."""
        return [tuple(runs) for _, runs in groupby(self.layers, lambda run: run[0].kind.decodes)]

    @property
    def is_encoder_decoder(self) -> bool:
        """The last of its layers are a decoder's."""
        return self.kind.head is Head.SEQ2SEQ_LM

    @property
    def head(self) -> Head:
        return self.kind.head if self.num_labels is None else Head.SEQUENCE_CLASSIFICATION

    @property
    def problem(self) -> ProblemType | None:
        """What a classification head's labels are (ForSequenceClassificationLoss): of one label a number."""
        if self.num_labels is None or self.problem_type is not None:
            return self.problem_type if self.num_labels is not None else None
        return ProblemType.REGRESSION if self.num_labels == 1 else ProblemType.SINGLE_LABEL

    def with_frozen_layers(self, num_frozen: int) -> "Architecture":
        """The same with the first `num_frozen` layers' weights not trained."""
        return replace(self, layers=tuple(_frozen(self.layers, num_frozen))) if num_frozen else self

    def with_adapted_layers(self, indices: Iterable[int] | None) -> "Architecture":
        """The same with no layer trained but those of `indices`; none: all are."""
        if indices is None:
            return self
        each = (layer for layer, count in self.layers for _ in range(count))
        adapted = frozenset(indices)
        marked = (replace(layer, frozen=index not in adapted) for index, layer in enumerate(each))
        return replace(self, layers=tuple((layer, len(list(run))) for layer, run in groupby(marked)))

    def with_prefix(self, num_tokens: int) -> "Architecture":
        """The same with `num_tokens` keys and values before the text's in each layer."""
        if not num_tokens:
            return self
        layers = tuple((replace(layer, num_prefix_tokens=num_tokens), count) for layer, count in self.layers)
        return replace(self, layers=layers)

    def with_cache(self, prompt_length: int, num_tokens: int) -> "Architecture":
        """The same with `num_tokens` in each layer's key/value cache, the prompt's and those added one by one.

        A layer with a window keeps one token less than it, as a view of what it last joined: of the whole prompt, then
        of a window (DynamicSlidingWindowLayer.update of transformers 5.23.0).
        """

        def cached(layer: Layer) -> Layer:
            window = layer.sliding_window
            if window is None:
                return replace(layer, num_prefix_tokens=num_tokens, num_stored_tokens=num_tokens)
            stored = num_tokens if num_tokens == prompt_length else min(num_tokens, window)
            return replace(layer, num_prefix_tokens=min(num_tokens, window - 1), num_stored_tokens=stored)

        return replace(self, layers=tuple((cached(layer), count) for layer, count in self.layers))


def _frozen(runs: tuple[tuple[Layer, int], ...], left: int) -> Iterator[tuple[Layer, int]]:
    for layer, count in runs:
        frozen = min(left, count)
        if frozen:
            yield replace(layer, frozen=True), frozen
        if count > frozen:
            yield layer, count - frozen
        left -= frozen
