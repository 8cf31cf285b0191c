"""What each wiring is made of."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from .architecture import Wiring
from .blocks.bloom import bloom_embeddings, bloom_layer
from .blocks.embeddings import token_embeddings
from .blocks.facts import LayerFacts, ModelFacts
from .blocks.gpt2 import gpt2_embeddings, gpt2_layer
from .blocks.gpt_bigcode import GPT_BIGCODE_BUFFERS, gpt_bigcode_layer
from .blocks.gpt_neo import gpt_neo_layer
from .blocks.gpt_neox import gpt_neox_layer
from .blocks.gptj import gptj_layer
from .blocks.head import End
from .blocks.llama import EMBEDDING_WEIGHT, llama_embeddings, llama_layer
from .blocks.mpt import mpt_embeddings, mpt_layer
from .blocks.opt import opt_embeddings, opt_layer
from .blocks.phi import phi_layer
from .blocks.positions import rotary_buffers
from .ledger import Section, Tensor
from .megatron import megatron_layer
from .operators import Numerics


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The functions that write down a model's parts, and what belongs to none of them."""

    embeddings: Callable[[ModelFacts, Numerics], Section]
    layer: Callable[[LayerFacts, Numerics], Section]
    end: End
    buffers: Callable[[ModelFacts], Iterable[Tensor]] = lambda facts: ()
    """What the model owns that no part of it reads."""


GPT2_END = End(embedding_weight="wte.weight", final_norm="ln_f")

WIRINGS: dict[Wiring, Parts] = {
    Wiring.BLOOM: Parts(
        embeddings=bloom_embeddings,
        layer=bloom_layer,
        end=End(embedding_weight="word_embeddings.weight", final_norm="ln_f"),
    ),
    Wiring.GPT2: Parts(embeddings=gpt2_embeddings, layer=gpt2_layer, end=GPT2_END),
    Wiring.GPT_BIGCODE: Parts(
        embeddings=gpt2_embeddings, layer=gpt_bigcode_layer, end=GPT2_END, buffers=lambda facts: GPT_BIGCODE_BUFFERS
    ),
    Wiring.GPT_NEO: Parts(embeddings=gpt2_embeddings, layer=gpt_neo_layer, end=GPT2_END),
    Wiring.GPT_NEOX: Parts(
        embeddings=partial(token_embeddings, "embed_in.weight", "gpt_neox"),
        layer=gpt_neox_layer,
        end=End(embedding_weight="embed_in.weight", final_norm="final_layer_norm"),
        buffers=rotary_buffers,
    ),
    Wiring.GPTJ: Parts(
        embeddings=partial(token_embeddings, "wte.weight", "transformer"), layer=gptj_layer, end=GPT2_END
    ),
    Wiring.LLAMA: Parts(
        embeddings=llama_embeddings,
        layer=llama_layer,
        end=End(embedding_weight=EMBEDDING_WEIGHT, final_norm="norm"),
        buffers=rotary_buffers,
    ),
    Wiring.MPT: Parts(
        embeddings=mpt_embeddings, layer=mpt_layer, end=End(embedding_weight="wte.weight", final_norm="norm_f")
    ),
    Wiring.OPT: Parts(
        embeddings=opt_embeddings,
        layer=opt_layer,
        end=End(embedding_weight="embed_tokens.weight", final_norm="final_layer_norm"),
    ),
    Wiring.PHI: Parts(
        embeddings=partial(token_embeddings, EMBEDDING_WEIGHT, "model", holds_dropped=True),
        layer=phi_layer,
        end=End(embedding_weight="embed_tokens.weight", final_norm="final_layernorm"),
        buffers=rotary_buffers,
    ),
    Wiring.MEGATRON: Parts(embeddings=gpt2_embeddings, layer=megatron_layer, end=GPT2_END),
}
