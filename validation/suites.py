"""The suites: which cases are traced and measured. Written down before either.

Whole models where size is the question; models cut in depth, which their names say, where a knob is. Every tensor of
a layer is the same in all layers, so a few layers show it, and the GPU's minutes go further.
"""

from typing import Any

from validation import generation_cases
from validation.cases import Case, case, config_of, cut, retied
from validation.generation_cases import WINDOWED
from validation.pairwise import Choice, all_pairs

LORA = {"kind": "lora", "rank": 16}
EVERY_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
WIDE_LORA = {"kind": "lora", "rank": 64, "dropout": 0.1, "target_modules": EVERY_LINEAR}

GPT2_124M = ("gpt2", 8, 1024)
LLAMA_2_7B = ("llama-2-7b", 1, 4096)

BIASED = cut("llama-3.2-1b", 2) | {
    "attention_bias": True,
    "mlp_bias": True,
    "tie_word_embeddings": False,
    "_name_or_path": "llama-3.2-1b-2-of-16-layers-biased-untied",
}

ALTERNATING = cut("qwen2.5-0.5b", 4) | {
    "use_sliding_window": True,
    "sliding_window": 128,
    "max_window_layers": 2,
    "_name_or_path": "qwen2.5-0.5b-4-layers-two-with-window-128",
}
HEADS_OF_100 = cut("llama-3.2-1b", 2) | {
    "hidden_size": 800,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "head_dim": 100,
    "_name_or_path": "llama-3.2-1b-2-layers-heads-of-100",
}
MODERNBERT = {"model_type": "modernbert", "_name_or_path": "modernbert-base"}
BART = {
    "model_type": "bart",
    "encoder_layers": 2,
    "decoder_layers": 2,
    "attention_dropout": 0.1,
    "activation_dropout": 0.1,
    "_name_or_path": "bart-large-2-and-2-layers",
}
ERNIE_MOE = {"model_type": "ernie4_5_moe", "num_hidden_layers": 3, "_name_or_path": "ernie-4.5-21b-a3b-3-layers"}
SIX_LAYERS = cut("smollm2-135m", 6)
IA3_EVERYWHERE = {"kind": "ia3", "target_modules": EVERY_LINEAR, "feedforward_modules": ["down_proj"]}

