"""What the letters of shapes stand for: the numbers of one architecture, workload and plan."""

from .architecture import Architecture, Experts, Images, Latent, Layer
from .attention import CROSS_WORKSPACE
from .expert_load import tokens_of, tokens_of_experts
from .kernels import (
    BIAS_GRADIENT_MULTIPLE,
    FLASH_SEQUENCE_BLOCK,
    HEAD_MULTIPLE,
    MASK_MULTIPLE,
    STATISTICS_BLOCK,
    efficient_workspace_floats,
    flash_head,
    round_up,
)
from .losses import chunk_tokens
from .plan import Plan, Workload
from .scenario import (
    PREFIXED,
    PROMPTED,
    Adapter,
    CacheImplementation,
    ExpertsImplementation,
    Loss,
    num_prompt_tokens,
)


def common_sizes(architecture: Architecture, workload: Workload, plan: Plan) -> dict[str, int]:
    """The symbols that mean the same in all sections."""
    length, target_length = workload.sequence_length, workload.target_length
    before = max(layer.num_prefix_tokens for layer, _ in architecture.layers)
    keys = length + before
    tokens = workload.micro_batch_size * length
    kept = plan.eval_accumulation_steps
    return {
        "B": workload.micro_batch_size,
        **(_chunk_sizes(architecture, tokens, plan.loss) if plan.loss is not Loss.CROSS_ENTROPY else {}),
        "S": length,
        "S+1": length + 1,
        "T": before,
        "S+T": keys,
        "S+T+1": keys + 1,
        "S+T⌈8⌉": round_up(keys, MASK_MULTIPLE),
        "S⌈8⌉": round_up(length, MASK_MULTIPLE),
        "S⌈32⌉": round_up(length, STATISTICS_BLOCK),
        "S⌈128⌉": round_up(length, FLASH_SEQUENCE_BLOCK),
        "L": architecture.num_layers,
        "V": architecture.vocab_size,
        "P": architecture.max_position_embeddings,
        "P+2": architecture.max_position_embeddings + 2,
        "H": architecture.hidden_size,
        **(_decoder_sizes(length, target_length, target_length + before) if target_length else {}),
        **({"I": architecture.num_position_buckets} if architecture.num_position_buckets else {}),
        **({"J": architecture.type_vocab_size} if architecture.type_vocab_size else {}),
        **next((_expert_sizes(layer.experts) for layer, _ in architecture.layers if layer.experts), {}),
        **({"U": architecture.num_labels} if architecture.num_labels else {}),
        **(_image_sizes(architecture.images) if architecture.images else {}),
        **({"2S": 2 * length, "Mb": architecture.audio.num_mel_bins} if architecture.audio else {}),
        **({"A": kept, "A-1": kept - 1} if kept else {}),
        **(_adapter_sizes(plan.adapter, architecture, length) if plan.adapter else {}),
        **_window_sizes(architecture, length),
        **(_residue_sizes(architecture, before) if plan.cache_implementation is CacheImplementation.QUANTIZED else {}),
    }


def _chunk_sizes(architecture: Architecture, tokens: int, loss: Loss) -> dict[str, int]:
    chunk = chunk_tokens(loss, tokens, architecture.vocab_size, architecture.hidden_size)
    return {"C": chunk, "C2": min(chunk, tokens - chunk)}


def _image_sizes(images: Images) -> dict[str, int]:
    return {
        "Ci": images.num_channels,
        "Hi": images.image_size[0],
        "Wi": images.image_size[1],
        "Hp": images.patch_size[0],
        "Wp": images.patch_size[1],
        "S-1": images.num_patches,
    }


def _residue_sizes(architecture: Architecture, before: int) -> dict[str, int]:
    residue = architecture.layers[0][0].num_residual_tokens
    return {"Tc": before - residue, "Tr": residue, "Tr+1": residue + 1}


def _window_sizes(architecture: Architecture, length: int) -> dict[str, int]:
    """Of a cache's layers with a window, which have one for all."""
    windowed = (layer for layer, _ in architecture.layers if layer.sliding_window)
    layer = next((layer for layer in windowed if layer.num_stored_tokens or layer.num_places), None)
    if layer is None:
        return {}
    keys = length + layer.num_prefix_tokens
    return {
        "Tk": layer.num_places or layer.num_stored_tokens,
        "Tw": layer.num_prefix_tokens,
        "S+Tw": keys,
        "S+Tw+1": keys + 1,
        "S+Tw⌈8⌉": round_up(keys, MASK_MULTIPLE),
    }


