"""Traces as records."""

from collections.abc import Iterable

from calc import Scenario, estimate
from calc.catalogue import find_model
from calc.model_source import load_config
from validation.cases import Case, case_id, config_of
from validation.records import TRACES, Record, read
from validation.trace import trace


def record_suite(cases: Iterable[Case]) -> None:
    """Traces and records the cases that are not recorded yet."""
    recorded = {record.id for record in read(TRACES)}
    for case in cases:
        if case.id not in recorded:
            print(case.id, flush=True)
            record_of(case).append_to(TRACES)


def record_of(case: Case) -> Record:
    """The record of tracing `case`, not written yet."""
    measured = trace(Scenario(**case.scenario), config_of(case.scenario)).to_dict()
    return Record(kind="trace", id=case.id, scenario=case.scenario, holdout=case.holdout, measured=measured)


def case_of(scenario: Scenario) -> Case:
    """The scenario as a case: what it left open filled in, its model by the catalogue's name or as a whole config."""
    filled = estimate(scenario).scenario
    fields = {"sequence_length": filled.sequence_length, **filled.model_dump(mode="json", exclude_defaults=True)}
    fields["model"] = scenario.model if isinstance(scenario.model, dict) else _portable(scenario.model)
    if filled.adapter is not None:
        fields["adapter"]["kind"] = filled.adapter.kind.value
    return Case(id=case_id(fields), scenario=fields)


def _portable(model: str) -> str | dict[str, object]:
    known = find_model(model)
    return known.name if known else dict(load_config(model))
