"""The cases of inference: prompts and tokens that are traced and measured. Written down before either.

The types of weights, prompt and output are always said: an inference has defaults of its own for them.
"""

from typing import Any

from validation.cases import Case, case_id, cut


def generating(
    model: str | dict[str, Any],
    batch: int,
    prompt: int,
    output: int,
    *,
    precision: str = "bf16",
    holdout: bool = False,
    **fields: Any,
) -> Case:
    """`output` tokens for each of `batch` prompts of `prompt` tokens."""
    sizes = {"batch_size": batch, "prompt_length": prompt, "output_length": output}
    scenario = {"model": model, "task": "inference", **sizes, "precision": precision} | fields
    return Case(id=case_id(scenario), scenario=scenario, holdout=holdout)


WINDOWED = cut("mistral-7b-v0.1", 3) | {
    "sliding_window": 256,
    "_name_or_path": "mistral-7b-v0.1-3-layers-window-256",
}
MIXED_WINDOWS = cut("gemma-3-1b", 7)

TRACED = [
    # Whole models.
    generating("gpt2", 4, 512, 64),
    generating("gpt2", 1, 100, 0, precision="fp32", attention="eager"),
    generating("llama-3.1-8b", 8, 2048, 256),
    generating("qwen2.5-0.5b", 16, 300, 100, attention="eager"),
    generating("qwen3-8b", 1, 30000, 1),
    # Caches of other kinds: windows, all or some layers; a latent; experts behind them.
    generating(WINDOWED, 2, 100, 200),
    generating(WINDOWED, 2, 700, 5, attention="math"),
    generating(cut("mistral-7b-v0.1", 2), 1, 6000, 3),
    generating(MIXED_WINDOWS, 3, 900, 50),
    generating(cut("gemma-2-2b", 4), 2, 5000, 9),
    generating(cut("deepseek-v2-lite", 3), 4, 700, 40),
    generating(cut("gpt-oss-20b", 2), 2, 300, 20),
    generating(cut("qwen3-30b-a3b", 2), 4, 200, 30),
    generating(cut("mixtral-8x7b", 1), 2, 400, 10, precision="fp16"),
    generating(cut("bloom-560m", 4), 3, 200, 20, precision="fp32"),
    generating(cut("falcon-7b", 2), 4, 300, 25),
    generating(cut("llama-3.2-1b", 3), 4, 500, 40, cache_implementation="static"),
    generating(WINDOWED, 2, 200, 100, cache_implementation="static", attention="eager"),
    # Weights in other types, a cache in another, beams.
    *(
        generating(cut("llama-3.2-1b", 3), 4, 300, 20, weight_dtype=dtype)
        for dtype in ("nf4", "nf4-double", "int8", "fp8")
    ),
    generating(cut("qwen2.5-0.5b", 4), 2, 500, 30, cache_implementation="quantized", kv_cache_dtype="fp8"),
    generating(cut("qwen2.5-0.5b", 4), 2, 500, 30, cache_implementation="quantized", kv_cache_dtype="int4"),
    generating(cut("llama-3.2-1b", 2), 2, 256, 150, cache_implementation="quantized", kv_cache_dtype="hqq-int8"),
    generating(MIXED_WINDOWS, 2, 600, 40, num_beams=3),
    generating(cut("qwen2.5-0.5b", 3), 4, 700, 5, logits_to_keep=0),
    generating(cut("llama-3.2-1b", 3), 2, 200, 30, num_beams=4),
    generating(cut("llama-3.2-1b", 3), 2, 200, 30, adapter={"kind": "lora", "rank": 16}),
    # Encoders beside decoders.
    generating("t5-base", 4, 300, 40),
    generating("bart-large", 2, 700, 60, attention="eager"),
    # Held out: chosen before any of these was traced.
    generating("smollm2-360m", 5, 777, 33, holdout=True),
    generating(cut("olmo-2-7b", 3), 2, 1025, 11, precision="fp32", holdout=True),
    generating(cut("phi-3-mini-4k", 2), 3, 3000, 7, holdout=True),
    generating(cut("starcoderbase-1b", 5), 7, 123, 45, precision="fp16", attention="eager", holdout=True),
    generating(cut("glm-4.5", 2), 1, 600, 6, holdout=True),
    generating(MIXED_WINDOWS, 3, 555, 22, cache_implementation="static", holdout=True),
    generating(cut("qwen3-0.6b", 3), 3, 444, 16, weight_dtype="nf4", holdout=True),
    generating(cut("mistral-7b-v0.3", 1), 2, 333, 12, weight_dtype="int8", num_beams=2, holdout=True),
    generating(
        cut("llama-3.2-1b", 2), 3, 250, 260, cache_implementation="quantized", kv_cache_dtype="int2", holdout=True
    ),
    generating("flan-t5-large", 3, 222, 21, precision="fp32", holdout=True),
]

