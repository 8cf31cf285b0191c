"""The catalogue's GPUs: figures that can be true, each with its source."""

import re

import pytest

from calc.errors import ConfigError
from calc.hardware import Gpu, gpu_named, gpus

GIB = 2**30
TERA = 10**12
NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
DTYPES = {"fp32", "tf32", "fp16", "bf16", "fp8", "int8"}

every_gpu = pytest.mark.parametrize("gpu", gpus(), ids=lambda gpu: gpu.name)


def test_at_least_25_gpus():
    assert len(gpus()) >= 25


def test_names_are_kebab_case_and_no_two_gpus_share_one():
    names = [name for gpu in gpus() for name in (gpu.name, *gpu.aliases)]
    assert len(names) == len(set(names))
    assert all(NAME.fullmatch(name) for name in names)


@every_gpu
def test_every_figure_has_a_source(gpu: Gpu):
    assert "datasheet" in gpu.sources
    assert all(address.startswith("https://") for address in gpu.sources.values())
    assert ("usable_memory" in gpu.sources) == (gpu.usable_memory_bytes is not None)
    assert (gpu.usable_memory_reading is None) == (gpu.usable_memory_bytes is None)


@every_gpu
def test_memory_is_whole_gib_and_a_driver_reports_a_little_less(gpu: Gpu):
    assert gpu.memory_bytes % GIB == 0
    name_says = re.search(r"-(\d+)gb$", gpu.name)
    assert name_says is None or gpu.memory_bytes == int(name_says[1]) * GIB
    if gpu.usable_memory_bytes is not None:
        assert 0.9 * gpu.memory_bytes < gpu.usable_memory_bytes < gpu.memory_bytes


@every_gpu
def test_speeds_are_those_of_a_gpu(gpu: Gpu):
    assert 300e9 <= gpu.memory_bandwidth_bytes_per_second <= 8e12
    assert gpu.dense_flops_per_second.keys() == DTYPES
    assert all(flops is None or TERA < flops <= 5000 * TERA for flops in gpu.dense_flops_per_second.values())
    assert 50 <= gpu.tdp_watts <= 1400


@every_gpu
def test_types_are_ordered_as_tensor_cores_are_built(gpu: Gpu):
    """A datasheet's figure with sparsity, taken for the dense one, is twice too large and breaks a ratio here."""
    flops = gpu.dense_flops_per_second
    if flops["bf16"]:
        assert flops["bf16"] == flops["fp16"]
    if flops["tf32"] and flops["fp16"]:
        assert flops["fp16"] == pytest.approx(2 * flops["tf32"], rel=0.02)
    if flops["fp8"] and flops["fp16"]:
        assert flops["fp8"] == pytest.approx(2 * flops["fp16"], rel=0.03)


@pytest.mark.parametrize(
    ("name", "bf16_flops"),
    [
        # 4 tensor cores x 512 multiply-adds a clock x 2, x 132 SMs x 1.83 GHz = 989 T
        ("h100-sxm-80gb", 989.5),
        # 4 x 256 x 2 x 108 SMs x 1.41 GHz = 312 T
        ("a100-sxm-80gb", 312),
        # 4 x 128 x 2 x 128 SMs x 2.52 GHz, halved by summing in fp32 on GeForce = 165 T
        ("rtx-4090", 165.2),
        ("b200-sxm-180gb", 2250),
        ("mi300x-192gb", 1307.4),
    ],
)
def test_sparsity_is_not_counted(name: str, bf16_flops: float):
    assert gpu_named(name).dense_flops_per_second["bf16"] == round(bf16_flops * 1000) * 10**9


def test_capacity_is_the_drivers_where_known_else_the_datasheets():
    assert gpu_named("h100-sxm-80gb").capacity_bytes == 85_045_477_376
    assert gpu_named("a30").capacity_bytes == 24 * GIB


def test_a_gpu_is_found_by_alias_in_any_case():
    assert gpu_named("H100").name == "h100-sxm-80gb"
    assert gpu_named("RTX-4090").name == "rtx-4090"


def test_an_unknown_gpu_is_an_error_with_the_nearest_names():
    with pytest.raises(ConfigError) as raised:
        gpu_named("h100-sxm-80")
    assert (raised.value.field, raised.value.value) == ("gpu", "h100-sxm-80")
    assert "h100-sxm-80gb" in raised.value.expected
    assert "gpucalc gpus" in raised.value.expected