TRACES = [
    # The two tasks of record.
    case(*GPT2_124M, attention="eager"),
    case(*LLAMA_2_7B, attention="flash"),
    case(*LLAMA_2_7B, attention="flash", optimizer="adamw-fused"),
    # One family after the other: every precision, attention and recomputation, then the other knobs.
    case("gpt2", 4, 512, attention="eager", precision="fp32", optimizer="adamw-for-loop"),
    case("gpt2", 4, 512, attention="eager", precision="bf16", recompute="full"),
    case("gpt2", 4, 512, attention="eager", precision="fp16", recompute="selective", dropout=0.0),
    case("gpt2", 4, 512, attention="flash", precision="fp16-autocast", optimizer="sgd-momentum"),
    case("gpt2", 4, 512, attention="flash", adapter=LORA, recompute="full"),
    case("gpt2-medium", 2, 1024, attention="flash", gradient_accumulation_steps=4, dropout=0.0),
    case("gpt2-medium", 2, 1024, attention="eager", recompute="selective", optimizer="adamw-fused"),
    case("llama-3.2-1b", 2, 2048, attention="flash"),
    case("llama-3.2-1b", 2, 1024, attention="eager", precision="fp32", recompute="full", optimizer="sgd"),
    case("llama-3.2-1b", 4, 512, attention="eager", precision="fp16", optimizer="adamw-for-loop"),
    case("llama-3.2-1b", 2, 1024, attention="flash", precision="fp16-autocast", gradient_accumulation_steps=2),
    case("llama-3.1-8b", 1, 4096, attention="flash", precision="bf16", recompute="full"),
    case("llama-3.1-8b", 1, 2048, attention="flash", precision="bf16", adapter=LORA),
    case("llama-2-7b", 2, 1024, attention="flash", precision="bf16", recompute="selective", optimizer="sgd"),
    case("smollm2-135m", 8, 512, attention="eager", precision="bf16", dropout=0.1),
    case("smollm2-360m", 4, 1024, attention="flash", recompute="full", gradient_accumulation_steps=2),
    case("tinyllama-1.1b", 4, 2048, attention="flash", adapter=WIDE_LORA, recompute="full"),
    case("mistral-7b-v0.3", 1, 4096, attention="flash", precision="bf16"),
    case("mistral-7b-v0.1", 1, 2048, attention="flash", recompute="full", optimizer="adamw-fused"),
    case("mistral-7b-v0.3", 1, 1024, attention="eager", precision="fp16-autocast", adapter=WIDE_LORA),
    case("mistral-7b-v0.3", 2, 512, attention="eager", precision="fp32", recompute="selective", optimizer="sgd"),
    case("mistral-7b-v0.3", 1, 1024, attention="flash", precision="fp16", optimizer="sgd-momentum"),
    case("qwen2.5-0.5b", 4, 1024, attention="flash"),
    case("qwen2.5-0.5b", 2, 512, attention="eager", precision="fp32", optimizer="adamw-for-loop"),
    case("qwen2.5-0.5b", 2, 1024, attention="eager", precision="bf16", gradient_accumulation_steps=4),
    case("qwen2.5-7b", 1, 2048, attention="flash", precision="bf16", recompute="full", optimizer="adamw-fused"),
    case("qwen2.5-7b", 1, 2048, attention="flash", precision="fp16", adapter=LORA, recompute="selective"),
    case("qwen2.5-0.5b", 2, 1024, attention="flash", precision="fp16-autocast", recompute="full"),
    case("qwen3-0.6b", 4, 1024, attention="flash"),
    case("qwen3-0.6b", 2, 512, attention="eager", precision="fp32", gradient_accumulation_steps=2, optimizer="sgd"),
    case("qwen3-0.6b", 2, 1024, attention="eager", precision="bf16", recompute="selective"),
    case("qwen3-0.6b", 2, 1024, attention="flash", precision="fp16", optimizer="adamw-for-loop"),
    case("qwen3-0.6b", 2, 1024, attention="eager", precision="fp16-autocast", adapter={**LORA, "dtype": "base"}),
    case("qwen3-8b", 1, 4096, attention="flash", precision="bf16", recompute="full", adapter=WIDE_LORA),
    # A sliding window that is shorter than the sequence; biases everywhere; an adapter on fp32.
    case("mistral-7b-v0.1", 1, 5000, attention="eager", precision="bf16"),
    case(BIASED, 3, 100, attention="flash"),
    case("gpt2", 2, 256, attention="eager", precision="fp32", adapter=LORA, gradient_accumulation_steps=2),
    # Held out: chosen before the first of them was traced.
    case("distilgpt2", 3, 777, attention="eager", recompute="full", optimizer="sgd-momentum", holdout=True),
    case("gpt2-large", 1, 1000, attention="flash", precision="bf16", adapter=LORA, holdout=True),
    case("llama-3.2-3b", 1, 3000, attention="flash", gradient_accumulation_steps=3, holdout=True),
    case("smollm2-1.7b", 5, 333, attention="eager", precision="fp16-autocast", recompute="selective", holdout=True),
    case("mistral-nemo-12b", 1, 1025, attention="flash", precision="bf16", optimizer="adamw-for-loop", holdout=True),
    case("qwen2.5-3b", 3, 700, attention="flash", precision="fp16-autocast", adapter=WIDE_LORA, holdout=True),
    case("qwen3-1.7b", 2, 1111, attention="eager", precision="bf16", recompute="full", holdout=True),
    case("qwen3-4b", 1, 2049, attention="flash", optimizer="adamw-fused", recompute="selective", holdout=True),
    # Autocast over weights in bf16: a model loaded in bf16 that Trainer runs with bf16=True.
    case("llama-3.1-8b", 1, 2048, attention="flash", precision="bf16-weights-autocast", adapter=WIDE_LORA),
    case(
        "llama-3.2-1b", 2, 1024, precision="bf16-weights-autocast", adapter={**LORA, "kind": "qlora"}, recompute="full"
    ),
    # The kernels of scaled_dot_product_attention: what auto comes to, masks, head sizes that are padded.
    case("distilgpt2", 2, 500, precision="fp32"),
    case("distilgpt2", 2, 500, attention="math", optimizer="sgd"),
    case("distilgpt2", 2, 500, attention="efficient", recompute="full"),
    case("distilgpt2", 2, 500, attention="efficient", recompute="selective", precision="fp16-autocast"),
    case(cut("llama-3.2-1b", 2), 2, 500, precision="fp32"),
    case(WINDOWED, 2, 512, precision="bf16"),
    case(WINDOWED, 2, 509, precision="bf16"),
    case(ALTERNATING, 1, 300),
    case(HEADS_OF_100, 2, 333, precision="bf16"),
    # Recomputation of several layers, and away from the GPU.
    case(SIX_LAYERS, 2, 300, recompute="full", recompute_interval=4),
    case(SIX_LAYERS, 2, 300, recompute="full", recompute_group_size=4, precision="bf16"),
    case(SIX_LAYERS, 2, 300, recompute="selective", recompute_interval=2, attention="eager"),
    case("distilgpt2", 2, 300, recompute="full", recompute_offload=True, attention="eager"),
    case("distilgpt2", 2, 300, recompute="full", recompute_group_size=2, frozen_layers=3),
    case(SIX_LAYERS, 2, 300, recompute="operators", attention="flash"),
    case("distilgpt2", 2, 300, recompute="operators", recompute_saved_operators=["addmm", "bmm"], attention="eager"),
    # Optimizers and what is around their step.
    *(
        case("distilgpt2", 2, 128, optimizer=optimizer, precision=precision)
        for optimizer, precision in (
            ("adafactor", "bf16-autocast"),
            ("lion", "bf16"),
            ("muon", "fp16-autocast"),
            ("sgd-nesterov", "fp32"),
        )
    ),
    case("distilgpt2", 2, 128, max_grad_norm=1.0, precision="fp16-autocast"),
    case("distilgpt2", 2, 128, zero_grad_set_to_none=False, gradient_accumulation_steps=2),
    case("distilgpt2", 2, 128, accumulate_grads_in_fp32=True, gradient_accumulation_steps=2, precision="bf16"),
    case(cut("qwen3-0.6b", 3), 2, 128, weight_ema=True, max_grad_norm=1.0, optimizer="adamw-fused"),
    case(cut("qwen2.5-0.5b", 2), 4, 128, num_labels=3, problem_type="multi_label_classification"),
    # Losses, outputs, kernels of Liger, frozen layers.
    case(cut("qwen2.5-0.5b", 2), 2, 256, loss="chunked-cross-entropy"),
    case(cut("qwen2.5-0.5b", 2), 2, 256, loss="fused-linear-cross-entropy", precision="bf16"),
    case(cut("qwen2.5-0.5b", 2), 2, 256, hold_outputs=True),
    case(cut("llama-3.2-1b", 2), 2, 256, use_liger_kernel=True),
    case(cut("llama-3.2-1b", 3), 2, 256, frozen_layers=2, precision="bf16"),
    # Adapters.
    *(
        case(cut("llama-3.2-1b", 2), 2, 200, adapter=adapter)
        for adapter in (
            {"kind": "lora", "rank": 8, "use_dora": True},
            {"kind": "lora", "rank": 8, "modules_to_save": ["lm_head"]},
            {"kind": "qlora", "rank": 8},
            {"kind": "lora-int8", "rank": 8},
            {"kind": "ia3"},
            {"kind": "prompt-tuning", "num_virtual_tokens": 10},
            {"kind": "p-tuning", "num_virtual_tokens": 10},
            {"kind": "prefix-tuning", "num_virtual_tokens": 10},
            {"kind": "p-tuning-v2", "num_virtual_tokens": 10},
        )
    ),
    case(cut("llama-3.2-1b", 2), 2, 200, adapter=IA3_EVERYWHERE, recompute="full", precision="bf16"),
    case(
        cut("llama-3.2-1b", 2), 2, 200, adapter={"kind": "adalora", "rank": 12, "target_modules": ["q_proj", "v_proj"]}
    ),
    # Mixtures of experts, with the routers' auxiliary loss and without; latent attention.
    case(cut("qwen1.5-moe-a2.7b", 2), 2, 512, attention="flash"),
    case(cut("qwen1.5-moe-a2.7b", 2), 2, 512, output_router_logits=True, precision="bf16", recompute="full"),
    case(cut("mixtral-8x7b", 1), 1, 1024, precision="bf16", output_router_logits=True),
    case(cut("qwen3-30b-a3b", 2), 1, 700, adapter={"kind": "lora", "target_modules": ["q_proj", "v_proj"]}),
    case(cut("gpt-oss-20b", 2), 1, 300, precision="bf16", optimizer="sgd"),
    case(cut("deepseek-v2-lite", 3), 1, 500, precision="bf16", recompute="full"),
    case(cut("mixtral-8x7b", 1), 1, 1024, precision="bf16", experts_implementation="eager", expert_load="worst"),
    case(cut("qwen1.5-moe-a2.7b", 2), 2, 512, experts_implementation="eager", recompute="full"),
    case(ERNIE_MOE, 1, 512, precision="bf16"),
    case(ERNIE_MOE, 2, 256, adapter={"kind": "lora", "target_modules": ["q_proj", "v_proj"]}, recompute="full"),
    # Encoder-decoders.
    case(BART, 2, 500, target_length=120),
    case(BART, 4, 300, target_length=300, attention="eager", precision="bf16", recompute="full"),
    case(BART, 2, 256, adapter={"kind": "lora"}, recompute="full", target_length=64),
    # Images and sound.
    case("vit-base-patch16-224", 8, 197),
    case("vit-base-patch16-224", 1, 197, attention="eager", precision="bf16", recompute="full"),
    case("whisper-tiny", 2, 1500, target_length=100),
    case("whisper-tiny", 4, 1500, target_length=448, attention="eager", precision="bf16", recompute="full"),
    # Encoders, classification, evaluation.
    case("bert-base-uncased", 4, 256),
    case("bert-base-uncased", 4, 128, num_labels=2, precision="fp16-autocast"),
    case(MODERNBERT, 2, 700, attention="efficient"),
    case(cut("llama-3.2-1b", 2), 4, 128, num_labels=1, problem_type="regression"),
    case("distilgpt2", 4, 256, task="evaluation"),
    case(cut("qwen3-0.6b", 3), 4, 256, task="evaluation", eval_accumulation_steps=3, precision="bf16"),
    case(SIX_LAYERS, 2, 300, recompute="operators", recompute_saved_operators=["mm"], precision="bf16"),
    # Held out: chosen before any of these was traced.
    case(WINDOWED, 3, 401, precision="fp16-autocast", recompute="full", recompute_group_size=3, holdout=True),
    case(SIX_LAYERS, 1, 777, recompute="full", recompute_group_size=5, adapter=WIDE_LORA, holdout=True),
    case("distilgpt2", 3, 333, attention="math", precision="fp16", optimizer="lion", max_grad_norm=0.5, holdout=True),
    case(ALTERNATING, 2, 257, precision="fp32", optimizer="adafactor", weight_ema=True, holdout=True),
    case(
        cut("qwen3-1.7b", 3), 2, 190, adapter={"kind": "qlora", "rank": 4}, loss="chunked-cross-entropy", holdout=True
    ),
    case(HEADS_OF_100, 1, 290, attention="flash", recompute="selective", optimizer="muon", holdout=True),
    case(cut("smollm2-360m", 5), 2, 411, use_liger_kernel=True, frozen_layers=2, hold_outputs=True, holdout=True),
    case(cut("mistral-7b-v0.3", 2), 1, 300, adapter={"kind": "p-tuning-v2"}, precision="bf16", holdout=True),
    # Held out: chosen before any of the cases with mixtures, encoders and evaluations was traced.
    case(cut("qwen1.5-moe-a2.7b", 3), 1, 901, output_router_logits=True, gradient_accumulation_steps=2, holdout=True),
    case(cut("deepseek-v2-lite", 2), 2, 333, adapter={"kind": "lora", "target_modules": ["o_proj"]}, holdout=True),
    case(MODERNBERT, 1, 1000, recompute="full", precision="bf16", holdout=True),
    case(cut("smollm2-360m", 4), 3, 222, task="evaluation", eval_accumulation_steps=2, holdout=True),
    *generation_cases.TRACED,
    # Held out: chosen before experts in a loop, BART and ERNIE with experts were traced at such sizes.
    case(cut("deepseek-v2-lite", 2), 1, 555, experts_implementation="eager", optimizer="sgd", holdout=True),
    case(BART, 3, 333, target_length=77, precision="fp16-autocast", gradient_accumulation_steps=2, holdout=True),
    # Held out: chosen before ViT and Whisper were traced at such sizes.
    case("vit-large-patch16-224", 3, 197, precision="fp16-autocast", gradient_accumulation_steps=2, holdout=True),
    case("whisper-base", 1, 1500, target_length=77, optimizer="adamw-fused", max_grad_norm=1.0, holdout=True),
    case(ERNIE_MOE, 1, 900, attention="eager", precision="bf16", recompute="selective", holdout=True),
]

