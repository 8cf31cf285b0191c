"""Who imports whom: what our packages load, seen in a new interpreter."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OUR_PACKAGES = {"api", "calc", "dashboards", "validation"}
MEASURING_PACKAGES = {"peft", "pynvml", "torch", "transformers"}


def loaded_by(*modules: str) -> set[str]:
    """The top-level names outside the standard library that importing `modules` loads."""
    script = f"import json, sys; before = {{*sys.modules}}; import {', '.join(modules)}"
    script += "; print(json.dumps([*({*sys.modules} - before)]))"
    loaded = json.loads(subprocess.check_output([sys.executable, "-c", script], text=True, cwd=ROOT))
    outside = {module.partition(".")[0] for module in loaded} - sys.stdlib_module_names
    return {module for module in outside if not module.startswith("_sysconfigdata")}


def modules_of(package: str) -> list[str]:
    """All modules of one of our packages, except those that run a program when imported."""
    paths = [path.relative_to(ROOT).with_suffix("") for path in (ROOT / package).rglob("*.py")]
    return [".".join(path.parts).removesuffix(".__init__") for path in paths if path.name != "__main__"]


def test_calc_loads_pydantic_and_nothing_else() -> None:
    pydantic_and_its_dependencies = loaded_by("pydantic.main", "pydantic.types")
    assert "pydantic" in pydantic_and_its_dependencies
    assert loaded_by("calc") == {"calc", *pydantic_and_its_dependencies}


@pytest.mark.parametrize(
    ("package", "uses"),
    [
        ("calc", set()),
        ("dashboards", {"calc"}),
        ("api", {"calc", "dashboards"}),
        ("validation", {"calc"}),
    ],
)
def test_imports_go_one_way(package: str, uses: set[str]) -> None:
    assert loaded_by(*modules_of(package)) & OUR_PACKAGES == {package, *uses}


@pytest.mark.parametrize("package", ["calc", "dashboards", "api"])
def test_only_validation_loads_torch(package: str) -> None:
    assert not loaded_by(*modules_of(package)) & MEASURING_PACKAGES


def test_validation_loads_torch() -> None:
    assert loaded_by(*modules_of("validation")) >= {"torch", "transformers"}
