"""What /openapi.json says of questions: the Scenario as a body, and its fields as query parameters."""

from collections.abc import Callable, Iterator
from typing import Any

import calc
from dashboards.address import CONFIG

COMPONENTS = "#/components/schemas/"
SCENARIO = calc.Scenario.model_json_schema(ref_template=f"{COMPONENTS}{{model}}")
DEFINITIONS: dict[str, Any] = SCENARIO.pop("$defs")


def scenario_body() -> dict[str, Any]:
    """The request body of POST: a Scenario."""
    example = {"model": "llama-3.1-8b", "gpu": "h100-sxm-80gb", "precision": "bf16", "recompute": "full"}
    content = {"schema": {"$ref": f"{COMPONENTS}Scenario"}, "example": example}
    return {"requestBody": {"required": True, "content": {"application/json": content}}}


def scenario_query() -> dict[str, Any]:
    """The query parameters of GET: the Scenario's fields, nested ones with dots, and a packed config."""
    packed = {
        "name": CONFIG,
        "in": "query",
        "schema": {"type": "string"},
        "description": "In place of `model`: a config.json, deflated (zlib), in URL-safe base64.",
    }
    return {"parameters": [*_parameters(SCENARIO["properties"]), packed]}


def _parameters(properties: dict[str, Any], prefix: str = "") -> Iterator[dict[str, Any]]:
    for name, schema in properties.items():
        nested = _nested_object(schema)
        if nested is not None:
            yield from _parameters(nested["properties"], f"{name}.")
        else:
            described = {"description": schema["description"]} if "description" in schema else {}
            yield {"name": prefix + name, "in": "query", "schema": schema} | described


def _nested_object(schema: dict[str, Any]) -> dict[str, Any] | None:
    """The definition behind a field that is itself a set of fields."""
    for option in schema.get("anyOf", [schema]):
        definition = DEFINITIONS.get(option.get("$ref", "").removeprefix(COMPONENTS), {})
        if "properties" in definition:
            return definition
    return None


def with_scenario(openapi: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
    """`openapi` with the Scenario among its components."""

    def documented() -> dict[str, Any]:
        document = openapi()
        document["components"]["schemas"] |= {"Scenario": SCENARIO, **DEFINITIONS}
        return document

    return documented
