"""The verdict: statistics, counts and points; its measured half on records made up here, in a folder of their own."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from calc import Scenario, accuracy, estimate
from calc.accuracy import PEAKS
from calc.plan import Plan
from calc.scenario import Attention, Optimizer
from validation import verdict
from validation.compare import SIMULATED, Comparison, compare
from validation.records import Kind, Record, read_all
from validation.regress import FAILED, PASSED, compared, regress

ANSWER = estimate(Scenario(model="gpt2", micro_batch_size=1, sequence_length=8, attention=Attention.EAGER))
SCENARIO = {"model": "gpt2", "micro_batch_size": 2, "sequence_length": 64, "attention": "eager"}
RESERVED, DEVICE = 3 * 2**30, 4 * 2**30


def comparison(error: float, kind: Kind = "trace", holdout: bool = False, number: int = 0) -> Comparison:
    scenario = ANSWER.scenario.model_dump(mode="json")
    record = Record(kind=kind, id=f"{kind} {number}", scenario=scenario, holdout=holdout, measured={})
    name = PEAKS["allocated"]
    return Comparison(
        record=record, answer=ANSWER, quantity=name, estimated=round(10_000 * (1 + error)), measured=10_000
    )


def comparisons(errors: Sequence[float], kind: Kind = "trace") -> list[Comparison]:
    return [comparison(error, kind, number=number) for number, error in enumerate(errors)]


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Estimate knows reserved and device bytes."""
    monkeypatch.setitem(SIMULATED, PEAKS["reserved"], lambda _: RESERVED)
    monkeypatch.setitem(SIMULATED, PEAKS["device"], lambda _: DEVICE)


def measured(folder: Path, factors: Sequence[float], gpu_name: str = "made up for a test") -> list[Record]:
    """Records whose bytes are the estimates times a factor; every third is held out, the last ran out of memory."""
    answer = estimate(Scenario(**SCENARIO))
    for number, factor in enumerate(factors):
        peak, saved = answer.memory.peak_allocated_bytes, answer.memory.saved_activation_bytes
        bytes_of = {"peak_allocated_bytes": peak, "peak_reserved_bytes": RESERVED, "device_bytes": DEVICE}
        memory = {name: round(size * factor) for name, size in bytes_of.items()} | {"saved_activation_bytes": saved}
        record = Record(
            kind="measurement",
            id=f"case {number}",
            scenario=SCENARIO,
            holdout=number % 3 == 2,
            gpu_name=gpu_name,
            measured={"parameters": {"total": answer.parameters.total}, "memory": memory},
        )
        record.append_to(folder / "made-up.jsonl")
    full = Record(kind="measurement", id="full", scenario=SCENARIO, holdout=False, measured={"out_of_memory": {}})
    full.append_to(folder / "made-up.jsonl")
    return read_all(folder)


def test_statistics() -> None:
    assert verdict.statistics(comparisons([0.0, -0.01, 0.02, 0.04])) == {
        "cases": 4,
        "exact": 1,
        "median_relative_error": pytest.approx(0.015),
        "percentile_90_relative_error": pytest.approx(0.034),  # 0.7 of the way from 0.02 to 0.04
        "max_relative_error": pytest.approx(0.04),
        "mean_signed_relative_error": pytest.approx(0.0125),
        "underestimates": 1,
    }


def test_one_case_has_statistics_too() -> None:
    assert verdict.statistics(comparisons([-0.01]))["percentile_90_relative_error"] == pytest.approx(0.01)


def test_held_out_cases_are_in_no_line_of_a_knob() -> None:
    group = [comparison(0.01), comparison(0.02, holdout=True, number=1)]
    lines = verdict.by_knob(group)
    assert {knob: list(values) for knob, values in lines.items()} == {
        "family": ["gpt2"],
        "task": ["training"],
        "precision": ["bf16-autocast"],
        "attention": ["eager"],
        "recompute": ["none"],
        "optimizer": ["adamw"],
        "adapter": ["none"],
        "dropout": ["on"],
        "accumulation": ["1"],
        "recompute_interval": ["1"],
        "recompute_group_size": ["1"],
        "recompute_offload": ["no"],
        "max_grad_norm": ["none"],
        "zero_grad_set_to_none": ["yes"],
        "weight_ema": ["no"],
        "accumulate_grads_in_fp32": ["no"],
        "frozen_layers": ["0"],
        "loss": ["cross-entropy"],
        "hold_outputs": ["no"],
        "use_liger_kernel": ["no"],
        "float8_recipe": ["none"],
        "cache_implementation": ["none"],
        "weight_dtype": ["none"],
    }
    assert all(cases == group[:1] for values in lines.values() for cases in values.values())


