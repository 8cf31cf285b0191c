"""ViT: an encoder of images, cut into patches, with a classification head."""

from calc.architecture import Architecture, Dropouts, Images, Layer
from calc.errors import ConfigError
from calc.kinds import Activation, Head, LayerKind, ModelKind, Norm, Norms, Wiring

from .fields import Fields, divides


def vit(fields: Fields) -> Architecture:
    """ViTForImageClassification. A pooler's fields are not read: this model has none."""
    hidden_size = fields.size("hidden_size", default=768)
    num_heads = fields.size("num_attention_heads", default=12)
    divides("num_attention_heads", num_heads, "hidden_size", hidden_size)
    fields.only("head_dim", hidden_size // num_heads)
    dropout = fields.probability("hidden_dropout_prob", default=0.0)
    images = _images(fields)
    layer = Layer(
        kind=LayerKind(
            wiring=Wiring.VIT,
            activation=fields.activation("hidden_act", default=Activation.GELU),
            norm=Norm.LAYER,
            norms=Norms(before_attention="layernorm_before", before_mlp="layernorm_after"),
            query_key_value_bias=fields.flag("qkv_bias", default=True),
            output_bias=True,
            mlp_bias=True,
            bidirectional=True,
        ),
        num_attention_heads=num_heads,
        num_key_value_heads=num_heads,
        head_dim=hidden_size // num_heads,
        intermediate_size=fields.size("intermediate_size", default=3072),
    )
    return Architecture(
        model_type="vit",
        kind=ModelKind(wiring=Wiring.VIT, norm=Norm.LAYER, head=Head.IMAGE_CLASSIFICATION, learned_positions=True),
        vocab_size=0,
        hidden_size=hidden_size,
        max_position_embeddings=images.num_patches + 1,
        tied_embeddings=False,
        images=images,
        num_labels=fields.num_labels(),
        layers=((layer, fields.size("num_hidden_layers", default=12)),),
        dropouts=Dropouts(
            embedding=dropout,
            attention=fields.probability("attention_probs_dropout_prob", default=0.0),
            residual=dropout,
        ),
    )


def _images(fields: Fields) -> Images:
    images = Images(
        num_channels=fields.size("num_channels", default=3),
        image_size=_sides(fields, "image_size", default=224),
        patch_size=_sides(fields, "patch_size", default=16),
    )
    if not images.num_patches:
        raise ConfigError("model.patch_size", list(images.patch_size), "should be at most image_size")
    return images


def _sides(fields: Fields, name: str, *, default: int) -> tuple[int, int]:
    """Height and width; one number stands for both."""
    given = fields.value(name, default=default)
    if isinstance(given, list | tuple) and len(given) == 2 and all(type(each) is int and each > 0 for each in given):
        return given[0], given[1]
    side = fields.size(name, default=default)
    return side, side
