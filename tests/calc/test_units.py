"""Numbers as people read them."""

import pytest

from calc import units


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 bytes"),
        (102, "102 bytes"),
        (512, "0.5 KiB"),
        (40_265_318, "38.4 MiB"),
        (2**30 // 10 + 1, "0.1 GiB"),
        (65_824_358_400, "61.3 GiB"),
        (-(2**31), "-2.0 GiB"),
        (3186 * 2**30, "3,186.0 GiB"),
        (10**30, "9.3e+20 GiB"),
    ],
)
def test_bytes(num_bytes: int, text: str):
    assert units.format_bytes(num_bytes) == text


def test_totals_stay_in_gib():
    assert units.format_gib(0) == "0.0 GiB"
    assert units.format_gib(85_056_520_192) == "79.2 GiB"


def test_exact_bytes():
    assert units.format_exact_bytes(65_824_358_400) == "65,824,358,400 bytes"


@pytest.mark.parametrize(
    ("flops", "text"),
    [(0, "0 FLOP"), (99, "99 FLOP"), (12_884_901_888, "12.88 GFLOP"), (213_000_000_000_000, "0.21 PFLOP")],
)
def test_flops(flops: int, text: str):
    assert units.format_flops(flops) == text


@pytest.mark.parametrize(
    ("count", "text"), [(768, "768"), (124_439_808, "124.44 M"), (8_030_261_248, "8.03 B"), (50_257, "50.26 K")]
)
def test_counts(count: int, text: str):
    assert units.format_count(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (1.2399, "1.24 s"),
        (0.01116, "11.2 ms"),
        (0.000394, "394 µs"),
        (1e-7, "0.10 µs"),
        (99.97, "100 s"),
        (9.999, "10.0 s"),
    ],
)
def test_seconds(seconds: float, text: str):
    assert units.format_seconds(seconds) == text


def test_rates():
    assert [units.format_rate(rate) for rate in (1433.6, 89.64, 9.2, 12345678.0)] == ["1,434", "89.6", "9.20", "1e+07"]