@pytest.mark.usefixtures("simulated")
def test_allocated_reserved_and_device_bytes_are_judged_apart(tmp_path: Path) -> None:
    records = measured(tmp_path, [1.0, 1.01, 0.98, 1.02])
    content = verdict.verdict(records, compared(records)[0])
    assert content["counts"]["measurement"] == {"cases": 4, "holdout": 1, "did_not_run": 1}
    assert content["counts"]["trace"] == {"cases": 0, "holdout": 0, "did_not_run": 0}
    quantities = content["statistics"]["measurement"]
    assert {*PEAKS.values()} <= quantities.keys()
    for name in PEAKS.values():
        tuning, holdout = quantities[name]["tuning"], quantities[name]["holdout"]
        assert (tuning["cases"], holdout["cases"]) == (3, 1)
        # (estimated − recorded) / recorded, where the record is the estimate times the factor.
        assert tuning["max_relative_error"] == pytest.approx(1 - 1 / 1.02, abs=1e-6)
        assert tuning["median_relative_error"] == pytest.approx(1 - 1 / 1.01, abs=1e-6)
        assert tuning["underestimates"] == 2
        assert holdout["mean_signed_relative_error"] == pytest.approx(1 / 0.98 - 1, abs=1e-6)
        assert quantities[name]["by_knob"]["family"]["gpt2"] == tuning
    assert quantities["parameters.total"]["all"]["exact"] == 4


def test_what_the_estimate_does_not_know_is_not_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("reserved", "device"):
        monkeypatch.setitem(SIMULATED, PEAKS[name], lambda _: None)
    records = measured(tmp_path, [1.0])
    quantities = verdict.verdict(records, compared(records)[0])["statistics"]["measurement"]
    assert PEAKS["allocated"] in quantities
    assert not {PEAKS["reserved"], PEAKS["device"]} & quantities.keys()


@pytest.mark.usefixtures("simulated")
@pytest.mark.parametrize(
    ("quantity", "factor", "status"),
    [
        ("peak_reserved_bytes", 1.049, PASSED),
        ("peak_reserved_bytes", 1.06, FAILED),
        ("device_bytes", 0.96, PASSED),
        ("device_bytes", 0.94, FAILED),
    ],
)
def test_reserved_and_device_bytes_have_bounds(quantity: str, factor: float, status: int) -> None:
    size = {"peak_reserved_bytes": RESERVED, "device_bytes": DEVICE}[quantity]
    memory = {quantity: round(size * factor)}
    record = Record(kind="measurement", id="a", scenario=SCENARIO, holdout=False, measured={"memory": memory})
    assert regress([record]) == status


def test_a_measurement_is_compared_on_its_gpu(tmp_path: Path) -> None:
    known, _ = measured(tmp_path, [1.0], gpu_name="NVIDIA H200")
    assert {each.answer.scenario.gpu for each in compare(known)} == {"h200-sxm-141gb"}
    assert {each.answer.scenario.gpu for each in compare(replace(known, gpu_name="NVIDIA Unheard-of"))} == {None}


def test_every_record_is_a_point_with_its_own_name(tmp_path: Path) -> None:
    records = [*measured(tmp_path / "a", [1.0, 1.5]), *measured(tmp_path / "b", [1.0], gpu_name="NVIDIA H200")]
    points = verdict.points(compared(records)[0])
    assert [point["id"] for point in points.values()] == ["case 0", "case 1", "case 0"]
    first = points[verdict.record_key(records[0])]
    peak = estimate(Scenario(**SCENARIO)).memory.peak_allocated_bytes
    assert first["quantities"][PEAKS["allocated"]] == [peak, peak]
    assert first["scenario"] == SCENARIO
    assert [*points.values()][2]["scenario"] == SCENARIO | {"gpu": "h200-sxm-141gb"}
    assert first["recorded_at"] == records[0].recorded_at


def test_what_report_writes_is_what_the_estimate_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accuracy, "read_accuracy", lambda: verdict.nearest(comparisons([-0.01, 0.03])))
    found = accuracy.nearest_accuracy("gpt2", Plan(attention=Attention.EAGER, optimizer=Optimizer.SGD))
    assert found == {
        "compared_with": "trace",
        "alike": "gpt2, training, transformers, bf16-autocast, eager",
        "cases": 2,
        "median_relative_error": pytest.approx(0.02),
        "max_relative_error": pytest.approx(0.03),
        "underestimates": 1,
    }
