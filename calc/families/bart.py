"""BART and mBART: an encoder and a decoder with learned positions, their norms behind attention and MLP or before."""

from calc.architecture import Architecture, Dropouts, Layer
from calc.kinds import Activation, Head, LayerKind, ModelKind, Norm, Norms, Softmax, Wiring

from .fields import Fields, divides

MODELLED = {
    "is_encoder_decoder": True,
    "tie_word_embeddings": True,
    "encoder_layerdrop": 0.0,
    "decoder_layerdrop": 0.0,
}
"""Fields of which one value is modelled."""
NORMS_BEHIND = Norms(after_attention="self_attn_layer_norm", after_mlp="final_layer_norm")
NORMS_BEFORE = Norms(before_attention="self_attn_layer_norm", before_mlp="final_layer_norm")


def bart(fields: Fields) -> Architecture:
    """BartForConditionalGeneration."""
    kind = ModelKind(wiring=Wiring.BART, norm=Norm.LAYER, head=Head.SEQ2SEQ_LM, learned_positions=True)
    return _bart_like(fields, "bart", kind, NORMS_BEHIND)


def mbart(fields: Fields) -> Architecture:
    """MBartForConditionalGeneration."""
    kind = ModelKind(
        wiring=Wiring.BART,
        norm=Norm.LAYER,
        head=Head.SEQ2SEQ_LM,
        learned_positions=True,
        norms_behind_stacks=True,
        starts_with_last_label=True,
    )
    return _bart_like(fields, "mbart", kind, NORMS_BEFORE)


def _bart_like(fields: Fields, model_type: str, kind: ModelKind, norms: Norms) -> Architecture:
    for name, value in MODELLED.items():
        fields.only(name, value)
    hidden_size = fields.size("d_model", "hidden_size", default=1024)
    dropout = fields.probability("dropout", default=0.1)
    encoder, decoder = (_layer(fields, hidden_size, norms, decodes=decodes) for decodes in (False, True))
    return Architecture(
        model_type=model_type,
        kind=kind,
        vocab_size=fields.size("vocab_size", default=50265),
        hidden_size=hidden_size,
        max_position_embeddings=fields.size("max_position_embeddings", default=1024),
        tied_embeddings=True,
        layers=(
            (encoder, fields.size("encoder_layers", "num_hidden_layers", default=12)),
            (decoder, fields.size("decoder_layers", default=12)),
        ),
        dropouts=Dropouts(
            embedding=dropout,
            attention=fields.probability("attention_dropout", default=0.0),
            residual=dropout,
            mlp=fields.probability("activation_dropout", default=0.0),
        ),
    )


def _layer(fields: Fields, hidden_size: int, norms: Norms, *, decodes: bool) -> Layer:
    stack = "decoder" if decodes else "encoder"
    heads = f"{stack}_attention_heads"
    num_heads = fields.size(heads, *(() if decodes else ("num_attention_heads",)), default=16)
    divides(heads, num_heads, "hidden_size", hidden_size)
    return Layer(
        kind=LayerKind(
            wiring=Wiring.BART,
            activation=fields.activation("activation_function", default=Activation.GELU),
            norm=Norm.LAYER,
            norms=norms,
            softmax=Softmax.PLAIN,
            bidirectional=not decodes,
            decodes=decodes,
        ),
        num_attention_heads=num_heads,
        num_key_value_heads=num_heads,
        head_dim=hidden_size // num_heads,
        intermediate_size=fields.size(f"{stack}_ffn_dim", default=4096),
    )