def _decoder_sizes(source_length: int, length: int, num_keys: int) -> dict[str, int]:
    return {
        "Z+T": num_keys,
        "Z+T⌈8⌉": round_up(num_keys, MASK_MULTIPLE),
        "Z+T⌈16⌉": round_up(num_keys, BIAS_GRADIENT_MULTIPLE),
        "Z": length,
        "Z-1": length - 1,
        "Z⌈8⌉": round_up(length, MASK_MULTIPLE),
        "Z⌈16⌉": round_up(length, BIAS_GRADIENT_MULTIPLE),
        "S⌈16⌉": round_up(source_length, BIAS_GRADIENT_MULTIPLE),
        "Z⌈32⌉": round_up(length, STATISTICS_BLOCK),
        "Z⌈128⌉": round_up(length, FLASH_SEQUENCE_BLOCK),
    }


def _adapter_sizes(adapter: Adapter, architecture: Architecture, length: int) -> dict[str, int]:
    layer = architecture.layers[0][0]
    width = layer.num_key_value_heads * layer.head_dim if adapter.kind in PREFIXED else architecture.hidden_size
    if adapter.kind not in PREFIXED | PROMPTED:
        return {"R": adapter.rank}
    return {
        "T": adapter.num_virtual_tokens,
        "S-T": length - num_prompt_tokens(adapter),
        "E": adapter.encoder_hidden_size or width,
    }


def layer_sizes(layer: Layer) -> dict[str, int]:
    """The symbols of one layer."""
    return {
        "F": layer.intermediate_size,
        **(_expert_sizes(layer.experts) if layer.experts else {}),
        **(_latent_sizes(layer, layer.latent) if layer.latent else {}),
        "N": layer.num_attention_heads,
        "K": layer.num_key_value_heads,
        "N+2K": layer.num_attention_heads + 2 * layer.num_key_value_heads,
        "D": layer.head_dim,
        "D/2": layer.head_dim // 2,
        "Q": layer.rotary_dim,
        "Q/2": layer.rotary_dim // 2,
        "D-Q": layer.head_dim - layer.rotary_dim,
        "D⌈8⌉": round_up(layer.head_dim, HEAD_MULTIPLE),
        "D⌈32⌉": flash_head(layer.head_dim),
    }


def _expert_sizes(experts: Experts) -> dict[str, int]:
    return {
        "X": experts.num_experts,
        "X+1": experts.num_experts + 1,
        "Y": experts.num_experts_per_tok,
        "G": experts.shared_intermediate_size,
        "Xg": experts.num_groups,
        "Yg": experts.num_groups_per_tok,
    }


def _latent_sizes(layer: Layer, latent: Latent) -> dict[str, int]:
    left = layer.head_dim - layer.rotary_dim
    return {
        "Dv": latent.value_head_dim,
        "D-Q+Dv": left + latent.value_head_dim,
        "Rq": latent.query_rank,
        "Rk": latent.key_value_rank,
        "Rk+Q": latent.key_value_rank + layer.rotary_dim,
    }


def expert_loads(layer: Layer, workload: Workload, plan: Plan) -> list[int]:
    """Where a layer's experts run in a loop, the tokens of each that gets any."""
    if layer.experts is None or plan.experts_implementation is not ExpertsImplementation.EAGER:
        return []
    num_tokens = workload.micro_batch_size * workload.sequence_length
    return [tokens for tokens in tokens_of_experts(plan.expert_load, layer.experts, num_tokens) if tokens]


def load_sizes(layer: Layer, workload: Workload, plan: Plan) -> dict[str, int]:
    return {tokens_of(number): tokens for number, tokens in enumerate(expert_loads(layer, workload, plan), 1)}


def kernel_sizes(layer: Layer, common: dict[str, int], plan: Plan) -> dict[str, int]:
    """The symbols that also depend on the step's sizes."""
    num_heads = common["B"] * layer.num_attention_heads
    length, compute = common["Z" if layer.kind.decodes else "S"], plan.numerics.compute
    keys = {"W": length + layer.num_prefix_tokens, **({CROSS_WORKSPACE: common["S"]} if layer.kind.decodes else {})}
    return {
        name: efficient_workspace_floats(length, num_keys, layer.head_dims, num_heads, compute)
        for name, num_keys in keys.items()
    }
