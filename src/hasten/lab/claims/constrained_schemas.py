"""What the claim `pre3` asks of models: schemas and questions."""

from __future__ import annotations

from typing import Any

_ITEM: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"enum": ["apple", "pear", "plum"]},
        "count": {"type": "integer", "minimum": 1, "maximum": 99},
    },
    "required": ["name", "count"],
    "additionalProperties": False,
}  # fmt: skip
SCHEMAS: dict[str, dict[str, Any]] = {
    "order": {
        "type": "object",
        "properties": {
            "customer": {"type": "string", "maxLength": 20},
            "items": {"type": "array", "minItems": 1, "maxItems": 3, "items": _ITEM},
            "express": {"type": "boolean"},
        },
        "required": ["customer", "items", "express"],
        "additionalProperties": False,
    },
    "date": {
        "type": "object",
        "properties": {
            "day": {"type": "string", "format": "date"},
            "code": {"type": "string", "pattern": "^[A-Z]{3}-[0-9]{2,4}$"},
            "price": {"type": "number", "minimum": 0, "maximum": 1000, "multipleOf": 0.5},
        },
        "required": ["day", "code"],
        "additionalProperties": False,
    },
    "shape": {
        "oneOf": [
            {
                "properties": {"kind": {"const": "circle"}, "radius": {"type": "integer", "minimum": 1, "maximum": 9}},
                "required": ["kind", "radius"],
                "additionalProperties": False,
            },
            {
                "properties": {
                    "kind": {"const": "box"},
                    "sides": {"items": {"enum": [1, 2, 5, 10]}, "type": "array", "maxItems": 3, "uniqueItems": True},
                },
                "required": ["kind", "sides"],
                "additionalProperties": False,
            },
        ],
        "type": "object",
    },
    "tree": {
        "$ref": "#/$defs/node",
        "$defs": {
            "node": {
                "type": "object",
                "properties": {
                    "value": {"type": "integer", "minimum": 0, "maximum": 99},
                    "left": {"$ref": "#/$defs/leaf"},
                    "right": {"$ref": "#/$defs/leaf"},
                },
                "required": ["value"],
                "additionalProperties": False,
                "minProperties": 2,
            },
            "leaf": {"anyOf": [{"type": "null"}, {"type": "string", "minLength": 1, "maxLength": 8}]},
        },
    },
}  # fmt: skip
ASKED = [
    [{"role": "user", "content": f"Order {n} {fruit} for {who}."}]
    for who in ("Nina", "Omar", "Ada")
    for n, fruit in ((1, "apples"), (12, "pears"), (3, "plums"))
]
LONG = {
    "type": "array",
    "minItems": 2000,
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 40},
            "value": {"type": "number"},
            "tags": {"type": "array", "maxItems": 3, "items": {"enum": ["new", "used", "sold"]}},
            "open": {"type": "boolean"},
        },
        "required": ["name", "value"],
        "additionalProperties": {"type": "string", "maxLength": 20},
    },
}
"""Of texts that go on as long as anybody decodes."""
FIXED = {
    "type": "array",
    "minItems": 8,
    "maxItems": 8,
    "items": {
        "type": "object",
        "properties": {
            "identifier": {"type": "integer", "minimum": 1, "maximum": 999},
            "delivery_address": {"enum": ["warehouse", "customer", "post office"]},
            "payment_status": {"enum": ["paid in advance", "on delivery"]},
            "requires_signature": {"type": "boolean"},
        },
        "required": ["identifier", "delivery_address", "payment_status", "requires_signature"],
        "additionalProperties": False,
    },
}
"""Of texts that are mostly keys."""
PARCELS = """Parcels as JSON.
[{"identifier":%d,"delivery_address":"post office","payment_status":"on delivery","requires_signature":false}]
The next parcels as JSON.
"""
