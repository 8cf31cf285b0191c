"""The choices of the page's form. Only what is built: a value that calc refuses by name is not offered."""

from collections.abc import Iterable

from calc.scenario import AdapterDType, AdapterKind, Attention, Implementation, Loss, Optimizer, Precision, Recompute

CHOICES: dict[str, tuple[str, ...]] = {
    "precision": tuple(Precision),
    "recompute": (Recompute.NONE, Recompute.SELECTIVE, Recompute.FULL),
    "adapter.kind": ("", AdapterKind.LORA),
    "optimizer": (
        Optimizer.ADAMW,
        Optimizer.ADAMW_FUSED,
        Optimizer.ADAMW_FOR_LOOP,
        Optimizer.ADAMW_8BIT,
        Optimizer.PAGED_ADAMW_8BIT,
        Optimizer.SGD,
        Optimizer.SGD_MOMENTUM,
        Optimizer.SGD_NESTEROV,
        Optimizer.ADAFACTOR,
        Optimizer.LION,
        Optimizer.MUON,
    ),
    "attention": (Attention.AUTO, Attention.FLASH, Attention.EAGER),
    "loss": tuple(Loss),
    "implementation": tuple(Implementation),
    "adapter.dtype": tuple(AdapterDType),
}
"""The values of each field, the default first."""

STOPS = {
    "micro_batch_size": (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128),
    "sequence_length": tuple(size for power in range(7, 17) for size in (2**power, 3 * 2 ** (power - 1))),
}
"""Where each slider stops; the number field beside it takes any size."""

FIELDS = frozenset(
    {*CHOICES, *STOPS, "model", "config", "gpu", "gradient_accumulation_steps", "dropout"}
    | {"adapter.rank", "adapter.target_modules"}
)
"""All fields of the form; what is wrong with another one is said below it."""

MOST_CONFIG_CHARACTERS = 4096
"""A packed config up to this length goes into the address: browsers, proxies and chats carry such links."""


def written(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """What a submitted form says: the fields that are filled in, an adapter's only where there is one, one model."""
    filled = {name: text for name, text in pairs if text.strip()}
    if "config" in filled:
        filled.pop("model", None)
    has_adapter = "adapter.kind" in filled
    return [(name, text) for name, text in filled.items() if has_adapter or not name.startswith("adapter.")]