# --- measured: each knob alone ------------------------------------------------------------------------------------

FLASH: dict[str, Any] = {"attention": "flash"}
MOST_KNOBS: list[dict[str, Any]] = [
    FLASH | {"history": True},
    FLASH | {"precision": "bf16"},
    FLASH | {"optimizer": "adamw-fused"},
    FLASH | {"recompute": "full", "history": True},
    FLASH | {"adapter": LORA},
    FLASH | {"gradient_accumulation_steps": 4},
    {"attention": "eager", "history": True},
    {"attention": "auto"},
]
EVERY_KNOB: list[dict[str, Any]] = [
    *MOST_KNOBS,
    {"attention": "math"},
    {"attention": "auto", "precision": "fp32"},
    {"attention": "eager", "precision": "fp32"},
    FLASH | {"precision": "fp16-autocast"},
    FLASH | {"optimizer": "adamw-for-loop"},
    FLASH | {"optimizer": "sgd"},
    FLASH | {"optimizer": "sgd-momentum"},
    FLASH | {"recompute": "selective"},
]
"""Each changes one thing of the first, or two where the precision forbids flash."""

MORE_OPTIONS: list[dict[str, Any]] = [
    {"optimizer": "adafactor"},
    {"optimizer": "muon"},
    {"optimizer": "sgd-nesterov"},
    {"max_grad_norm": 1.0},
    {"zero_grad_set_to_none": False},
    {"accumulate_grads_in_fp32": True, "precision": "bf16"},
    {"weight_ema": True},
    {"recompute": "full", "recompute_interval": 2},
    {"recompute": "full", "recompute_group_size": 2},
    {"recompute": "operators"},
]
"""What torch alone can run; 8-bit AdamW and Lion need libraries that a machine with a GPU often lacks."""

