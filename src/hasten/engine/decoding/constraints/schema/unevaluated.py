"""Which properties or items the keywords beside `unevaluatedProperties` or `unevaluatedItems` are about.

In general that depends on the value: a branch of "anyOf" counts only where it applies. It does not where the keywords stand in
the schema itself, in "allOf" or behind "$ref", or where what may not apply is about nothing that these are not about.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hasten.engine.decoding.constraints.base import GrammarError
from hasten.engine.decoding.constraints.schema.places import Place, get

if TYPE_CHECKING:
    from hasten.engine.decoding.constraints.schema.keywords import Keywords


@dataclass(slots=True)
class Evaluated:
    """`names` and `patterns` of properties, the number of the first `items`; `everything`: all properties, or all items."""

    names: dict[str, None] = field(default_factory=dict)
    patterns: dict[str, None] = field(default_factory=dict)
    items: int = 0
    everything: bool = False

    def covers(self, other: Evaluated) -> bool:
        return self.everything or not (
            other.everything
            or other.items > self.items
            or other.names.keys() - self.names.keys()
            or other.patterns.keys() - self.patterns.keys()
        )


def evaluated(keywords: Keywords, start: Place, word: str) -> Evaluated:
    """For the `word` that stands in `start`. Raises GrammarError where it depends on the value."""
    always, sometimes = Evaluated(), Evaluated()
    todo = [(start, True)]
    seen = set(todo)
    for place, sure in todo:
        keywords.limits.check()
        _note(always if sure else sometimes, keywords, place, word, nested=place is not start)
        if word == "unevaluatedItems" and "contains" in place.schema and keywords.draft >= 2020:
            sometimes.everything = True  # the items that match
        for inner, applies in _inside(keywords, place):
            if (inner, sure and applies) not in seen:
                seen.add((inner, sure and applies))
                todo.append((inner, sure and applies))
    if not always.covers(sometimes):
        raise GrammarError("it depends on which other schemas apply, which is not supported", word, start.where)
    return always


def _note(found: Evaluated, keywords: Keywords, place: Place, word: str, nested: bool) -> None:
    schema = place.schema
    found.everything |= nested and word in schema
    if word == "unevaluatedProperties":
        found.names |= dict.fromkeys(get(place, "properties", dict, {}))
        found.patterns |= dict.fromkeys(get(place, "patternProperties", dict, {}))
        found.everything |= "additionalProperties" in schema
    else:
        _, count, rest = keywords.positions(place)
        found.items = max(found.items, count)
        found.everything |= rest in schema


def _inside(keywords: Keywords, place: Place) -> Iterator[tuple[Place, bool]]:
    """The schemas inside that are about the same value, and whether they always apply. "not" tells nothing of what it saw."""
    paths: list[tuple[tuple[str | int, ...], bool]] = [(("$ref",), True)] if "$ref" in place.schema else []
    for word in ("allOf", "anyOf", "oneOf"):
        paths += [((word, at), word == "allOf") for at in range(len(get(place, word, list, [])))]
    if "if" in place.schema:
        paths += [((word,), False) for word in ("if", "then", "else") if word in place.schema]
    for word in ("dependentSchemas", "dependencies"):
        paths += [((word, key), False) for key in get(place, word, dict, {})]
    for path, applies in paths:
        if (inner := keywords.place(place, *path)) is not None:
            yield inner, applies
