"""Schemas in their document, and the values of keywords."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from hasten.engine.decoding.constraints.base import GrammarError

Json = Any
"""A value as `json.loads` gives it, numbers as int or Decimal."""


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """A schema in the document. `where`: its JSON pointer. `base`: the identifier of the resource that it belongs to."""

    schema: dict[str, Json]
    where: str
    base: str


def step(where: str, *names: str | int) -> str:
    """The pointer `where`, further down."""
    return where + "".join("/" + str(name).replace("~", "~0").replace("/", "~1") for name in names)


def shown(value: Json) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def get(place: Place, word: str, kind: Any, default: Any = None) -> Any:
    """The value of a keyword. Raises GrammarError where it is of another kind."""
    value = place.schema.get(word, default)
    if not isinstance(value, kind):
        raise GrammarError(f"it cannot be {shown(value)}", word, place.where)
    return value


def count_of(place: Place, word: str) -> int:
    value = number(place.schema[word], word, place.where)
    if value < 0 or value != int(value):
        raise GrammarError(f"it counts, and cannot be {shown(place.schema[word])}", word, place.where)
    return int(min(value, 2**31 - 2))


def number(value: Json, word: str, where: str) -> int | Decimal:
    """Exact."""
    if not isinstance(value, int | float | Decimal) or isinstance(value, bool):
        raise GrammarError(f"it is a number, not {shown(value)}", word, where)
    exact = value if isinstance(value, int | Decimal) else Decimal(repr(value))
    if isinstance(exact, int):
        return exact
    if not exact.is_finite() or abs(exact.adjusted()) > 1000 or len(exact.as_tuple().digits) > 1000:
        raise GrammarError(f"{shown(str(value))} is no number that can be told apart", word, where)
    return exact