LLAMA = cut("llama-3.2-1b", 4)
QWEN3 = cut("qwen3-0.6b", 8)
UNGROUPED = cut("smollm2-1.7b", 4)
"""A Llama with as many key/value heads as query heads, which the efficient kernel asks for."""

ALONE = [
    *(case("gpt2", 8, 1024, **knob) for knob in EVERY_KNOB),
    *(case(LLAMA, 4, 1024, **knob) for knob in EVERY_KNOB),
    *(case(QWEN3, 4, 1024, **knob) for knob in EVERY_KNOB),
    *(case(cut("mistral-7b-v0.3", 2), 2, 2048, **knob) for knob in MOST_KNOBS),
    *(case(cut("qwen2.5-0.5b", 8), 4, 1024, **knob) for knob in MOST_KNOBS),
    *(case(UNGROUPED, 4, 1024, attention=kernel) for kernel in ("flash", "efficient")),
    case(UNGROUPED, 4, 1024, attention="auto", precision="fp32"),
    case("gpt2", 8, 1024, attention="efficient"),
    case("gpt2", 8, 1024, attention="flash", dropout=0.0),
    case(LLAMA, 4, 1024, attention="flash", dropout=0.1),
    case(QWEN3, 4, 1024, attention="flash", dropout=0.1),
    *(case(retied(model), batch, 1024, attention="flash") for model, batch in (("gpt2", 8), (LLAMA, 4), (QWEN3, 4))),
    case(LLAMA, 4, 1024, attention="flash", adapter=WIDE_LORA),
    *(case(LLAMA, 4, 1024, **FLASH, **option) for option in MORE_OPTIONS),
    case("gpt2", 8, 1024, **FLASH, max_grad_norm=1.0, optimizer="adamw-fused"),
    case("gpt2", 8, 1024, **FLASH, max_grad_norm=1.0, precision="fp16-autocast"),
]

