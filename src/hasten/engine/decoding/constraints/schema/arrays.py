"""Alternatives of arrays as shapes."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

from hasten.engine.decoding.constraints.base import GrammarError
from hasten.engine.decoding.constraints.schema.conditions import TYPES, Alternative, Condition
from hasten.engine.decoding.constraints.schema.formulas import Formula
from hasten.engine.decoding.constraints.schema.normal import MOST, Normal
from hasten.engine.decoding.constraints.schema.shapes import ArrayShape, Matching, Presence, SetShape, weakest
from hasten.engine.decoding.constraints.schema.witnesses import spread

_PREFIX = 1000
_SET = 256
"""Values that the items of an array may have, up to which `uniqueItems` keeps a bit for each."""


class Arrays:
    """`sets`: whether an array of different, listed values may become a `SetShape`."""

    def __init__(self, normal: Normal, sets: bool = True) -> None:
        self._normal, self._sets, self._all = normal, sets, normal.formulas

    def of(self, formula: Formula) -> list[ArrayShape | SetShape]:
        """The shapes of the formula's arrays."""
        groups: dict[tuple[Any, ...], ArrayShape | SetShape] = {}
        found = self._normal.alternatives(formula, "array")
        expanded = (way for one in found for way in spread(one, "array", self._placed_witness, self._normal))
        for alternative, prefix, matching in (way for one in expanded for way in self._counted(one)):
            items = self._normal.items(alternative)
            rest = items.item(items.prefix)
            witnesses = tuple(self._all.all([rest, one.data[1]]) for one in items.conditions if one.kind == "some item")
            placed = tuple(items.item(at) for at in range(prefix))
            row = Presence(least=items.least, most=items.most)
            simple = not (prefix or witnesses or matching)
            values = self._values(rest) if self._sets and items.unique and simple else None
            if values is not None and len(values) <= _SET:
                groups.setdefault((rest,), SetShape(values)).rows.append(row)
            else:
                key = (placed, rest, witnesses, matching, items.unique)
                groups.setdefault(key, ArrayShape(*key)).rows.append(row)
        for shape in groups.values():
            shape.rows = weakest(shape.rows)
        return list(groups.values())

    def _prefix(self, alternative: Alternative) -> int:
        """How many positions differ from those that follow."""
        items = self._normal.items(alternative)
        first = max((one.data[0] for one in items.conditions if one.kind == "some item"), default=0)
        count = max(items.prefix, first)
        while not first and count and items.item(count - 1) is items.item(items.prefix):
            count -= 1
        if count > _PREFIX:
            raise GrammarError(f"more than {_PREFIX} positions that differ", "items")
        return int(count)

    def _counted(self, alternative: Alternative) -> Iterator[tuple[Alternative, int, Matching | None]]:
        """The alternative with the number of its positions. Where matches are counted: the ways in which items at these
        positions match or not, each with what is left to be counted."""
        counts = [one for one in alternative if one.kind == "matching"]
        if not counts:
            yield alternative, self._prefix(alternative), None
            return
        wanted, least, most = counts[0].data
        if len(counts) > 1 or any(one.kind == "some item" for one in alternative):
            raise GrammarError("items that match are counted, but not for several conditions", "contains")
        if max(least, most or 0) > _PREFIX:
            raise GrammarError(f"more than {_PREFIX} items that match cannot be counted", "contains")
        alternative -= {counts[0]}
        prefix, other = self._prefix(alternative), self._all.negate(wanted)
        if 2**prefix > MOST:
            raise GrammarError("items that match are counted, and too many positions differ", "contains")
        rest = self._normal.items(alternative).item(prefix)
        match, no_match = self._all.all([rest, wanted]), self._all.all([rest, other])
        single = self._normal.conditions.alternative
        for places in product((False, True), repeat=prefix):
            found, last = sum(places), max((at + 1 for at, here in enumerate(places) if here), default=0)
            if most is None or found <= most:
                way = alternative | single("items", tuple(wanted if here else other for here in places), self._all.true)
                left = Matching(max(least - found, 0), None if most is None else most - found, match, no_match)
                counted = left.least > 0 or left.most is not None
                yield way | single("count", last, None), prefix, left if counted else None

    def _placed_witness(self, alternative: Alternative, witness: Condition) -> Iterator[Alternative]:
        """The ways in which an item of the prefix is the witness."""
        first, wanted = witness.data
        true, single = self._all.true, self._normal.conditions.alternative
        for at in range(first, self._prefix(alternative)):
            yield single("items", (*[true] * at, wanted), true) | single("count", at + 1, None)

    def _values(self, formula: Formula) -> list[tuple[str, Any]] | None:
        """All values that satisfy the formula, if they are scalars and listed."""
        found: dict[tuple[str, Any], None] = {}
        for type_ in TYPES:
            for alternative in self._normal.alternatives(formula, type_):
                values = None if type_ in ("array", "object") else self._normal.scalars.values(alternative, type_)
                if values is None:
                    return None
                found |= {(type_, value): None for value in sorted(values, key=lambda value: (value is not None, value))}
        return list(found)
