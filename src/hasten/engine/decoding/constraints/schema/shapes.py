"""Containers as they are written: which keys or items there are, what each may hold, and which of them must be there.

Alternatives that differ only in what must be there become the rows of one shape. A condition that some item or property must
satisfy becomes alternatives in which it is one with a name or a position, and one in which it is any of the others: a
*witness*, which is guessed when it begins. Several witnesses may be the same item or property: one alternative for each way
to share.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from hasten.engine.decoding.constraints.base import GrammarError
from hasten.engine.decoding.constraints.languages import EVERYTHING, NOTHING, Expr, both, either, without
from hasten.engine.decoding.constraints.schema.conditions import TYPES, Alternative, Condition, in_order
from hasten.engine.decoding.constraints.schema.containers import ENDLESS, Fields
from hasten.engine.decoding.constraints.schema.formulas import Formula
from hasten.engine.decoding.constraints.schema.normal import MOST, Normal

_CELLS = 64
"""Classes of keys that the patterns of one object may make."""
_PREFIX = 1000
_SET = 256
"""Values that the items of an array may have, up to which `uniqueItems` keeps a bit for each."""


@dataclass(frozen=True, slots=True)
class Presence:
    """One way for a container to be complete."""

    has: frozenset[str] = frozenset()
    lacks: frozenset[str] = frozenset()
    least: int = 0
    most: int = ENDLESS

    def implies(self, other: Presence) -> bool:
        return other.has <= self.has and other.lacks <= self.lacks and other.least <= self.least and self.most <= other.most


@dataclass(slots=True)
class ObjectShape:
    """`classes`: of keys that have no name here, disjoint: the keys, what their values satisfy, and for each witness what the
    value satisfies if it is that one (None: it cannot be)."""

    keys: dict[str, Formula]
    classes: list[tuple[Expr, Formula, tuple[Formula | None, ...]]]
    witnesses: int
    rows: list[Presence] = field(default_factory=list)

    def key(self) -> tuple[Any, ...]:
        """Shapes of equal keys are written alike."""
        return ("object", tuple(self.keys.items()), tuple(self.classes), tuple(self.rows))


@dataclass(slots=True)
class ArrayShape:
    """`rest`: of items after the prefix. `witnesses`: what an item of these satisfies if it is that witness."""

    prefix: tuple[Formula, ...]
    rest: Formula
    witnesses: tuple[Formula, ...]
    unique: bool
    rows: list[Presence] = field(default_factory=list)

    def key(self) -> tuple[Any, ...]:
        return ("array", self.prefix, self.rest, self.witnesses, self.unique, tuple(self.rows))


@dataclass(slots=True)
class SetShape:
    """An array of different values, all of which are known: (type, value)."""

    values: list[tuple[str, Any]]
    rows: list[Presence] = field(default_factory=list)

    def key(self) -> tuple[Any, ...]:
        return ("set", tuple(self.values), tuple(self.rows))


Shape = ObjectShape | ArrayShape | SetShape


class Shapes:
    """`sets`: whether an array of different, listed values may become a `SetShape`."""

    def __init__(self, normal: Normal, sets: bool = True) -> None:
        self._normal, self._sets = normal, sets
        self._all = normal.formulas

    def of(self, formula: Formula) -> list[Shape]:
        """The shapes of the formula's arrays and objects."""
        return [*self._arrays(formula), *self._objects(formula)]

    # Objects.

    def _objects(self, formula: Formula) -> list[ObjectShape]:
        groups: dict[tuple[Any, ...], list[tuple[Fields, dict[str, None]]]] = {}
        for alternative in self._expanded(formula, "object", "some key", self._named_witness):
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
        shape.rows = _weakest(found)
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

    # Arrays.

    def _arrays(self, formula: Formula) -> list[ArrayShape | SetShape]:
        groups: dict[tuple[Any, ...], ArrayShape | SetShape] = {}
        for alternative in self._expanded(formula, "array", "some item", self._placed_witness):
            items = self._normal.items(alternative)
            prefix, rest = self._prefix(alternative), items.item(items.prefix)
            witnesses = tuple(self._all.all([rest, one.data[1]]) for one in items.conditions if one.kind == "some item")
            if prefix + len(witnesses) > items.most and witnesses:
                continue
            placed = tuple(items.item(at) for at in range(prefix))
            row = Presence(least=items.least, most=items.most)
            values = self._values(rest) if self._sets and items.unique and not prefix and not witnesses else None
            if values is not None and len(values) <= _SET:
                groups.setdefault((rest,), SetShape(values)).rows.append(row)
            else:
                key = (placed, rest, witnesses, items.unique)
                groups.setdefault(key, ArrayShape(placed, rest, witnesses, items.unique)).rows.append(row)
        for shape in groups.values():
            shape.rows = _weakest(shape.rows)
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

    # Both.

    def _expanded(self, formula: Formula, type_: str, kind: str, places: Any) -> Iterator[Alternative]:
        """The alternatives with every witness either in one of its places or anywhere else, shared or not."""
        for alternative in self._normal.alternatives(formula, type_):
            witnesses = [one for one in in_order(alternative) if one.kind == kind]
            if not witnesses:
                yield alternative
                continue
            if type_ == "object":
                fields = self._normal.fields(alternative)
                few = tuple(self._few(fields))
                if (len(self._named(fields)) + len(few) + 1) ** len(witnesses) <= MOST:  # each may be every witness
                    alternative |= self._normal.conditions.alternative("named", few)
            found: list[tuple[Alternative, tuple[Condition, ...]]] = [(alternative - set(witnesses), ())]
            for witness in witnesses:
                ways = list(places(alternative, witness))
                found = [(one | way, open_) for one, open_ in found for way in ways] + [
                    (one, (*open_, witness)) for one, open_ in found
                ]
                if len(found) > MOST:
                    raise GrammarError(f"more than {MOST} ways to satisfy it", "contains" if type_ == "array" else "not")
            for one, open_ in found:
                for blocks in _partitions(list(open_)):
                    shared = one.union(self._shared(block) for block in blocks)
                    if self._normal.possible(shared, type_):
                        yield shared

    def _shared(self, block: list[Condition]) -> Condition:
        """One witness that serves as all of these."""
        if len(block) == 1:
            return block[0]
        wanted = self._all.all([one.data[-1] for one in block])
        if block[0].kind == "some item":
            return self._normal.conditions.condition("some item", max(one.data[0] for one in block), wanted)
        language, but = both(*(one.data[0] for one in block)), frozenset().union(*(one.data[1] for one in block))
        return self._normal.conditions.condition("some key", language, but, wanted)


def _few(language: Expr) -> list[str]:
    """The texts of a language that plainly has few."""
    if language[0] == "words" and len(language[1]) <= _CELLS:
        return list(language[1])
    if language[0] == "chars" and sum(high - low + 1 for low, high in language[1]) <= _CELLS:
        return [chr(point) for low, high in language[1] for point in range(low, high + 1)]
    return []


def _weakest(rows: list[Presence]) -> list[Presence]:
    """Without the rows that imply another."""
    kept: list[Presence] = []
    for row in dict.fromkeys(rows):
        if not any(row.implies(other) for other in kept):
            kept = [other for other in kept if not other.implies(row)] + [row]
    return kept


def _partitions(items: list[Condition]) -> Iterator[list[list[Condition]]]:
    if len(items) > 5:
        raise GrammarError("more than 5 conditions that some item or property must satisfy", "contains")
    if not items:
        yield []
        return
    for rest in _partitions(items[1:]):
        yield [[items[0]], *rest]
        for at, block in enumerate(rest):
            yield [*rest[:at], [items[0], *block], *rest[at + 1 :]]
