"""What `gpucalc models` and `gpucalc gpus` print."""

from collections.abc import Sequence

from rich.console import Console

from calc.hardware import Gpu
from calc.listing import ListedModel
from calc.units import GB, GIB, MIB, TERA, format_count

from .tables import table


def print_models(models: Sequence[ListedModel]) -> None:
    """One line per model."""
    columns = ("name", "family", "parameters", "layers", "hidden", "positions")
    rows = (
        (
            model.name,
            model.family,
            format_count(model.parameters),
            f"{model.architecture.num_layers:,}",
            f"{model.architecture.hidden_size:,}",
            f"{model.architecture.max_position_embeddings:,}",
        )
        for model in models
    )
    made = table(f"{len(models)} models", columns, rows)
    made.padding = (0, 1, 0, 0)  # so that the longest names fit into 80 columns
    Console(highlight=False).print(made)


def print_gpus(gpus: Sequence[Gpu]) -> None:
    """One line per GPU."""
    rows = (
        (
            gpu.name,
            _in_units(gpu.memory_bytes, GIB, 0),
            _in_units(gpu.usable_memory_bytes, GIB, 1),
            _in_units(gpu.memory_bandwidth_bytes_per_second, GB, 0),
            _in_units(gpu.dense_flops_per_second["bf16"], TERA, 0),
            _in_units(gpu.num_sms, 1, 0),
            _in_units(gpu.l2_bytes, MIB, 0),
            _in_units(gpu.tdp_watts, 1, 0),
        )
        for gpu in gpus
    )
    columns = ("name", "GiB", "usable", "GB/s", "bf16 TFLOP/s", "SMs", "L2 MiB", "W")
    Console(highlight=False).print(table(f"{len(gpus)} GPUs", columns, rows))


def _in_units(value: int | None, unit: int, digits: int) -> str:
    return "" if value is None else f"{value / unit:,.{digits}f}"
