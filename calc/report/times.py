"""The time of a generation."""

from rich.table import Table

from calc.roofline import InferenceTime
from calc.traffic import Holds
from calc.units import format_bytes, format_flops, format_rate, format_seconds

from .tables import table, words


def time_tables(time: InferenceTime) -> tuple[Table, Table]:
    """In all, and by kind of operation."""
    return _whole(time), _parts(time)


def _whole(time: InferenceTime) -> Table:
    token, rate, energy = time.seconds_per_output_token, time.output_tokens_per_second, time.joules_per_output_token
    rows = {
        "prompt (prefill)": format_seconds(time.prefill_seconds),
        "a token of the output, on average": format_seconds(token) if token else None,
        "the first token after the prompt": format_seconds(time.first_decode.seconds) if time.first_decode else None,
        "the last": format_seconds(time.last_decode.seconds) if time.last_decode else None,
        "all": format_seconds(time.total_seconds),
        "output tokens a second, all sequences": format_rate(rate) if rate else None,
        "energy per output token, at most": f"{energy:.3f} J" if energy else None,
        "arithmetic intensity at the ridge": f"{time.reachable.ridge_flops_per_byte:.0f} FLOP/byte",
        "batch at the ridge": f"{time.ridge_batch_size:,}" if time.ridge_batch_size else None,
    }
    return table("Time, a roofline (assumed)", ("", ""), ((name, text) for name, text in rows.items() if text))


def _parts(time: InferenceTime) -> Table:
    """Of the last token, or of the prompt where there is no output."""
    shown, name = (time.last_decode, "the last token") if time.last_decode else (time.prefill, "the prompt")
    rows = (
        (
            words(part.operation),
            format_seconds(part.seconds),
            part.bound,
            format_flops(part.flops),
            *(format_bytes(part.bytes_moved[holds]) for holds in Holds),
        )
        for part in shown.parts
    )
    columns = ("", "time", "waits for", "FLOPs", "weights", "cache", "activations")
    return table(f"Operations of {name}", columns, rows)
