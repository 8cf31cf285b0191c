"""Llama's embeddings and layer, and what differs from them by facts (transformers 5.23.0)."""

from calc.cache import updated
from calc.kinds import EmbeddingScale, Mixture, QueryKeyNorm, ResidualDropout
from calc.ledger import Component, Gradient, Kind, Row, Section, Tensor
from calc.lifetimes import NEXT
from calc.liger import liger_rotary
from calc.norms import norm_of
from calc.operators import POSITION_IDS, Numerics, dropped, embedding, linear, parameter, stamped
from calc.primitives import add, dropout, frame, like, part, scale, view
from calc.rotary import Pair, rotary_tables, tables_row, turned
from calc.router_loss import recorded
from calc.wirings import Parts

from .attention import attention
from .facts import INPUT_IDS, LayerFacts, ModelFacts, hidden_states, mask_rows, with_cache
from .head import End
from .latent import latent_heads
from .mlp import mlp
from .positions import made_tables, rotary_buffers


def llama_embeddings(facts: ModelFacts, numerics: Numerics) -> Section:
    """LlamaModel.forward up to its first layer: token embeddings, mask, rotary tables."""
    rows, tokens, leaf = _token_embeddings(facts, numerics)
    made = made_tables(facts, numerics)
    output = like(tokens, "embeddings after dropout") if facts.embedding_dropout else tokens
    rows += [
        Row(name="arange", reads=(), writes=(POSITION_IDS,)),
        *mask_rows(facts.masks),
        *([dropout(tokens, output)] if facts.embedding_dropout else []),
        *map(tables_row, made),
    ]
    held = dict.fromkeys((tokens, output, POSITION_IDS, *(each for pair in made for each in pair)))
    return Section(
        name="embedding",
        rows=tuple(stamped(rows, Component.EMBEDDING, "model")),
        output=output,
        held=(*held, *facts.masks),
        leaves=(leaf,),
    )


def _token_embeddings(facts: ModelFacts, numerics: Numerics) -> tuple[list[Row], Tensor, Tensor]:
    """The rows, the embeddings, and what the module itself gave."""
    tokens = hidden_states(numerics, "inputs_embeds")
    weight = parameter(EMBEDDING_WEIGHT, ("V", "H"), numerics, num_columns=1)
    scaling = facts.kind.embedding_scale
    if scaling is EmbeddingScale.NONE:
        return [embedding(weight, INPUT_IDS, tokens)], tokens, tokens
    if scaling is EmbeddingScale.NUMBER:
        scaled = like(tokens, "inputs_embeds, scaled")
        return [embedding(weight, INPUT_IDS, tokens), scale(tokens, scaled)], scaled, tokens
    looked_up, factor = like(tokens, "embeddings before scaling"), embed_scale(numerics)
    gradients = (Gradient(of=looked_up, needs=(factor,)),)
    row = Row(name="mul", reads=(looked_up, factor), writes=(tokens,), gradients=gradients, elementwise_flops=1)
    return [embedding(weight, INPUT_IDS, looked_up), row], tokens, tokens


EMBEDDING_WEIGHT = "embed_tokens.weight"


def embed_scale(numerics: Numerics) -> Tensor:
    """GemmaTextScaledWordEmbedding's factor."""
    return Tensor("embed_tokens.embed_scale", (), numerics.weights, Kind.BUFFERS)


def llama_layer(facts: LayerFacts, numerics: Numerics) -> Section:
    """LlamaDecoderLayer: norms before attention and MLP, after them, or both."""
    if facts.kind.parallel:
        return _parallel_layer(facts, numerics)
    norms = facts.kind.norms
    x, middle, output = _stream(numerics)
    norm_1, normed = _norm(norms.before_attention, x, facts, numerics)
    attending, attended, held = _llama_attention(normed, facts, numerics)
    norm_2, attended_normed = _norm(norms.after_attention, attended, facts, numerics)
    norm_3, normed_2 = _norm(norms.before_mlp, middle, facts, numerics)
    mlp_rows, down = mlp(normed_2, facts, numerics)
    norm_4, down_normed = _norm(norms.after_mlp, down, facts, numerics)
    rows = [
        *norm_1,
        *stamped(attending, Component.ATTENTION, "self_attn"),
        frame(normed),
        *norm_2,
        *_added(x, attended_normed, middle, facts, drops=_drops(facts, ResidualDropout.WHERE_ADDED)),
        *norm_3,
        *stamped(mlp_rows, Component.MLP, "mlp"),
        frame(normed_2),
        *norm_4,
        *_added(middle, down_normed, output, facts, drops=_drops(facts, *DROPPED_AFTER_MLP)),
        frame(x, middle, *held, *((normed, attended, down) if facts.kind.holds_results else ())),
    ]
    layer = Section(name="layer", rows=tuple(rows), input=x, output=output, modules=_modules(facts))
    return recorded(with_cache(layer, facts.core, numerics))


