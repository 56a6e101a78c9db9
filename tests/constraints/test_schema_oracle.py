"""Random schemas against the `jsonschema` package: verdicts, and texts written by chance, which must end and be valid."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

pytest.importorskip("jsonschema")
import jsonschema
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.constraints.schemas import allows, compiled, walk

from hasten.engine.decoding.constraints.base import GrammarError
from hasten.engine.decoding.constraints.schema import Unsatisfiable

KEYS = st.sampled_from(["a", "b", "ab", "c", ""])
SCALARS = [None, True, False, 0, 1, -1, 3, 10, 0.5, 2.5, "", "a", "b", "ab", "ba", "aaa"]
VALUES = st.recursive(
    st.sampled_from(SCALARS), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=6
)
NUMBERS = st.sampled_from([-1, 0, 0.5, 1, 2, 3])
COUNTS = st.integers(0, 3)
PATTERNS = st.sampled_from(["^a", "b$", "a", "^(a|b)$", "^.b", "^$"])


@st.composite
def keywords(draw: Any, inner: st.SearchStrategy[Any]) -> dict[str, Any]:
    branches = st.lists(inner, min_size=1, max_size=3)
    schemas = st.dictionaries(KEYS, inner, max_size=3)
    types = st.sampled_from(["null", "boolean", "number", "integer", "string", "array", "object"])
    simple = {
        "type": types | st.lists(types, min_size=1, max_size=3, unique=True),
        "enum": st.lists(VALUES, min_size=1, max_size=4),
        "const": VALUES,
        "minimum": NUMBERS,
        "maximum": NUMBERS,
        "exclusiveMinimum": NUMBERS,
        "exclusiveMaximum": NUMBERS,
        "multipleOf": st.sampled_from([0.5, 1, 2, 3]),
        "minLength": COUNTS,
        "maxLength": COUNTS,
        "pattern": PATTERNS,
        "minItems": COUNTS,
        "maxItems": COUNTS,
        "uniqueItems": st.just(True),
        "minContains": COUNTS,
        "maxContains": COUNTS,
        "minProperties": COUNTS,
        "maxProperties": COUNTS,
        "required": st.lists(KEYS, max_size=2, unique=True),
        "dependentRequired": st.dictionaries(KEYS, st.lists(KEYS, max_size=2, unique=True), max_size=2),
    }
    nested = {
        "properties": schemas,
        "patternProperties": st.dictionaries(PATTERNS, inner, max_size=2),
        "additionalProperties": inner,
        "propertyNames": inner,
        "dependentSchemas": schemas,
        "items": inner,
        "prefixItems": branches,
        "contains": inner,
        "unevaluatedItems": inner,
        "unevaluatedProperties": inner,
        "allOf": branches,
        "anyOf": branches,
        "oneOf": branches,
        "not": inner,
        "if": inner,
        "then": inner,
        "else": inner,
        "$ref": st.sampled_from(["#/$defs/x", "#/$defs/y"]),
    }
    known = simple | nested
    names = draw(st.lists(st.sampled_from(sorted(known)), min_size=1, max_size=4, unique=True))
    if {"minContains", "maxContains"} & set(names):
        names = sorted({*names, "contains"})  # which they count
    return {name: draw(known[name]) for name in names}


SCHEMAS = st.recursive(st.booleans(), keywords, max_leaves=8)


@st.composite
def documents(draw: Any) -> Any:
    """A schema whose references lead somewhere."""
    schema = draw(SCHEMAS)
    return {**schema, "$defs": {"x": draw(SCHEMAS), "y": draw(SCHEMAS)}} if isinstance(schema, dict) else schema


@settings(max_examples=200, suppress_health_check=list(HealthCheck))
@given(documents(), st.lists(VALUES, min_size=5, max_size=25), st.integers(0, 2**32))
def test_verdicts_are_those_of_jsonschema(schema: Any, values: list[Any], seed: int) -> None:
    validator = jsonschema.Draft202012Validator(schema)

    def valid(value: Any) -> bool | None:
        try:
            return validator.is_valid(value)
        except RecursionError:  # something that it looks at is defined by itself, even if it does not matter
            return None

    try:
        grammar = compiled(schema)
    except Unsatisfiable:
        assert not [value for value in values if valid(value)]
        return
    except GrammarError:
        return  # refused, or defined by itself
    for value in values:
        assert allows(grammar, value) is valid(value) or valid(value) is None, value
    for attempt in range(3):
        text = walk(grammar, seed + attempt)
        # Beyond a float's digits jsonschema sees another number.
        if text is not None and not re.search(r"\d{15}|\d\.\d{12}", text):
            assert valid(json.loads(text)) is not False, text
