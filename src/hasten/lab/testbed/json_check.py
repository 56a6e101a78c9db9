"""Reading JSON that a model wrote, and checking it against the few schema keywords that the tasks use."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_TYPES: dict[str, type] = {"object": dict, "array": list, "string": str, "boolean": bool}


def parse(text: str) -> Any:
    """The value of a JSON text. Raises ValueError for anything else, including what is nested too deeply to be read."""
    try:
        return json.loads(text, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("the JSON text is nested too deeply") from None


def same(a: Any, b: Any) -> bool:
    """Whether two parsed values are one JSON value: `true` is not 1, and the order of keys does not count."""
    try:
        return json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)
    except RecursionError:
        return False


def conforms(value: Any, schema: Mapping[str, Any]) -> bool:
    """Whether a parsed value satisfies a JSON schema made of `type`, `enum`, `properties`, `required` and `items`."""
    if "enum" in schema and not any(same(value, choice) for choice in schema["enum"]):
        return False
    if "type" in schema and not _is_a(value, schema["type"]):
        return False
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        return all(key in value for key in schema.get("required", ())) and all(
            conforms(member, properties[key]) for key, member in value.items() if key in properties
        )
    if isinstance(value, list):
        return all(conforms(member, schema.get("items", {})) for member in value)
    return True


def _is_a(value: Any, name: str) -> bool:
    if name == "integer":
        return (isinstance(value, int) and not isinstance(value, bool)) or (isinstance(value, float) and value.is_integer())
    return isinstance(value, _TYPES[name])


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
