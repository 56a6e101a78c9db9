"""Schemas that cannot be enforced, are none, or are meant to do harm: a clear error in bounded time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from hasten.engine.decoding.constraints.base import GrammarError, Limits
from hasten.engine.decoding.constraints.schema import Unsatisfiable, compile_schema


def nested(depth: int, wrap: Callable[[Any], Any], inner: Any) -> Any:
    for _ in range(depth):
        inner = wrap(inner)
    return inner


NULL = {"type": "null"}
DOUBLING = {f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(200)} | {"d200": NULL}


@pytest.mark.parametrize(
    ("schema", "part", "where"),
    [
        (
            {"properties": {"a/b": {"anyOf": [{"properties": {"c": {}}}], "unevaluatedProperties": False}}},
            "unevaluatedProperties",
            "/properties/a~1b",
        ),
        ({"$ref": "#/$defs/x", "unevaluatedItems": False, "$defs": {"x": {"contains": {}}}}, "unevaluatedItems", "/"),
        ({"$ref": "#/allOf/-1", "allOf": [{}]}, "$ref", "/"),
        ({"$ref": "http://[x"}, "$ref", "/"),
        ({"$ref": "http://elsewhere/x"}, "$ref", "/"),
        ({"$ref": "#/$defs/x"}, "$ref", "/"),
        ({"$ref": "#nowhere"}, "$ref", "/"),
        ({"$ref": "#"}, "$ref", "/"),
        ({"anyOf": [{"$ref": "#"}, NULL]}, "$ref", "/"),
        ({"not": {"$ref": "#"}}, "$ref", "/"),
        ({"$dynamicRef": "#x"}, "$dynamicRef", "/"),
        ({"allOf": [{"contains": NULL, "maxContains": 1}, {"contains": {"const": 1}}]}, "contains", "/"),
        ({"contains": NULL, "minContains": 10**6}, "contains", "/"),
        ({"not": {"uniqueItems": True}}, "uniqueItems", "/"),
        ({"pattern": "("}, "pattern", "/"),
        ({"pattern": "(a)\\1"}, "pattern", "/"),
        ({"patternProperties": {"(": {}}}, "patternProperties", "/"),
        (
            {"patternProperties": {f"a.*{letter}": {"minLength": ord(letter)} for letter in "bcdefghijkl"}},
            "patternProperties",
            "/",
        ),
        ({"type": 5}, "type", "/"),
        ({"required": "a"}, "required", "/"),
        ({"required": [1]}, "required", "/"),
        ({"minLength": -1}, "minLength", "/"),
        ({"minItems": 1.5}, "minItems", "/"),
        ({"minimum": "1"}, "minimum", "/"),
        ({"minimum": float("nan")}, "minimum", "/"),
        ({"multipleOf": 0}, "multipleOf", "/"),
        ({"anyOf": []}, "anyOf", "/"),
        ({"const": nested(300, lambda inner: [inner], 1)}, "const", "/const"),
        ({"items": 5}, "", "/items"),
    ],
)
def test_refused_by_name(schema: Any, part: str, where: str) -> None:
    with pytest.raises(GrammarError) as caught:
        compile_schema(schema)
    assert (caught.value.part, caught.value.where or "/") == (part, where), str(caught.value)


def test_lenient_leaves_out_what_cannot_be_enforced() -> None:
    grammar = compile_schema({"type": "object", "$dynamicRef": "#x", "required": ["a"]}, lenient=True)
    assert len(grammar.warnings) == 1 and grammar.warnings[0].startswith("$dynamicRef: ")
    with pytest.raises(GrammarError):
        compile_schema({"minimum": "1", "pattern": 5}, lenient=False)


@pytest.mark.parametrize(
    "schema",
    [
        False,
        {"type": []},
        {"enum": []},
        {"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
        {"type": "number", "minimum": 2, "maximum": 1},
        {"type": "integer", "multipleOf": 10, "minimum": 1, "maximum": 9},
        {"type": "string", "minLength": 2, "maxLength": 1},
        {"type": "string", "pattern": "^a$", "minLength": 2},
        {"type": "string", "pattern": "^a", "allOf": [{"pattern": "^b"}]},
        {"type": "string", "enum": ["a"], "pattern": "b"},
        {"const": "\ud800"},
        {"type": "object", "required": ["a"], "properties": {"a": False}},
        {"type": "object", "required": ["a"], "additionalProperties": False},
        {"type": "object", "required": ["a"], "properties": {"a": {"$ref": "#"}}},
        {"type": "object", "required": ["a", "b"], "maxProperties": 1},
        {"type": "object", "minProperties": 2, "properties": {"a": {}}, "additionalProperties": False},
        {"type": "object", "minProperties": 2, "propertyNames": {"enum": ["a"]}},
        {"type": "object", "minProperties": 3, "patternProperties": {"^(a|b)$": {}}, "additionalProperties": False},
        {"type": "object", "required": ["ab"], "propertyNames": {"maxLength": 1}},
        {"type": "array", "minItems": 1, "items": False},
        {"type": "array", "minItems": 2, "prefixItems": [{}, False]},
        {"type": "array", "minItems": 3, "uniqueItems": True, "items": {"type": "boolean"}},
        {"type": "array", "contains": False},
        {"type": "array", "contains": {}, "maxItems": 0},
        {"type": "array", "contains": {}, "minContains": 3, "maxContains": 2},
        {"type": "array", "contains": {}, "minContains": 3, "maxItems": 2},
        {"type": "array", "contains": {"type": "string"}, "minContains": 2, "prefixItems": [NULL], "maxItems": 2},
        {"type": "array", "contains": NULL, "maxContains": 2, "items": NULL, "minItems": 3},
        {"type": "array", "contains": {"type": "integer"}, "prefixItems": [False]},
        {"oneOf": [{"type": "string"}, {"type": "string"}]},
    ],
)
def test_no_value_satisfies_it(schema: Any) -> None:
    with pytest.raises(Unsatisfiable, match="no value satisfies"):
        compile_schema(schema)


@pytest.mark.parametrize(
    "schema",
    [
        nested(1000, lambda inner: {"type": "array", "items": inner}, NULL),
        nested(1000, lambda inner: {"type": "object", "properties": {"a": inner}, "required": ["a"]}, NULL),
        nested(2000, lambda inner: {"allOf": [inner]}, NULL),
        {"$defs": DOUBLING, "$ref": "#/$defs/d0"},
        {"enum": [f"value {i}" for i in range(100_000)]},
        {"enum": list(range(100_000))},
        {"type": "array", "items": NULL, "minItems": 10**9},
        {"allOf": [{"anyOf": [{"minLength": i}, {"type": "null"}]} for i in range(100)]},
        {"oneOf": [{"type": "string", "const": f"value {i}", "title": "a value"} for i in range(10_000)]},
        {"allOf": [{"type": "object", "properties": {f"a{i}": {"minimum": i}}} for i in range(3000)]},
        '{"type": "string", "minLength": 1e30}',
        {"type": "array", "contains": NULL, "minContains": 900},
    ],
    ids=[
        "arrays",
        "objects",
        "allOf",
        "doubling",
        "enum",
        "numbers",
        "minItems",
        "anyOf",
        "oneOf",
        "properties",
        "minLength",
        "minContains",
    ],
)
def test_large_schemas_compile(schema: Any) -> None:
    compile_schema(schema, limits=Limits(seconds=20))


@pytest.mark.parametrize(
    "schema",
    [
        '{"not":' * 100_000 + "{}" + "}" * 100_000,
        nested(3000, lambda inner: {"not": inner}, NULL),
        nested(3000, lambda inner: {"anyOf": [inner, {"type": "string"}]}, NULL),
        {"allOf": [{"anyOf": [{"type": "object", "required": [f"{side}{i}"]} for side in "ab"]} for i in range(20)]},
        {"allOf": [{"anyOf": [{"pattern": f"{side}{i}"} for side in "ab"]} for i in range(20)]},
        {"type": "object", "not": {"allOf": [{"properties": {f"k{i}": NULL}} for i in range(300)]}},
        {"type": "object", "properties": {f"property {i:06d}": {"maxLength": i} for i in range(30_000)}},
        {"type": "number", "allOf": [{"multipleOf": 9000 + i} for i in range(900)]},
        '{"type": "number", "not": {"enum": [' + ",".join(f"1.{i}e900" for i in range(20_000)) + "]}}",
        {"type": "object", "patternProperties": {f"^a{i}$": {"minimum": i} for i in range(20_000)}},
        {"anyOf": [{"type": "string", "pattern": f"^{i}x"} for i in range(20_000)]},
        {"patternProperties": {"(?:" * 40 + "(?:^a|b)" + "{9})" * 40: {}}},
        '{"minimum": 1e999999999}',
        '{"minimum": 1e99999999999999999999}',
        '{"minimum": ' + "9" * 5000 + "}",
        '{"a":',
    ],
    ids=[
        "text",
        "not",
        "anyOf",
        "2**20 objects",
        "2**20 patterns",
        "not allOf",
        "1 MB",
        "multipleOf",
        "not enum",
        "patternProperties",
        "patterns",
        "anchors",
        "exponent",
        "long exponent",
        "digits",
        "no JSON",
    ],
)
def test_what_is_too_large_is_refused_soon(schema: Any) -> None:
    started = time.perf_counter()
    with pytest.raises(GrammarError):
        compile_schema(schema, limits=Limits(seconds=4))
    assert time.perf_counter() - started < 8  # and not for ever; machines differ


def test_options_are_checked() -> None:
    for options in (
        {"order": "sorted"},
        {"whitespace": "none"},
        {"whitespace": -1},
        {"whitespace": 2**40},
        {"whitespace": True},
    ):
        with pytest.raises(GrammarError):
            compile_schema(True, **options)  # type: ignore[arg-type]


def test_equal_schemas_give_equal_grammars() -> None:
    schema = {
        "oneOf": [{"required": ["a"]}, {"properties": {"b": {"pattern": "x"}}, "minProperties": 1}],
        "type": ["object", "null"],
    }
    assert compile_schema(schema).blob() == compile_schema(schema).blob()
