"""The colours, once: CSS gets them as custom properties, figures refer to the same names.

Each colour is (light theme, dark theme). Text on the ground and on a part keeps WCAG AA contrast in both; the parts
are also told apart by their order, their label and a texture.
"""

COLOURS = {
    "ground": ("#ffffff", "#101317"),
    "raised": ("#f5f6f8", "#181c22"),
    "ink": ("#15181c", "#e9ebee"),
    "muted": ("#59626d", "#9ca6b2"),
    "hairline": ("#dde1e6", "#2b323b"),
    "control": ("#7d8793", "#7a8591"),
    "accent": ("#2c46c8", "#9db0ff"),
    "good": ("#0b6b3f", "#66d6a0"),
    "bad": ("#b1241c", "#ff9d92"),
    "parameters": ("#33439f", "#98a7ff"),
    "weight_ema": ("#33439f", "#98a7ff"),
    "gradients": ("#a8500b", "#f5b35c"),
    "optimizer_states": ("#6d3fc0", "#c6adff"),
    "autocast_weights": ("#0b6a94", "#7ccdf5"),
    "kv_cache": ("#7a5c00", "#e3c65e"),
    "activations": ("#0d6e63", "#5fd8c4"),
    "temporaries": ("#ab2358", "#ff9dbd"),
    "buffers": ("#4d5662", "#b7c0ca"),
    "inputs": ("#4d5662", "#b7c0ca"),
    "library_workspace": ("#4d5662", "#b7c0ca"),
    "context": ("#4d5662", "#b7c0ca"),
}

TEXTURES = {
    "parameters": None,
    "weight_ema": "falling",
    "gradients": "rising",
    "optimizer_states": "dots",
    "autocast_weights": "level",
    "kv_cache": "dots",
    "activations": None,
    "temporaries": "falling",
    "buffers": None,
    "inputs": None,
    "library_workspace": "upright",
    "context": "rising",
}
"""Pattern drawn over a part's colour; the two large plain ones are never neighbours."""


def stylesheet() -> str:
    """The palette as CSS custom properties that follow the theme."""
    lines = (f"  --{name.replace('_', '-')}: light-dark({light}, {dark});" for name, (light, dark) in COLOURS.items())
    parts = (f".part-{name.replace('_', '-')} {{ fill: var(--{name.replace('_', '-')}); }}" for name in TEXTURES)
    return "\n".join((":root {", *lines, "}", *parts, ""))
