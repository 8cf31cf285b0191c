"""The project's own files agree with the code."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import calc
from calc.families import FAMILIES

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OUR_PACKAGES = {"api", "benchmarks", "calc", "dashboards", "tests", "validation"}


def declared(*extras: str) -> dict[str, Requirement]:
    """The core's requirements and those of `extras`, by distribution name."""
    lines = PROJECT["dependencies"] + [line for extra in extras for line in PROJECT["optional-dependencies"][extra]]
    return {str(canonicalize_name(requirement.name)): requirement for requirement in map(Requirement, lines)}


def imported_distributions(package: str) -> set[str]:
    """The distributions that the statements of `package` import, wherever in a module they stand."""
    names = set()
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module)
    owners = packages_distributions()
    modules = {name.partition(".")[0] for name in names} - sys.stdlib_module_names - OUR_PACKAGES
    return {str(canonicalize_name(owners[module][0])) for module in modules}


@pytest.mark.parametrize(
    ("package", "extras"),
    [
        ("calc", ["serve", "hub"]),
        ("dashboards", ["serve"]),
        ("api", ["serve"]),
        ("validation", ["validation"]),
        ("tests", ["serve", "validation", "test"]),
    ],
)
def test_every_import_is_declared(package: str, extras: list[str]) -> None:
    assert imported_distributions(package) <= declared(*extras).keys()


def test_every_run_time_requirement_is_imported() -> None:
    imported = set().union(
        *(imported_distributions(package) for package in ("calc", "dashboards", "api", "validation"))
    )
    assert declared("serve", "validation").keys() <= imported


def test_constraints_pin_an_allowed_version_of_every_requirement() -> None:
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines())
    versions = {str(canonicalize_name(name)): version for name, version in pins.items()}
    requirements = declared(*PROJECT["optional-dependencies"])
    del requirements["gpucalc"]
    assert requirements.keys() <= versions.keys()
    assert [name for name, wanted in requirements.items() if versions[name] not in wanted.specifier] == []


def test_every_make_target_of_the_readme_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    promised = set(re.findall(r"\bmake ([a-z-]+)\b", (ROOT / "README.md").read_text()))
    assert {"serve", "test"} <= promised <= targets


def test_the_changelog_has_an_entry_for_the_version() -> None:
    assert PROJECT["version"] in (ROOT / "CHANGELOG.md").read_text()


def test_the_readme_counts_the_catalogue() -> None:
    readme = (ROOT / "README.md").read_text()
    assert f"({len(calc.models())} of them in the catalogue" in readme
    assert f"{len(calc.gpus())} GPUs" in readme


def test_the_readme_names_every_family() -> None:
    section = (ROOT / "README.md").read_text().split("## What it knows")[1].split("[Adding one]")[0]
    assert re.findall(r"`([\w-]+)`", section) == sorted(FAMILIES)
    assert f"Models of {len(FAMILIES)} families" in section