def _parallel_layer(facts: LayerFacts, numerics: Numerics) -> Section:
    """CohereDecoderLayer: attention and MLP side by side."""
    x, middle, output = _stream(numerics)
    norm, normed = _norm(facts.kind.norms.before_attention, x, facts, numerics)
    attending, attended, held = _llama_attention(normed, facts, numerics)
    mlp_rows, down = mlp(normed, facts, numerics)
    drop, down = dropped(down, "mlp output after dropout", on=_drops(facts, *DROPPED_AFTER_MLP))
    rows = [
        *norm,
        *stamped(attending, Component.ATTENTION, "self_attn"),
        *stamped([*mlp_rows, *drop], Component.MLP, "mlp"),
        add(x, attended, middle),
        add(middle, down, output),
        frame(x, normed, attended, down, *held),
    ]
    layer = Section(name="layer", rows=tuple(rows), input=x, output=output, modules=_modules(facts))
    return with_cache(layer, facts.core, numerics)


def _stream(numerics: Numerics) -> tuple[Tensor, Tensor, Tensor]:
    """The residual stream before a layer, after its attention, and after it."""
    names = "hidden_states", "hidden_states after attention", f"{NEXT}hidden_states"
    x, middle, output = (hidden_states(numerics, name) for name in names)
    return x, middle, output


def _norm(name: str | None, x: Tensor, facts: LayerFacts, numerics: Numerics) -> tuple[list[Row], Tensor]:
    """The norm called `name`, where there is one."""
    if name is None:
        return [], x
    return norm_of(facts.kind.norm, liger=facts.liger)(name, x, f"{name} output", ("H",), numerics)


DROPPED_AFTER_MLP = (ResidualDropout.WHERE_ADDED, ResidualDropout.MLP_ALONE)


def _drops(facts: LayerFacts, *places: ResidualDropout) -> bool:
    """Whether the layer's dropout is in one of `places`."""
    return facts.residual_dropout and facts.kind.residual_dropout in places


def _added(residual: Tensor, x: Tensor, out: Tensor, facts: LayerFacts, *, drops: bool) -> list[Row]:
    """`x` added to the residual stream, dropped or scaled before."""
    rows, given = dropped(x, f"{x.name} after dropout", on=drops)
    if facts.kind.residual_scaled:
        given = like(x, f"{x.name}, scaled")
        rows = [scale(x, given)]
    held = () if facts.kind.residual_dropout is ResidualDropout.MLP_ALONE else (x,)
    return [*rows, add(residual, given, out), frame(*held)]


def _modules(facts: LayerFacts) -> tuple[str, ...]:
    """A layer's modules with weights of their own, in the order of their registration."""
    norms = facts.kind.norms
    places = (norms.before_attention, norms.after_attention, norms.before_mlp, norms.after_mlp)
    mlp_modules = ("gate_proj", "up_proj", "gate_up_proj", "down_proj", "c_fc", "c_proj")
    if isinstance(facts.kind.mlp, Mixture):
        mlp_modules = facts.kind.mlp.modules
    attention_modules = ("sinks", *PROJECTIONS, *LATENT_PROJECTIONS, "o_proj", "q_norm", "k_norm")
    return (
        *facts.kind.registered_first,
        *(f"self_attn.{name}" for name in attention_modules),
        *(f"mlp.{name}" for name in mlp_modules),
        *(name for name in places if name is not None),
    )


PROJECTIONS = ("q_proj", "k_proj", "v_proj", "qkv_proj")
LATENT_PROJECTIONS = ("q_a_proj", "q_a_layernorm", "q_b_proj", "kv_a_proj_with_mqa", "kv_a_layernorm", "kv_b_proj")


def _llama_attention(x: Tensor, facts: LayerFacts, numerics: Numerics) -> tuple[list[Row], Tensor, tuple[Tensor, ...]]:
    """LlamaAttention.forward: q, k, v; their norms; rotary positions; core; output."""
    rotary = facts.kind.rotary
    if facts.kind.latent is not None and rotary is not None:
        rows, (q, k, v), parts = latent_heads(x, rotary, facts, numerics)
    else:
        rows, (q, k, v), parts = _heads(x, facts, numerics)
    core_rows, out, held = attention(q, k, v, facts, numerics)
    projected = Tensor("o_proj output", ("B", "S", "H"), numerics.compute)
    rows += [
        *core_rows,
        *linear("self_attn.o_proj", out, projected, out.shape[2:], ("H",), numerics, bias=facts.kind.output_bias),
    ]
    drop, result = dropped(projected, "attention output after dropout", on=_drops(facts, ResidualDropout.INSIDE))
    return [*rows, *drop, frame(q, k, v, *parts)], result, held


