"""Numbers as people read them. Bytes count in powers of 1024 (GiB); GB (10^9) is for quoting a datasheet or a paper."""

GIB = 2**30
MIB = 2**20
GB = 10**9
TERA = 10**12

LARGEST_IN_FULL = 10**7
"""Larger quantities are written with an exponent."""

BINARY_UNITS = ((GIB, "GiB"), (MIB, "MiB"), (2**10, "KiB"))
SI_PREFIXES = ((10**18, "E"), (10**15, "P"), (10**12, "T"), (10**9, "G"), (10**6, "M"), (10**3, "k"))
SECOND_UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))
TEN, HUNDRED = 9.995, 99.95
"""What rounds to them at one digit less."""
COUNT_UNITS = ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "K"))


def format_gib(num_bytes: int) -> str:
    """GiB with one decimal, the unit of totals: `61.3 GiB`."""
    return f"{_decimal(num_bytes / GIB, 1)} GiB"


def format_bytes(num_bytes: int) -> str:
    """GiB with one decimal where that shows a digit, else the next smaller unit: `61.3 GiB`, `0.1 GiB`, `38.4 MiB`."""
    for size, unit in BINARY_UNITS:
        if abs(num_bytes) * 10 >= size:
            return f"{_decimal(num_bytes / size, 1)} {unit}"
    return f"{num_bytes:,} bytes"


def format_exact_bytes(num_bytes: int) -> str:
    """Every digit: `65,824,358,400 bytes`."""
    return f"{num_bytes:,} bytes"


def format_flops(flops: int) -> str:
    """SI prefixes and two decimals, from a tenth of a unit on: `0.21 PFLOP`, `12.88 GFLOP`."""
    for size, prefix in SI_PREFIXES:
        if abs(flops) * 10 >= size:
            return f"{_decimal(flops / size, 2)} {prefix}FLOP"
    return f"{flops} FLOP"


def format_seconds(seconds: float) -> str:
    """Three digits and the unit that fits: `1.24 s`, `11.2 ms`, `350 µs`."""
    for size, unit in SECOND_UNITS:
        if seconds >= size:
            return f"{_three_digits(seconds / size)} {unit}"
    return f"{_three_digits(seconds * 1e6)} µs"


def format_rate(per_second: float) -> str:
    """Tokens a second: `1,434`, `89.6`."""
    return _three_digits(per_second)


def _three_digits(number: float) -> str:
    """Three significant digits, all of them where there are more before the point."""
    digits = 2 if number < TEN else 1 if number < HUNDRED else 0
    return _decimal(number, digits)


def format_count(count: int) -> str:
    """Parameters or tokens: `8.03 B`, `124.44 M`, `768`."""
    for size, unit in COUNT_UNITS:
        if abs(count) >= size:
            return f"{_decimal(count / size, 2)} {unit}"
    return str(count)


def _decimal(number: float, digits: int) -> str:
    return f"{number:,.{digits}f}" if abs(number) < LARGEST_IN_FULL else f"{number:.{digits}e}"