# --- measured: knobs in pairs -------------------------------------------------------------------------------------

PAIRED_KNOBS: dict[str, list[Any]] = {
    "model": [
        "gpt2",
        cut("llama-3.2-1b", 3),
        cut("smollm2-1.7b", 3),
        cut("mistral-7b-v0.3", 1),
        cut("qwen2.5-0.5b", 6),
        cut("qwen2.5-7b", 1),
        cut("qwen3-0.6b", 6),
        cut("qwen3-8b", 1),
    ],
    "retied": [False, True],
    "size": [(2, 512), (1, 1000), (6, 256)],
    "precision": ["fp32", "bf16", "bf16-autocast", "fp16-autocast"],
    "attention": ["eager", "flash", "efficient", "auto"],
    "optimizer": ["adamw", "adamw-fused", "adamw-for-loop", "sgd", "sgd-momentum"],
    "recompute": ["none", "full", "selective"],
    "adapter": [None, LORA],
    "dropout": [0.0, 0.1],
    "gradient_accumulation_steps": [1, 4],
}
EVERY_NTH_WITH_HISTORY = 8


def can_meet(choice: Choice) -> bool:
    """Flash attention takes no fp32, the efficient kernel no grouped heads."""
    if choice.get("attention") == "efficient" and "model" in choice:
        config = config_of(choice)
        return config.get("num_key_value_heads") in (None, config.get("num_attention_heads"))
    return (choice.get("precision"), choice.get("attention")) != ("fp32", "flash")


