"""What literals say of values, type by type.

A `Condition` limits the values of one JSON type; a set of them is a conjunction, and an *alternative* of a type. Of which kind:

    among / except (values)          scalars: the value is one of them, or none
    text (expression)                string: is in the language
    length / count (least, most)     string: its code points; array, object: its items, its properties
    integer (wanted)                 number
    low / high (bound, open)         number: at least or at most, not equal if open
    multiple (factor, wanted)        number
    part (properties, patterns, additional)   object: what one schema says of the values of keys
    has / lacks (key)                object
    names (formula)                  object: every key satisfies it
    some key (language, but, formula)   object: one of the keys in the language but not in `but` has a value that satisfies it
    named (keys)                     object: says nothing, but that these keys are told apart from others
    items (prefix, rest)             array
    some item (first, formula)       array: an item from that position on satisfies it
    matching (formula, least, most)  array: so many items satisfy it
    unique                           array
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from hasten.engine.decoding.constraints.languages import without

TYPES = ("null", "boolean", "number", "string", "array", "object")

Payload = tuple[Any, ...]
"""Of a literal: ("types", names), ("integer",), ("among", values by type) or ("if", type, condition)."""


class Condition:
    """Interned, as formulas are."""

    __slots__ = ("data", "kind", "number")

    def __init__(self, kind: str, data: tuple[Any, ...], number: int) -> None:
        self.kind, self.data, self.number = kind, data, number


Alternative = frozenset[Condition]
FREE: Alternative = frozenset()
"""Any value of the type."""


def in_order(alternative: Alternative) -> list[Condition]:
    """The same in every run."""
    return sorted(alternative, key=lambda one: one.number)


class Conditions:
    def __init__(self) -> None:
        self._known: dict[tuple[Any, ...], Condition] = {}
        self._sets: dict[tuple[str, Payload], Alternative | None] = {}

    def condition(self, kind: str, *data: Any) -> Condition:
        found = self._known.get((kind, data))
        if found is None:
            found = self._known[kind, data] = Condition(kind, data, len(self._known))
        return found

    def alternative(self, kind: str, *data: Any) -> Alternative:
        return frozenset((self.condition(kind, *data),))

    def when(self, payload: Payload, type_: str) -> Alternative | None:
        """What the literal asks of values of this type (None: there must be none)."""
        key = (type_, payload)
        if key not in self._sets:
            self._sets[key] = self._when(payload, type_)
        return self._sets[key]

    def _when(self, payload: Payload, type_: str) -> Alternative | None:
        kind = payload[0]
        if kind == "types":
            return FREE if type_ in payload[1] else None
        if kind == "integer":
            return self.alternative("integer", True) if type_ == "number" else None
        if kind == "among":
            values = dict(payload[1]).get(type_)
            return None if not values else FREE if type_ == "null" else self.alternative("among", values)
        return self.alternative(*payload[2]) if payload[1] == type_ else FREE


def kept(payload: Payload, type_: str, conditions: Conditions) -> list[Alternative]:
    """The alternatives of the scalar type that the *negated* literal leaves; containers have more to it (`containers.py`)."""
    kind = payload[0]
    if kind == "types":
        return [] if type_ in payload[1] else [FREE]
    if kind == "integer":
        return [conditions.alternative("integer", False) if type_ == "number" else FREE]
    if kind == "among":
        values = dict(payload[1]).get(type_)
        return [FREE] if not values else [] if type_ == "null" else [conditions.alternative("except", values)]
    if payload[1] != type_:
        return []
    kind, *data = payload[2]
    if kind in ("length", "count"):
        return outside(kind, data[0], data[1], conditions)
    if kind == "text":
        return [conditions.alternative("text", without(data[0]))]
    if kind in ("low", "high"):
        return [conditions.alternative("high" if kind == "low" else "low", data[0], not data[1])]
    assert kind == "multiple"
    return [conditions.alternative("multiple", data[0], not data[1])]


def outside(kind: str, least: int, most: int | None, conditions: Conditions) -> list[Alternative]:
    below = [conditions.alternative(kind, 0, least - 1)] if least else []
    return below + ([conditions.alternative(kind, most + 1, None)] if most is not None else [])


def type_of(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | Decimal):
        return "number"
    return "string" if isinstance(value, str) else "array" if isinstance(value, list) else "object"
