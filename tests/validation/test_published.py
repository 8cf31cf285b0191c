"""Published measurements against ours: within each source's bound, and exact where no version differs."""

import pytest

from calc.accuracy import read_published
from validation.published import kernels, page, steps
from validation.published.sources import Source, read_all

SOURCES = {source.name: source for source in read_all()}


@pytest.fixture(scope="module")
def compared() -> page.Compared:
    return page.compare_all()


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_every_figure_is_within_the_bound_of_its_source(compared: page.Compared, source: Source):
    comparisons = {each.name: found for each, found in compared}[source.name]
    assert comparisons
    for each in comparisons:
        assert abs(each.relative_error) <= source.largest_error, each


def figure(source: str, **asked: object) -> dict:
    """The one figure of `source` that has all that is asked."""
    [found] = [each for each in SOURCES[source].figures if asked.items() <= each.items()]
    return found


@pytest.mark.parametrize("setup", ["all weights, 4 ×", "all weights, 8 ×"])
def test_the_peak_of_training_all_weights_on_an_a100_is_exact(setup: str):
    found = figure("fms_acceleration", setup=f"Mistral-7B-v0.1, {setup} 4096 tokens: peak")
    assert abs(steps.compared(found).our_bytes - found["published_bytes"]) <= page.EXACT_BYTES


@pytest.mark.parametrize("batch", [4, 8])
def test_a_peak_in_the_loss_is_within_half_a_mebibyte(batch: int):
    """What is left is a large block that the allocator does not split."""
    found = figure("fms_acceleration", setup=f"Mistral-7B-v0.1, LoRA, {batch} × 4096 tokens: peak")
    assert abs(steps.compared(found).our_bytes - found["published_bytes"]) < 2**19
    without = found | {"beside": [name for name in found["beside"] if name != "shifted logits"]}
    assert steps.compared(without).our_bytes < 0.96 * found["published_bytes"]


def test_twice_the_rank_adds_what_peft_measured_to_the_byte():
    found = figure("peft_method_comparison", setup="LoRA, rank 64, rsLoRA")
    assert steps.compared(found).our_bytes == found["published_bytes"]


def test_liger_measured_two_workspaces_beside_an_mlp_and_none_beside_a_norm():
    mlp = figure("liger_kernel_0_2_1_a100", setup="swiglu, full", published_mib=1294.25)
    assert kernels.compared(mlp).relative_error == 0
    assert kernels.compared(mlp | {"cublas_workspaces": 1}).relative_error < -0.005
    norm = figure("liger_kernel_0_2_1_a100", setup="rms_norm, full", published_mib=320.0546875)
    assert kernels.compared(norm).relative_error == 0


def test_what_is_beside_the_ledger_is_known_and_used():
    used = {name for source in SOURCES.values() for each in source.figures for name in each.get("beside", ())}
    assert used == set(steps.BESIDE)


def test_the_documents_are_current(compared: page.Compared):
    for path, text in page.documents(compared).items():
        assert path.read_text(encoding="utf-8") == text, f"run python -m validation published: {path.name}"
    assert list(read_published()) == list(SOURCES)