def paired(choice: Choice, *, history: bool) -> Case:
    model, swapped, (batch, sequence) = (choice[name] for name in ("model", "retied", "size"))
    fields = {name: value for name, value in choice.items() if name not in ("model", "retied", "size")}
    return case(retied(model) if swapped else model, batch, sequence, history=history, **fields)


PAIRS = [
    paired(choice, history=position % EVERY_NTH_WITH_HISTORY == 0)
    for position, choice in enumerate(all_pairs(PAIRED_KNOBS, can_meet))
]

# --- measured: whole models, from small to near a GPU's limit -----------------------------------------------------

SIZES = [
    # Small: where allocator blocks and workspaces weigh most.
    case("distilgpt2", 1, 64, attention="flash"),
    case("gpt2", 1, 128, attention="flash", precision="bf16"),
    case("smollm2-135m", 1, 128, attention="flash"),
    case("smollm2-360m", 2, 256, attention="flash", precision="bf16"),
    # Some tens of GiB.
    case("gpt2-medium", 8, 1024, attention="eager"),
    case("gpt2-large", 8, 1024, attention="flash", recompute="full"),
    case("gpt2-xl", 4, 1024, attention="flash", precision="bf16"),
    case("smollm2-1.7b", 4, 2048, attention="flash", recompute="full"),
    case("tinyllama-1.1b", 4, 2048, attention="flash"),
    case("llama-3.2-1b", 4, 2048, attention="flash", history=True),
    case("qwen2.5-0.5b", 8, 1024, attention="flash"),
    case("qwen2.5-1.5b", 2, 2048, attention="flash"),
    case("qwen2.5-3b", 2, 2048, attention="flash", precision="bf16"),
    case("qwen3-0.6b", 8, 1024, attention="flash"),
    case("qwen3-1.7b", 2, 2048, attention="flash", optimizer="adamw-fused"),
    # Near the limit of 80 GB.
    case("llama-3.2-3b", 1, 2048, attention="flash"),
    case("llama-3.1-8b", 1, 2048, attention="flash", precision="bf16", optimizer="adamw-fused"),
    case("mistral-7b-v0.3", 4, 2048, attention="flash", precision="bf16", adapter=LORA),
    case("qwen3-4b", 1, 2048, attention="flash", recompute="full"),
    # Near the limit of 141 GB.
    case(*LLAMA_2_7B, attention="flash", history=True),
    case(*LLAMA_2_7B, attention="flash", optimizer="adamw-fused"),
    case("mistral-7b-v0.3", 4, 2048, attention="flash", precision="bf16"),
    case("qwen2.5-7b", 3, 2048, attention="flash", precision="bf16", optimizer="sgd-momentum"),
    case("qwen3-8b", 2, 2048, attention="flash", precision="bf16"),
    # Sure not to fit: the run must go on after it.
    case("qwen2.5-14b", 1, 4096, attention="flash"),
]

