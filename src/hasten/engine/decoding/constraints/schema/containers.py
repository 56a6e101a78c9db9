"""What an alternative of objects or of arrays says, put together; and the alternatives that a negated condition leaves."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from hasten.engine.decoding.constraints.base import GrammarError
from hasten.engine.decoding.constraints.languages import Expr, either, without
from hasten.engine.decoding.constraints.schema.conditions import Alternative, Condition, Payload, outside
from hasten.engine.decoding.constraints.schema.formulas import Formula

if TYPE_CHECKING:
    from hasten.engine.decoding.constraints.schema.normal import Normal

ENDLESS = 2**31 - 1


class Part:
    """What one schema says of the values of an object: of its properties, of keys that match its patterns, of all others."""

    def __init__(self, condition: Condition) -> None:
        self.properties: dict[str, Formula] = dict(condition.data[0])
        self.patterns: tuple[tuple[Expr, Formula], ...] = condition.data[1]
        self.additional: Formula = condition.data[2]


def _counts(conditions: list[Condition]) -> tuple[int, int]:
    least, most = 0, ENDLESS
    for one in conditions:
        if one.kind == "count":
            least = max(least, one.data[0])
            most = min(most, ENDLESS if one.data[1] is None else one.data[1])
    return least, most


@dataclass
class Fields:
    """An alternative of objects."""

    conditions: list[Condition]
    normal: Normal

    def __post_init__(self) -> None:
        self.has = dict.fromkeys(one.data[0] for one in self.conditions if one.kind == "has")
        self.lacks = dict.fromkeys(one.data[0] for one in self.conditions if one.kind == "lacks")
        self.least, self.most = _counts(self.conditions)

    @cached_property
    def parts(self) -> list[Part]:
        return [self.normal.part(one) for one in self.conditions if one.kind == "part"]

    @cached_property
    def _own(self) -> dict[str, list[Formula]]:
        """What parts say of keys that they name."""
        found: dict[str, list[Formula]] = {}
        for part in self.parts:
            for key, formula in part.properties.items():
                found.setdefault(key, []).append(formula)
        return found

    @cached_property
    def _wide(self) -> list[Part]:
        """Those that say something of other keys."""
        return [part for part in self.parts if part.patterns or part.additional is not self.normal.formulas.true]

    @cached_property
    def names(self) -> list[Formula]:
        return [one.data[0] for one in self.conditions if one.kind == "names"]

    def value(self, key: str) -> Formula:
        """What the value of the key has to satisfy: nothing can, if the key may not be there."""
        if key in self.lacks or not all(self.normal.allows(names, key) for names in self.names):
            return self.normal.formulas.false
        self.normal.check()
        wanted = list(self._own.get(key, ()))
        for part in self._wide:
            matched = [formula for pattern, formula in part.patterns if self.normal.scalars.matches(pattern, key)]
            wanted += matched if matched or key in part.properties else [part.additional]
        return self.normal.formulas.all(wanted)

    def possible(self) -> bool:
        """False only if no object is of the alternative."""
        if self.least > self.most or len(self.has) > self.most or not self.lacks.keys().isdisjoint(self.has):
            return False
        return not any(self.normal.vacant(self.value(key)) for key in self.has)


@dataclass
class Items:
    """An alternative of arrays."""

    conditions: list[Condition]
    normal: Normal

    def __post_init__(self) -> None:
        self.least, self.most = _counts(self.conditions)
        self._items = [one.data for one in self.conditions if one.kind == "items"]
        self.prefix = max((len(prefix) for prefix, _ in self._items), default=0)
        self.unique = any(one.kind == "unique" for one in self.conditions)
        self._matches = max((one.data[1] for one in self.conditions if one.kind == "matching"), default=0)

    def item(self, at: int) -> Formula:
        """What the item at the position has to satisfy."""
        return self.normal.formulas.all([prefix[at] if at < len(prefix) else rest for prefix, rest in self._items])

    def possible(self) -> bool:
        """False only if no array is of the alternative."""
        if max(self.least, self._matches) > self.most:
            return False
        return not any(self.normal.vacant(self.item(at)) for at in range(min(self.least, self.prefix + 1)))


def negated(condition: Payload, normal: Normal) -> list[Alternative]:
    """The alternatives of values that break the condition, which is one of objects or of arrays."""
    all_, negate, single = normal.formulas, normal.formulas.negate, normal.conditions.alternative
    kind, *data = condition
    if kind == "count":
        return outside("count", data[0], data[1], normal.conditions)
    if kind == "has":
        return [single("lacks", data[0])]
    if kind == "part":
        properties, patterns, additional = data
        found = [
            single("has", key) | single("part", ((key, negate(value)),), (), all_.true)
            for key, value in properties
            if value is not all_.true
        ]
        found += [
            single("some key", pattern, frozenset(), negate(value)) for pattern, value in patterns if value is not all_.true
        ]
        if additional is not all_.true:
            others = without(either(*(pattern for pattern, _ in patterns)))
            named = frozenset(key for key, _ in properties)
            found.append(single("some key", others, named, negate(additional)))
        return found
    if kind == "names":
        return [single("some key", normal.keys(negate(data[0])), frozenset(), all_.true)]
    if kind == "items":
        prefix, rest = data
        found = [
            single("items", (*[all_.true] * at, negate(item)), all_.true) | single("count", at + 1, None)
            for at, item in enumerate(prefix)
            if item is not all_.true
        ]
        return found if rest is all_.true else [*found, single("some item", len(prefix), negate(rest))]
    if kind == "some item":
        return [single("items", (all_.true,) * data[0], negate(data[1]))]
    if kind == "matching":
        wanted, least, most = data
        fewer = [single("matching", wanted, 0, least - 1)] if least else []
        return fewer + ([single("matching", wanted, most + 1, None)] if most is not None else [])
    assert kind == "unique", kind
    raise GrammarError("that items are not unique cannot be asked for", "uniqueItems")
