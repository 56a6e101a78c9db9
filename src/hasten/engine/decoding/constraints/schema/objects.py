"""Alternatives of objects as shapes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hasten.engine.decoding.constraints.base import GrammarError
from hasten.engine.decoding.constraints.languages import EVERYTHING, NOTHING, Expr, both, either, without
from hasten.engine.decoding.constraints.schema.conditions import Alternative, Condition
from hasten.engine.decoding.constraints.schema.containers import Fields
from hasten.engine.decoding.constraints.schema.formulas import Formula
from hasten.engine.decoding.constraints.schema.normal import MOST, Normal
from hasten.engine.decoding.constraints.schema.shapes import ObjectShape, Presence, weakest
from hasten.engine.decoding.constraints.schema.witnesses import spread

_CELLS = 64
"""Classes of keys that the patterns of one object may make."""


class Objects:
    def __init__(self, normal: Normal) -> None:
        self._normal, self._all = normal, normal.formulas

    def of(self, formula: Formula) -> list[ObjectShape]:
        """The shapes of the formula's objects."""
        groups: dict[tuple[Any, ...], list[tuple[Fields, dict[str, None]]]] = {}
        found = map(self._told_apart, self._normal.alternatives(formula, "object"))
        for alternative in (way for one in found for way in spread(one, "object", self._named_witness, self._normal)):
            fields = self._normal.fields(alternative)
            kept = tuple(one for one in fields.conditions if one.kind in ("part", "names", "some key"))
            named = self._named(fields)
            # Which keys have names matters to a witness only, which must have none.
            witnesses = any(one.kind == "some key" for one in kept)
            groups.setdefault((kept, tuple(named) if witnesses else None), []).append((fields, named))
        return [self._object(members) for members in groups.values()]

    def _named(self, fields: Fields) -> dict[str, None]:
        found: dict[str, None] = {}
        for part in fields.parts:
            found |= dict.fromkeys(part.properties)
        for one in fields.conditions:
            if one.kind == "some key":
                found |= dict.fromkeys(sorted(one.data[1]))
        found |= fields.has | fields.lacks
        if not any(one.kind == "some key" for one in fields.conditions):
            found |= self._few(fields)
        for one in fields.conditions:
            if one.kind == "named":
                found |= dict.fromkeys(one.data[0])
        for names in fields.names:
            values = [self._normal.scalars.values(one, "string") for one in self._normal.alternatives(names, "string")]
            if values and all(one is not None for one in values):
                found |= dict.fromkeys(sorted(frozenset().union(*(one for one in values if one is not None))))
        return found

    def _few(self, fields: Fields) -> dict[str, None]:
        """The keys of patterns that have few: as names they can be counted."""
        return dict.fromkeys(key for part in fields.parts for pattern, _ in part.patterns for key in _few(pattern))

    def _object(self, members: list[tuple[Fields, dict[str, None]]]) -> ObjectShape:
        named: dict[str, None] = {}
        for _, own in members:
            named |= own
        fields = members[0][0]
        shared = Fields([one for one in fields.conditions if one.kind in ("part", "names", "some key")], self._normal)
        witnesses = [one.data for one in shared.conditions if one.kind == "some key"]
        keys = {key: shared.value(key) for key in named}
        shape = ObjectShape(keys, self._classes(shared, named, witnesses), len(witnesses))
        found = [Presence(frozenset(one.has), frozenset(one.lacks), one.least, one.most) for one, _ in members]
        shape.rows = weakest(found)
        return shape

    def _classes(
        self, fields: Fields, named: dict[str, None], witnesses: list[tuple[Any, ...]]
    ) -> list[tuple[Expr, Formula, tuple[Formula | None, ...]]]:
        scalars = self._normal.scalars
        names = both(*(self._normal.keys(one) for one in fields.names))
        patterns = dict.fromkeys(pattern for part in fields.parts for pattern, _ in part.patterns)
        patterns |= dict.fromkeys(language for language, _, _ in witnesses if language != EVERYTHING)
        cells = [(names, frozenset((EVERYTHING,)))]
        for pattern in patterns:
            split = [(both(cell, pattern), matched | {pattern}) for cell, matched in cells]
            split += [(both(cell, without(pattern)), matched) for cell, matched in cells]
            cells = [(cell, matched) for cell, matched in split if not scalars.empty(cell)]
            if len(cells) > _CELLS:
                raise GrammarError(f"the patterns overlap in more than {_CELLS} ways", "patternProperties")
        joined: dict[tuple[Formula, tuple[Formula | None, ...]], list[Expr]] = {}
        for cell, matched in cells:
            wanted = []
            for part in fields.parts:
                own = [formula for pattern, formula in part.patterns if pattern in matched]
                wanted += own or [part.additional]
            value = self._all.all(wanted)
            ways = tuple(self._all.all([value, one]) if language in matched else None for language, _, one in witnesses)
            joined.setdefault((value, ways), []).append(cell)
        found = []
        for (value, ways), parts in joined.items():
            language = names if len(joined) == 1 else either(*parts)
            left = NOTHING if value is self._all.false else scalars.others(language, named)
            if left != NOTHING:
                found.append((left, value, ways))
        return found

    def _named_witness(self, alternative: Alternative, witness: Condition) -> Iterator[Alternative]:
        """The ways in which a property with a name is the witness."""
        language, but, wanted = witness.data
        for key in self._named(self._normal.fields(alternative)):
            if key not in but and self._normal.scalars.matches(language, key):
                single = self._normal.conditions.alternative
                yield single("has", key) | single("part", ((key, wanted),), (), self._all.true)

    def _told_apart(self, alternative: Alternative) -> Alternative:
        """Beside witnesses: with names for the keys of patterns that have few, if these may all be any of the witnesses."""
        witnesses = sum(one.kind == "some key" for one in alternative)
        if not witnesses:
            return alternative
        fields = self._normal.fields(alternative)
        few = tuple(self._few(fields))
        if (len(self._named(fields)) + len(few) + 1) ** witnesses > MOST:
            return alternative
        return alternative | self._normal.conditions.alternative("named", few)


def _few(language: Expr) -> list[str]:
    """The texts of a language that plainly has few."""
    if language[0] == "words" and len(language[1]) <= _CELLS:
        return list(language[1])
    if language[0] == "chars" and sum(high - low + 1 for low, high in language[1]) <= _CELLS:
        return [chr(point) for low, high in language[1] for point in range(low, high + 1)]
    return []
