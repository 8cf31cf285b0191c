"""The catalogue's lists: what they leave out, and in what order they come."""

import pytest

from calc import ConfigError, gpus, models
from calc.listing import (
    GPU_VALUES,
    MODEL_VALUES,
    GpuColumn,
    GpuListing,
    ModelColumn,
    ModelListing,
    list_gpus,
    list_models,
    listing_from_strings,
)
from calc.units import GB, GIB


def model_names(**fields: str) -> list[str]:
    return [row.name for row in list_models(listing_from_strings(ModelListing, fields.items()))]


def gpu_names(**fields: str) -> list[str]:
    return [gpu.name for gpu in list_gpus(listing_from_strings(GpuListing, fields.items()))]


def test_nothing_asked_is_the_whole_catalogue() -> None:
    assert model_names() == [model.name for model in models()]
    assert gpu_names() == [gpu.name for gpu in gpus()]


@pytest.mark.parametrize("part", ["llama-3.1-8b", "LLAMA-3.1-8B", "llama3.1-8b", "meta-llama/Llama-3.1-8B"])
def test_a_model_is_found_by_part_of_any_of_its_names(part: str) -> None:
    assert "llama-3.1-8b" in model_names(name=part)
    assert "gpt2" not in model_names(name=part)


def test_a_gpu_is_found_by_part_of_any_of_its_names() -> None:
    assert gpu_names(name="H100-SXM") == ["h100-sxm-80gb"]
    assert gpu_names(name="tesla") == ["t4"]


def test_models_by_family_and_parameters() -> None:
    chosen = list_models(ModelListing(family="Qwen3", min_parameters=1e9, max_parameters=10e9))
    assert [row.name for row in chosen] == ["qwen3-1.7b", "qwen3-4b", "qwen3-4b-2507", "qwen3-8b"]
    assert all(row.model.config["model_type"] == row.family == "qwen3" for row in chosen)


@pytest.mark.parametrize("text", ["8030261248", "8030.261248M", "8.030261248B", " 8.030261248 b"])
def test_a_number_of_parameters_may_have_a_unit(text: str) -> None:
    assert "llama-3.1-8b" in model_names(min_parameters=text, max_parameters=text)


def test_gpus_by_vendor_segment_memory_and_bandwidth() -> None:
    chosen = list_gpus(
        listing_from_strings(
            GpuListing,
            [
                ("vendor", "nvidia"),
                ("segment", "consumer"),
                ("min_memory_gib", "16"),
                ("max_memory_gib", "24"),
                ("min_bandwidth_gb_per_second", "900"),
                ("max_bandwidth_gb_per_second", "1000"),
            ],
        )
    )
    assert {gpu.name for gpu in chosen} == {"rtx-5080", "rtx-3090"}
    assert all(16 * GIB <= gpu.memory_bytes <= 24 * GIB for gpu in chosen)
    assert all(900 * GB <= gpu.memory_bandwidth_bytes_per_second <= 1000 * GB for gpu in chosen)


@pytest.mark.parametrize("column", ModelColumn)
def test_models_sorted_by_each_column(column: ModelColumn) -> None:
    rising = list(map(MODEL_VALUES[column], list_models(ModelListing(sort=column))))
    falling = list(map(MODEL_VALUES[column], list_models(ModelListing(sort=column, descending=True))))
    assert rising == sorted(rising)
    assert falling == rising[::-1]
    assert len(rising) == len(models())


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("column", GpuColumn)
def test_gpus_sorted_by_each_column_the_unknown_last(column: GpuColumn, descending: bool) -> None:
    values = list(map(GPU_VALUES[column], list_gpus(GpuListing(sort=column, descending=descending))))
    known = [value for value in values if value is not None]
    assert known == sorted(known, reverse=descending)  # pyright: ignore[reportArgumentType]
    assert values == known + [None] * (len(gpus()) - len(known))


@pytest.mark.parametrize(
    ("fields", "field", "words"),
    [
        ({"family": "lama"}, "family", "did you mean llama? the catalogue has "),
        ({"min_parameters": "many"}, "min_parameters", "should be a valid number"),
        ({"min_parameters": ""}, "min_parameters", "should be a valid number"),
        ({"max_parameters": "-1B"}, "max_parameters", "greater than or equal to 0"),
        ({"sort": "size"}, "sort", "'name', 'family', 'parameters'"),
        ({"descending": "true"}, "descending", "needs sort: name, family, parameters"),
        ({"famly": "llama"}, "famly", "unknown field; known fields: name, family"),
    ],
)
def test_what_no_model_listing_can_mean_is_refused(fields: dict[str, str], field: str, words: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        model_names(**fields)
    assert refusal.value.field == field
    assert words in refusal.value.expected


@pytest.mark.parametrize(
    ("fields", "field", "words"),
    [
        ({"vendor": "nvida"}, "vendor", "did you mean NVIDIA? the catalogue has AMD, Intel, NVIDIA"),
        ({"segment": "desktop"}, "segment", "'data-centre', 'workstation' or 'consumer'"),
        ({"min_memory_gib": "nan"}, "min_memory_gib", "finite number"),
        ({"descending": "yes please", "sort": "tdp"}, "descending", "valid boolean"),
    ],
)
def test_what_no_gpu_listing_can_mean_is_refused(fields: dict[str, str], field: str, words: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        gpu_names(**fields)
    assert refusal.value.field == field
    assert words in refusal.value.expected


def test_a_field_given_twice_is_refused() -> None:
    with pytest.raises(ConfigError) as refusal:
        listing_from_strings(ModelListing, [("family", "llama"), ("family", "gpt2")])
    assert (refusal.value.field, refusal.value.value) == ("family", "gpt2")
