"""Every keyword by hand: what its grammar allows and what not, as values and as text."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest
from tests.constraints.schemas import accepted, allows, compiled

DRAFT4, DRAFT6, DRAFT7 = (f"http://json-schema.org/draft-0{number}/schema#" for number in (4, 6, 7))
OPEN = {"type": "object"}

CASES: list[tuple[str, Any, list[Any], list[Any]]] = [
    ("anything", True, [None, 1, "x", [], {}, [{"a": [1.5]}]], []),
    ("type", {"type": "integer"}, [0, -3, 10**30], [1.5, "1", True, None]),
    ("types", {"type": ["null", "boolean"]}, [None, True, False], [0, "null", []]),
    (
        "enum mixes types",
        {"enum": [1, "1", True, None, [1], {"a": 1}]},
        [1, "1", True, None, [1], {"a": 1}],
        [False, "a", [2], {}],
    ),
    ("enum cut by type", {"type": "string", "enum": ["a", 1]}, ["a"], [1, "b"]),
    ("const null", {"const": None}, [None], [False, 0, ""]),
    ("const object", {"const": {"a": [1, {}]}}, [{"a": [1, {}]}], [{"a": [1]}, {}, {"a": [1, {}], "b": 1}]),
    ("not const object", {**OPEN, "not": {"const": {"a": 1}}}, [{}, {"a": 2}, {"a": 1, "b": 1}], [{"a": 1}]),
    ("not const array", {"type": "array", "not": {"const": [1, 2]}}, [[], [1], [1, 3], [1, 2, 3]], [[1, 2]]),
    ("empty enum", {"type": ["string", "null"], "not": {"enum": []}}, ["", None], [1]),
    ("bounds", {"type": "number", "minimum": -1, "exclusiveMaximum": 2.5}, [-1, 0, 2.4], [-1.1, 2.5, 3]),
    ("bounds of draft 4", {"$schema": DRAFT4, "type": "integer", "minimum": 1, "exclusiveMinimum": True}, [2], [1, 0]),
    ("bounds meet", {"type": "integer", "exclusiveMinimum": 1, "maximum": 2}, [2], [1, 3]),
    ("a bound beyond 2**53", {"type": "integer", "minimum": 9007199254740993}, [9007199254740993], [9007199254740992]),
    ("multipleOf", {"type": "number", "multipleOf": 0.01}, [0, 1, 0.25, -3.5], [0.001, 1.255]),
    ("not multipleOf", {"type": "integer", "not": {"multipleOf": 3}}, [1, -2, 10], [0, 3, -9]),
    ("lengths", {"type": "string", "minLength": 1, "maxLength": 2}, ["a", "é😀"], ["", "abc"]),
    ("long lengths", {"type": "string", "minLength": 90, "maxLength": 100}, ["x" * 90, "é" * 100], ["x" * 89, "x" * 101]),
    (
        "length and pattern",
        {"type": "string", "pattern": "^a*$", "minLength": 2, "maxLength": 3},
        ["aa", "aaa"],
        ["a", "aab", "a" * 4],
    ),
    ("pattern is searched", {"type": "string", "pattern": "b"}, ["b", "abc"], ["", "ac"]),
    ("not pattern", {"type": "string", "not": {"pattern": "^a"}}, ["", "ba"], ["a", "ab"]),
    ("format", {"type": "string", "format": "date"}, ["2024-02-29"], ["2023-02-29", "x"]),
    ("unknown format", {"type": "string", "format": "int32"}, ["x"], [1]),
    ("pattern concerns strings", {"pattern": "^a"}, ["a", 1, []], ["b"]),
    ("properties", {"properties": {"a": {"type": "integer"}}}, [{}, {"a": 1}, {"b": "x", "a": 1}, 7], [{"a": "x"}]),
    ("required", {**OPEN, "required": ["a", "b"]}, [{"b": 1, "a": 2}, {"x": 0, "a": 1, "b": 1}], [{}, {"a": 1}]),
    ("closed", {**OPEN, "properties": {"a": {}}, "additionalProperties": False}, [{}, {"a": 1}], [{"b": 1}, {"a": 1, "aa": 1}]),
    ("others", {**OPEN, "properties": {"a": {}}, "additionalProperties": {"type": "null"}}, [{"a": 1, "b": None}], [{"b": 1}]),
    (
        "key names",
        {**OPEN, "properties": {"": {"type": "null"}, 'q"\\é\n': {"const": 1}}},
        [{"": None, 'q"\\é\n': 1}],
        [{"": 1}],
    ),
    (
        "a key begins another",
        {**OPEN, "properties": {"a": {"const": 1}, "ab": {"const": 2}}},
        [{"a": 1, "ab": 2, "abc": 3}],
        [{"ab": 1}],
    ),
    (
        "patternProperties",
        {**OPEN, "patternProperties": {"^a": {"type": "integer"}, "b$": {"minimum": 5}}, "additionalProperties": False},
        [{"ax": 1, "b": 7, "ab": 6}, {"b": "x"}],
        [{"ax": "x"}, {"ab": 1}, {"b": 1}, {"c": 1}],
    ),
    (
        "pattern over a name",
        {**OPEN, "properties": {"ab": {"maximum": 9}}, "patternProperties": {"^a": {"type": "integer"}}},
        [{"ab": 9}, {"ac": 10}],
        [{"ab": 10}, {"ab": "x"}, {"ac": "x"}],
    ),
    ("propertyNames", {**OPEN, "propertyNames": {"pattern": "^[ab]+$"}}, [{}, {"ab": 1}], [{"c": 1}]),
    (
        "listed names",
        {**OPEN, "propertyNames": {"enum": ["x", "y"]}, "minProperties": 2},
        [{"y": 1, "x": 1}],
        [{"x": 1}, {"z": 1, "x": 1}],
    ),
    ("no names", {**OPEN, "propertyNames": {"type": "array"}}, [{}], [{"a": 1}]),
    ("not propertyNames", {**OPEN, "not": {"propertyNames": {"maxLength": 1}}}, [{"ab": 1}, {"a": 1, "bc": 2}], [{}, {"a": 1}]),
    (
        "counts of properties",
        {**OPEN, "minProperties": 1, "maxProperties": 2},
        [{"a": 1}, {"a": 1, "b": 1}],
        [{}, dict.fromkeys("abc", 1)],
    ),
    (
        "required within the most",
        {**OPEN, "required": ["a"], "maxProperties": 2},
        [{"b": 1, "a": 1}],
        [{"b": 1, "c": 1}, {"a": 1, "b": 1, "c": 1}],
    ),
    ("dependentRequired", {**OPEN, "dependentRequired": {"a": ["b"]}}, [{}, {"b": 1}, {"a": 1, "b": 1}], [{"a": 1}]),
    ("dependentRequired of draft 7", {"$schema": DRAFT7, "dependentRequired": {"a": ["b"]}}, [{"a": 1}], []),
    (
        "values with titles",
        {"oneOf": [{"const": 1, "title": "one"}, {"type": "string", "enum": ["a", 5]}, {"const": True}, {"type": "null"}]},
        [1, "a", True, None],
        [5, False, 2],
    ),
    ("a value in three lists", {"oneOf": [{"const": 1}, {"const": 1}, {"const": 2}]}, [2], [1]),
    ("a value twice", {"oneOf": [{"const": 1}, {"enum": [1, 2]}, {"const": "a"}]}, [2, "a"], [1]),
    (
        "dependencies",
        {"dependencies": {"a": ["b"], "c": {"minProperties": 3}}},
        [{"a": 1, "b": 1}, [], {"b": 1}],
        [{"a": 1}, {"c": 1}],
    ),
    ("dependentSchemas", {"dependentSchemas": {"a": {"properties": {"b": False}}}}, [{"a": 1}, {"b": 1}], [{"a": 1, "b": 1}]),
    ("items", {"type": "array", "items": {"type": "integer"}}, [[], [1, 2, 3]], [["x"], [1, "x"]]),
    (
        "prefixItems",
        {"type": "array", "prefixItems": [{"const": 1}, {"const": 2}], "items": False},
        [[], [1], [1, 2]],
        [[2], [1, 2, 3]],
    ),
    (
        "items and additionalItems",
        {"$schema": DRAFT7, "type": "array", "items": [{"const": 1}], "additionalItems": {"const": 2}},
        [[], [1], [1, 2, 2]],
        [[2], [1, 1]],
    ),
    ("additionalItems alone", {"$schema": DRAFT7, "additionalItems": False}, [[1]], []),
    ("counts of items", {"type": "array", "minItems": 1, "maxItems": 2}, [[1], [1, 1]], [[], [1, 1, 1]]),
    (
        "uniqueItems",
        {"type": "array", "uniqueItems": True},
        [[1, "1", True], [{"a": 1, "b": 2}, {"a": 1}]],
        [[1, 1], [{"a": 1}, {"a": 1}]],
    ),
    ("uniqueItems and order", {"uniqueItems": True}, [[[1, 2], [2, 1]]], [[{"a": 1, "b": 2}, {"b": 2, "a": 1}]]),
    (
        "different items of few",
        {"type": "array", "uniqueItems": True, "items": {"enum": ["a", 1, None]}},
        [["a", None, 1]],
        [["a", "a"]],
    ),
    ("contains", {"type": "array", "contains": {"type": "integer"}}, [[1], ["x", 1], [1, "x"]], [[], ["x"]]),
    (
        "contains within the most",
        {"type": "array", "contains": {"const": 1}, "maxItems": 2},
        [[2, 1], [1, 2]],
        [[2, 2], [2, 2, 1]],
    ),
    (
        "contains beside a prefix",
        {
            "type": "array",
            "prefixItems": [{"type": "string"}],
            "items": {"type": "integer"},
            "contains": {"minimum": 5},
            "maxItems": 2,
        },
        [["x"], ["x", 1], ["x", 5]],
        [[], [5], ["x", 1, 5]],
    ),
    (
        "two contains",
        {"type": "array", "allOf": [{"contains": {"minimum": 2}}, {"contains": {"maximum": 3}}]},
        [[2], [1, 4], ["x"]],
        [[1], [4]],
    ),
    ("not contains", {"type": "array", "not": {"contains": {"const": 1}}}, [[], [2]], [[1], [2, 1]]),
    (
        "counted matches",
        {"type": "array", "contains": {"type": "integer"}, "minContains": 2, "maxContains": 3},
        [[1, 2], ["x", 1, 2, "y", 3], [1, 1, 1]],
        [[], [1], ["x", 1], [1, 2, 3, 4], [1, "x", 2, 3, "y", 4]],
    ),
    (
        "room for matches",
        {"type": "array", "contains": {"const": 1}, "minContains": 2, "maxItems": 3},
        [[1, 1], [2, 1, 1], [1, 2, 1], [1, 1, 2], [1, 1, 1]],
        [[1, 2, 2], [2, 2], [1, 1, 1, 1]],
    ),
    ("at most one match", {"contains": {"const": 1}, "minContains": 0, "maxContains": 1}, [[], [2], [2, 1, 3], 7], [[1, 2, 1]]),
    ("no match", {"contains": {"const": 1}, "minContains": 0, "maxContains": 0}, [[], [2]], [[1], [2, 1]]),
    (
        "matches at positions",
        {
            "type": "array",
            "prefixItems": [{"type": "string"}, {}],
            "contains": {"const": 1},
            "minContains": 2,
            "maxContains": 2,
        },
        [["x", 1, 1], ["x", 2, 1, 1], ["x", 1, 2, 1, 2]],
        [[1, 1], ["x", 1], ["x", 1, 1, 1], ["x", 2, 1]],
    ),
    (
        "different matches",
        {"type": "array", "uniqueItems": True, "contains": {"type": "integer"}, "minContains": 2},
        [[1, 2], ["x", 1, 3]],
        [[1, 1], [1]],
    ),
    (
        "not counted matches",
        {"type": "array", "not": {"contains": {"const": 1}, "minContains": 2, "maxContains": 2}},
        [[], [1], [1, 1, 1], [2, 1]],
        [[1, 1], [1, 2, 1]],
    ),
    ("matches of draft 7", {"$schema": DRAFT7, "contains": {"const": 1}, "minContains": 2}, [[1], [2, 1]], [[2]]),
    (
        "unevaluatedProperties",
        {
            **OPEN,
            "properties": {"a": {}},
            "allOf": [{"patternProperties": {"^b": {}}}, {"$ref": "#/$defs/c"}],
            "anyOf": [{"properties": {"a": {"type": "integer"}}}, {"required": ["c"]}],
            "not": {"properties": {"d": {"type": "null"}}, "required": ["d"]},
            "unevaluatedProperties": {"type": "null"},
            "$defs": {"c": {"properties": {"c": {}}}},
        },
        [{"a": 1, "bb": 1, "c": 1}, {"a": 1, "x": None}, {"a": "x", "c": 1}],
        [{"a": 1, "x": 1}, {"a": "x"}, {"a": 1, "d": None}],
    ),
    (
        "all evaluated before",
        {"allOf": [{"additionalProperties": {"type": "integer"}}, {"items": {}}], "unevaluatedProperties": False},
        [{"a": 1}, [1]],
        [{"a": "x"}],
    ),
    (
        "unevaluated inside",
        {"allOf": [{"properties": {"a": {}}, "unevaluatedProperties": {"const": 1}}], "unevaluatedProperties": False},
        [{"a": 2, "b": 1}],
        [{"b": 2}],
    ),
    (
        "unevaluatedItems",
        {"prefixItems": [{}], "allOf": [{"prefixItems": [{}, {"const": 2}]}], "unevaluatedItems": {"type": "string"}},
        [[], [1, 2], [1, 2, "x"]],
        [[1, 3], [1, 2, 3]],
    ),
    (
        "unevaluatedItems of 2019",
        {
            "$schema": "https://json-schema.org/draft/2019-09/schema",
            "items": [{}],
            "contains": {"const": 1},
            "unevaluatedItems": False,
        },
        [[1]],
        [[1, 1], [2], []],
    ),
    ("minContains 0", {"type": "array", "contains": False, "minContains": 0}, [[], [1]], []),
    ("not items", {"type": "array", "not": {"items": {"type": "string"}}}, [[1], ["x", 1]], [[], ["x"]]),
    (
        "not properties",
        {**OPEN, "not": {"additionalProperties": {"type": "string"}}},
        [{"a": 1}, {"a": "x", "b": 1}],
        [{}, {"a": "x"}],
    ),
    (
        "allOf of closed ones",
        {"allOf": [{"properties": {"a": {}}, "additionalProperties": False}, {**OPEN}]},
        [{"a": 1}],
        [{"b": 1}],
    ),
    ("anyOf", {"anyOf": [{"type": "string"}, {"type": "integer", "minimum": 2}]}, ["x", 2], [1, None]),
    (
        "anyOf of objects",
        {"anyOf": [{**OPEN, "required": ["a"]}, {**OPEN, "required": ["b"]}]},
        [{"a": 1}, {"b": 1}, {"a": 1, "b": 1}],
        [{}],
    ),
    (
        "oneOf of objects",
        {"oneOf": [{**OPEN, "required": ["a"]}, {**OPEN, "required": ["b"]}]},
        [{"a": 1}, {"b": 1}],
        [{}, {"a": 1, "b": 1}],
    ),
    ("oneOf of numbers", {"oneOf": [{"multipleOf": 2}, {"multipleOf": 3}]}, [2, 3, 4], [1, 6, 0, "x"]),
    ("not oneOf", {"type": "integer", "not": {"oneOf": [{"multipleOf": 2}, {"multipleOf": 3}]}}, [1, 6, 0], [2, 3]),
    ("equal branches", {"oneOf": [{"type": "string"}, {"type": "string"}, {"type": "null"}]}, [None], ["x"]),
    ("not", {"not": {"type": ["object", "array"]}}, [1, "x", None], [{}, []]),
    ("not required", {**OPEN, "not": {"required": ["a"]}}, [{}, {"b": 1}], [{"a": 1}]),
    ("double negation", {"not": {"not": {"type": "string"}}}, ["x"], [1]),
    ("if", {"if": {"type": "integer"}, "then": {"minimum": 5}, "else": {"type": "string"}}, [5, "x"], [4, None]),
    ("if of draft 6", {"$schema": DRAFT6, "if": True, "then": False}, [1], []),
    (
        "const of draft 4",
        {"$schema": DRAFT4, "const": 1, "contains": {"const": 1}, "propertyNames": False},
        [2, [], {"a": 1}],
        [],
    ),
    (
        "$ref alone",
        {"$schema": DRAFT7, "definitions": {"s": {"type": "string"}}, "$ref": "#/definitions/s", "maxLength": 1},
        ["xx"],
        [1],
    ),
    ("$ref with others", {"$defs": {"s": {"type": "string"}}, "$ref": "#/$defs/s", "maxLength": 1}, ["x"], [1, "xx"]),
    ("escapes in $ref", {"$ref": "#/$defs/a~1b~0c%25", "$defs": {"a/b~c%": {"const": 1}}}, [1], [2]),
    ("$anchor", {"$ref": "#here", "$defs": {"x": {"$anchor": "here", "const": 1}}}, [1], [2]),
    (
        "$anchor of a property",
        {"$ref": "#here", "$defs": {"x": {"properties": {"default": {"$anchor": "here", "const": 1}}}}},
        [1],
        [2],
    ),
    ("own $id", {"$id": "http://x.y/z", "$ref": "http://x.y/z#/$defs/x", "$defs": {"x": {"const": 1}}}, [1], [2]),
    (
        "an $id inside",
        {"$id": "http://x.y/a/b", "$ref": "c", "$defs": {"x": {"$id": "c", "$ref": "#/$defs/d", "$defs": {"d": {"const": 1}}}}},
        [1],
        [2],
    ),
    (
        "recursion",
        {"properties": {"v": {"type": "integer"}, "next": {"$ref": "#"}}, "required": ["v"], "additionalProperties": False},
        [{"v": 1}, {"next": {"next": {"v": 3}, "v": 2}, "v": 1}],
        [{"next": {}, "v": 1}, {"next": {"v": 1}}],
    ),
    ("unknown keywords", {"minitems": 4, "_format": "date", "title": "t", "default": 1}, [1, [], "x"], []),
    (
        "what looks like a keyword",
        {"properties": {"enum": {"type": "string"}, "$ref": {"type": "null"}}},
        [{"enum": "x", "$ref": None}],
        [{"enum": 1}],
    ),
]


@pytest.mark.parametrize(("schema", "valid", "invalid"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_verdicts(schema: Any, valid: list[Any], invalid: list[Any]) -> None:
    grammar = compiled(schema)
    assert [value for value in valid if not allows(grammar, value)] == []
    assert [value for value in invalid if allows(grammar, value)] == []


def test_blanks_are_the_callers_choice() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "array"}}}
    value = {"a": [1, {}], "b": []}
    compact, spaced = json.dumps(value, separators=(",", ":")), json.dumps(value)
    indented, wide = json.dumps(value, indent=2), '{"a" :\t[ 1\r\n, { }]   ,"b":[]}'
    outside = " " + compact
    texts = [compact, spaced, indented, wide, outside, compact + "\n"]
    assert accepted(schema, texts) == [compact, spaced, indented, wide]
    assert accepted(schema, texts, whitespace="compact") == [compact]
    assert accepted(schema, texts, whitespace="spaced") == [spaced]
    assert accepted(schema, texts, whitespace=1) == [compact, spaced]


def test_order_of_properties() -> None:
    schema = {"properties": {"a": {}, "b": {}, "c": {}}, "required": ["b"]}
    texts = [
        json.dumps(dict.fromkeys(keys, 1)) for keys in ("abc", "ab", "bc", "b", "ba", "cb", "bx", "abxy", "xb", "axb", "ac")
    ]
    assert accepted(schema, texts) == texts[:-1]
    assert accepted(schema, texts, order="schema") == [
        json.dumps(dict.fromkeys(keys, 1)) for keys in ("abc", "ab", "bc", "b", "bx", "abxy")
    ]


def test_no_key_comes_twice() -> None:
    texts = ['{"a":1,"a":1}', '{"x":1,"x":1}', r'{"a":1,"\u0061":1}', '{"a":1,"x":1}']
    assert accepted({"properties": {"a": {}}}, texts) == texts[3:]


def test_texts_of_numbers_and_strings() -> None:
    assert accepted({"type": "number"}, ["1e5", "-0.5E+3", "01", "+1", ".5", "1."]) == ["1e5", "-0.5E+3"]
    assert accepted({"type": "number", "minimum": 1}, ["1.0", "1e5", "0.9"]) == ["1.0"]
    assert accepted({"type": "string"}, [r'"\u00e9\/\ud83d\ude00"', r'"\ud83d"', '"\n"']) == [r'"\u00e9\/\ud83d\ude00"']
    assert accepted({"enum": ["é/\n"]}, ['"é/\\n"', r'"\u00e9/\n"', r'"é\/\n"']) == ['"é/\\n"']


def test_numbers_of_a_schema_are_exact() -> None:
    schema = '{"type": "number", "minimum": 0.10000000000000000000000000001, "maximum": 1e20}'
    texts = ["0.1", "0.10000000000000000000000000001", "100000000000000000000", "100000000000000000001"]
    assert accepted(schema, texts) == texts[1:3]
    assert accepted({"enum": [Decimal("0.3")]}, ["0.3", "0.30000000000000004"]) == ["0.3"]