def _heads(
    x: Tensor, facts: LayerFacts, numerics: Numerics
) -> tuple[list[Row], tuple[Tensor, Tensor, Tensor], tuple[Tensor, ...]]:
    """q, k and v as the core gets them, and what else the attention's frame holds."""
    rows, (q, k, v) = _projections(x, facts, numerics)
    turning, (turned_q, turned_k), parts = _with_positions(q, k, facts, numerics)
    rows += [*turning, frame(q, k)]
    if facts.kind.fused_query_key_value:
        parts = (*parts, v)
    cache_rows, turned_k, v = updated(turned_k, v, facts.core.cache, numerics)
    return [*rows, *cache_rows], (turned_q, turned_k, v), parts


def _with_positions(
    q: Tensor, k: Tensor, facts: LayerFacts, numerics: Numerics
) -> tuple[list[Row], Pair, tuple[Tensor, ...]]:
    """The rows, q and k with their positions, and what else the attention's frame holds of them."""
    rotary = facts.kind.rotary
    if rotary is None:
        return [], (q, k), ()
    made = rotary_tables(rotary, numerics, sliding=facts.core.sliding)
    if facts.liger:
        cos, sin = made
        rows, turned_q, turned_k = liger_rotary(q, k, cos, sin, facts.core)
        return rows, (turned_q, turned_k), ()
    return turned(q, k, made, rotary)


def _fused_projection(x: Tensor, facts: LayerFacts, numerics: Numerics) -> tuple[list[Row], list[Tensor]]:
    """Phi3Attention's qkv_proj: q, k and v are slices of one tensor."""
    core = facts.core
    fused = Tensor("qkv", ("B", "S", "N+2K", "D"), numerics.linear)
    kind = facts.kind
    rows = linear("self_attn.qkv_proj", x, fused, ("H",), ("N+2K", "D"), numerics, bias=kind.query_key_value_bias)
    heads: list[Tensor] = []
    viewing: list[Row] = []
    for name, shape, one_head in core.projections:
        flat, head = Tensor(f"{name} part", shape, numerics.linear), Tensor(name, shape, numerics.linear)
        copies = core.copies_gradient_by_token(one_head=one_head) if name == "v" else not one_head
        rows.append(part(fused, (flat,)))
        if kind.query_key_norm is QueryKeyNorm.HEAD and name != "v":
            norm = norm_of(kind.norm, liger=facts.liger)
            norm_rows, flat = norm(f"self_attn.{name}_norm", flat, f"{name}_norm output", ("D",), numerics)
            viewing += norm_rows
            head = like(flat, name)
        viewing.append(view(flat, head, copies_gradient=copies))
        heads.append(head)
    return [*rows, *viewing], heads


def _projections(x: Tensor, facts: LayerFacts, numerics: Numerics) -> tuple[list[Row], list[Tensor]]:
    """q, k and v by head."""
    core, kind = facts.core, facts.kind
    if kind.fused_query_key_value:
        return _fused_projection(x, facts, numerics)
    rows: list[Row] = []
    later: list[Row] = []
    heads: list[Tensor] = []
    for name, shape, one_head in core.projections:
        flat, head = Tensor(f"{name}_proj output", shape, numerics.linear), Tensor(name, shape, numerics.linear)
        rows += linear(f"self_attn.{name}_proj", x, flat, ("H",), shape[2:], numerics, bias=kind.query_key_value_bias)
        splitting: list[Row] = []
        if kind.query_key_norm is not QueryKeyNorm.NONE and name != "v":
            dims = ("D",) if kind.query_key_norm is QueryKeyNorm.HEAD else shape[2:]
            norm = norm_of(kind.norm, liger=facts.liger)
            norm_rows, flat = norm(f"self_attn.{name}_norm", flat, f"{name}_norm output", dims, numerics)
            splitting += norm_rows
            head = like(flat, name)
        copies = not facts.liger and not one_head  # q's and k's gradients come from rotary positions
        if name == "v" or kind.rotary is None:
            copies = core.copies_gradient_by_token(one_head=one_head, cast=numerics.linear is not numerics.weights)
        splitting.append(view(flat, head, copies_gradient=copies))
        (later if kind.norms_after_projections else rows).extend(splitting)
        heads.append(head)
    return [*rows, *later], heads


PARTS = Parts(
    embeddings=llama_embeddings,
    layer=llama_layer,
    end=End(embedding_weight=EMBEDDING_WEIGHT, final_norm="norm"),
    buffers=rotary_buffers,
)