SIZES = (
    (1, 1, 16), (1, 512, 0), (1, 512, 16), (1, 8192, 8), (1, 65536, 2),
    (8, 512, 16), (16, 2048, 8), (64, 512, 8), (128, 128, 16), (256, 32, 16),
)  # fmt: skip
"""One prompt, many; short, long; no token, some."""

NUMERICS: tuple[dict[str, Any], ...] = (
    {"precision": "fp16"},
    {"precision": "fp32"},
    {"attention": "eager"},
    {"attention": "eager", "precision": "fp32"},
    {"attention": "flash"},
    {"attention": "math"},
    {"cache_implementation": "static"},
    {"cache_implementation": "static", "attention": "eager"},
)

FAMILIES = (
    "gpt2", "gpt2-xl", "opt-1.3b", "pythia-1.4b", "bloom-1b7", "gpt-neo-1.3b", "gpt-j-6b", "starcoderbase-1b",
    "falcon-7b", "qwen2.5-0.5b", "qwen2.5-7b", "qwen3-0.6b", "phi-2", "phi-3-mini-4k", "olmo-2-7b",
    "gemma-2-2b", "gemma-3-1b", "stablelm-3b-4e1t",
)  # fmt: skip

MEASURED = [
    *(generating("llama-3.2-1b", *sizes) for sizes in SIZES),
    *(generating("llama-3.2-1b", 4, 1024, 8, **fields) for fields in NUMERICS),
    *(generating(model, 8, 900, 12) for model in FAMILIES),
    # Windows, latents, experts.
    generating("mistral-7b-v0.1", 2, 6000, 8),
    generating(WINDOWED, 8, 200, 100),
    generating(WINDOWED, 8, 2000, 8),
    generating(WINDOWED, 8, 200, 100, cache_implementation="static"),
    generating("gemma-3-1b", 4, 1500, 12, cache_implementation="static"),
    generating(cut("deepseek-v2-lite", 4), 8, 1024, 12),
    generating(cut("gpt-oss-20b", 4), 4, 700, 12),
    generating(cut("qwen3-30b-a3b", 4), 8, 900, 12),
    generating(cut("mixtral-8x7b", 3), 8, 900, 12),
    generating("flan-t5-large", 16, 400, 12),
    generating("bart-large-cnn", 16, 900, 12),
    # Large: tens of GiB, near 80 GB, near 141 GB.
    generating("llama-3.1-8b", 32, 2048, 8),
    generating("qwen2.5-14b", 4, 4096, 8),
    generating("qwen3-32b", 2, 4096, 8),
    generating("llama-2-70b", 1, 512, 4),
    # Held out: chosen before any of these was measured.
    generating("smollm2-1.7b", 6, 1111, 9, holdout=True),
    generating("qwen3-4b", 3, 3333, 7, holdout=True),
    generating("llama-2-7b", 5, 1500, 11, holdout=True),
    generating("mistral-nemo-12b", 2, 5000, 6, holdout=True),
    generating("gpt2-large", 16, 600, 20, precision="fp32", holdout=True),
    generating(cut("olmo-2-13b", 12), 4, 777, 13, attention="eager", holdout=True),
    generating(cut("qwen1.5-moe-a2.7b", 6), 7, 500, 10, holdout=True),
    generating("yi-1.5-6b", 9, 1000, 5, precision="fp16", holdout=True),
]