# --- measured and held out ----------------------------------------------------------------------------------------

HOLDOUT = [
    case("distilgpt2", 16, 777, attention="eager", optimizer="adamw-fused", holdout=True),
    case("gpt2-medium", 4, 1000, attention="flash", recompute="full", holdout=True),
    case("gpt2-large", 2, 1024, attention="flash", precision="bf16", gradient_accumulation_steps=2, holdout=True),
    case("smollm2-360m", 8, 1500, attention="flash", precision="bf16", holdout=True),
    case("smollm2-1.7b", 2, 2048, attention="flash", adapter=WIDE_LORA, holdout=True),
    case("tinyllama-1.1b", 4, 2048, attention="flash", optimizer="sgd-momentum", holdout=True),
    case("llama-3.2-3b", 1, 3000, attention="flash", recompute="selective", holdout=True),
    case(cut("mistral-nemo-12b", 10), 1, 2048, attention="flash", precision="bf16", holdout=True),
    case("qwen2.5-1.5b", 3, 1111, attention="eager", recompute="full", holdout=True),
    case("qwen3-1.7b", 2, 1300, attention="flash", precision="fp16-autocast", holdout=True),
    case("gpt2", 5, 600, attention="efficient", precision="fp16-autocast", optimizer="adamw-for-loop", holdout=True),
    case("smollm2-135m", 7, 900, attention="auto", precision="fp32", optimizer="sgd", holdout=True),
    case(retied(cut("llama-3.2-3b", 7)), 2, 1025, attention="auto", dropout=0.2, holdout=True),
    case(cut("llama-2-7b", 4), 2, 900, attention="efficient", gradient_accumulation_steps=4, holdout=True),
    case(cut("mistral-7b-v0.1", 3), 3, 700, attention="auto", precision="fp32", holdout=True),
    case("qwen2.5-3b", 2, 1234, attention="eager", precision="bf16", adapter=LORA, holdout=True),
    case("qwen3-4b", 1, 900, attention="flash", precision="bf16", optimizer="adamw-for-loop", holdout=True),
]

MEASURED = {
    "alone": ALONE,
    "pairs": PAIRS,
    "sizes": SIZES,
    "holdout": HOLDOUT,
    "inference": generation_cases.MEASURED,
}
"""In the order in which they are measured; each takes at most eight minutes of an H200."""

SUITES = {"traces": TRACES, **MEASURED}
