"""Formulas as alternatives: for each JSON type, the sets of conditions one of which a value of that type must satisfy.

This is the disjunctive normal form, made by need and type by type, so that what another type says costs nothing. It stays small
because sets that no value satisfies are dropped when they arise (as far as that is quickly seen; `emptiness.py` finds the
rest), and so are sets that contain another one. Scalars' sets are joined when they become many: languages have unions.
"""

from __future__ import annotations

from collections.abc import Iterable

from hasten.engine.decoding.constraints.base import GrammarError, Limits
from hasten.engine.decoding.constraints.languages import Expr, either
from hasten.engine.decoding.constraints.schema.conditions import FREE, TYPES, Alternative, Condition, Conditions, kept
from hasten.engine.decoding.constraints.schema.containers import Fields, Items, Part, negated
from hasten.engine.decoding.constraints.schema.formulas import Formula, Formulas, Kind
from hasten.engine.decoding.constraints.schema.keywords import Keywords
from hasten.engine.decoding.constraints.schema.scalars import Scalars

MOST = 256
"""Alternatives of one formula and type."""
_JOINED = 8
_DEEPEST = 3
"""Tests inside tests whether a part of a container can be: what decides between alternatives lies near their top."""


class _Unfinished(Exception):
    """A formula turned out to need itself: for ever, or only to see whether something can be dropped."""


class Normal:
    def __init__(self, formulas: Formulas, conditions: Conditions, keywords: Keywords, scalars: Scalars, limits: Limits) -> None:
        self.formulas, self.conditions, self.scalars = formulas, conditions, scalars
        self._keywords, self._limits = keywords, limits
        self._known: dict[tuple[Formula, str], tuple[Alternative, ...]] = {}
        self._open: set[tuple[Formula, str]] = set()
        self._possible: dict[tuple[str, Alternative], bool] = {}
        self._fields: dict[Alternative, Fields] = {}
        self._parts: dict[Condition, Part] = {}
        self._depth = 0

    def alternatives(self, formula: Formula, type_: str) -> tuple[Alternative, ...]:
        try:
            return self._find(formula, type_)
        except _Unfinished:
            raise GrammarError("the definition consists of itself", "$ref") from None

    def _find(self, formula: Formula, type_: str) -> tuple[Alternative, ...]:
        key = (formula, type_)
        found = self._known.get(key)
        if found is not None:
            return found
        if key in self._open:
            raise _Unfinished
        self._limits.check(len(self._known) // len(TYPES))
        self._open.add(key)
        try:
            found = self._known[key] = tuple(self._make(formula, type_))
        finally:
            self._open.discard(key)
        if len(found) > MOST:
            raise GrammarError(f"the combinations of its parts are more than {MOST} alternatives")
        return found

    def _make(self, formula: Formula, type_: str) -> Iterable[Alternative]:
        kind = formula.kind
        if kind is Kind.TRUE:
            return [FREE]
        if kind is Kind.ALL:
            return self._all(formula.parts, type_)
        if kind is Kind.ANY:
            return self._reduced([one for part in formula.parts for one in self._find(part, type_)], type_)
        if kind is Kind.ONE:
            return self._one(formula, type_)
        if kind is Kind.REFERENCE:
            definition = self._keywords.definition(formula.payload)
            return self._find(definition if formula.positive else self.formulas.negate(definition), type_)
        if kind is Kind.FALSE:
            return []
        if formula.positive:
            alternative = self.conditions.when(formula.payload, type_)
            return [] if alternative is None or not self.possible(alternative, type_) else [alternative]
        if formula.payload[0] == "if" and formula.payload[1] == type_ and type_ in ("array", "object"):
            return negated(formula.payload[2], self)
        return kept(formula.payload, type_, self.conditions)

    def _all(self, parts: Iterable[Formula], type_: str) -> Iterable[Alternative]:
        together: set[Alternative] = set()
        branches = []
        for part in parts:
            if part.kind is Kind.LITERAL and part.positive:
                one = self.conditions.when(part.payload, type_)
                if one is None:
                    return []
                together.add(one)
            else:
                branches.append(part)
        start = FREE.union(*together)
        if not self.possible(start, type_):
            return []
        factors = []
        for part in branches:
            found = self._find(part, type_)
            if not found:
                return []
            factors.append(found)
        current: list[Alternative] = [start]
        for factor in sorted(factors, key=len):
            current = self._product(current, factor, type_)
        return current

    def _product(self, left: list[Alternative], right: tuple[Alternative, ...], type_: str) -> list[Alternative]:
        found: dict[Alternative, None] = {}
        for one in left:
            if any(other <= one for other in right):
                found[one] = None  # the others would only say more
                continue
            for other in right:
                both = one | other
                if both not in found and self.possible(both, type_):
                    found[both] = None
            self._limits.check()
            if len(found) > 8 * MOST:
                raise GrammarError(f"the combinations of its parts are more than {MOST} alternatives")
        return self._reduced(list(found), type_)

    def _reduced(self, found: list[Alternative], type_: str) -> list[Alternative]:
        if len(found) < 2:
            return found
        if FREE in found:
            return [FREE]
        left: list[Alternative] = []
        for one in sorted(dict.fromkeys(found), key=len):
            if not any(other <= one for other in left):
                left.append(one)
        if type_ in ("array", "object") or len(left) <= _JOINED:
            return left
        return self.scalars.joined(left)

    def _one(self, formula: Formula, type_: str) -> list[Alternative]:
        live = [part for part in formula.parts if self._find(part, type_)]
        meets: list[list[Formula]] = [[] for _ in live]
        for at, one in enumerate(live):
            for other_at, other in enumerate(live[:at]):
                if not self._apart(one, other, type_):
                    meets[at].append(other)
                    meets[other_at].append(one)
        negate, found = self.formulas.negate, []
        if formula.positive:
            for one, others in zip(live, meets, strict=True):
                found += self._find(self.formulas.all([one, *map(negate, others)]), type_)
        else:
            found += self._find(self.formulas.all(map(negate, live)), type_)
            for one, others in zip(live, meets, strict=True):
                for other in others:
                    if other.number <= one.number:
                        found += self._find(self.formulas.all([one, other]), type_)
        return self._reduced(found, type_)

    def _apart(self, one: Formula, other: Formula, type_: str) -> bool:
        """Whether no value of the type is seen to satisfy both; a definition that is not complete yet proves nothing."""
        try:
            return not self._find(self.formulas.all([one, other]), type_)
        except _Unfinished:
            return False

    def vacant(self, formula: Formula) -> bool:
        """Whether it is quickly seen that nothing satisfies the formula."""
        if formula.kind is Kind.FALSE:
            return True
        if formula.kind is Kind.TRUE or self._depth >= _DEEPEST:
            return False
        self._depth += 1
        try:
            return not any(self._find(formula, type_) for type_ in TYPES)
        except _Unfinished:
            return False
        finally:
            self._depth -= 1

    def possible(self, alternative: Alternative, type_: str) -> bool:
        """False only if no value of the type satisfies all the conditions."""
        if len(alternative) < 2:
            return True
        key = (type_, alternative)
        found = self._possible.get(key)
        if found is None:
            if type_ == "object":
                found = self.fields(alternative).possible()
            elif type_ == "array":
                found = self.items(alternative).possible()
            else:
                found = self.scalars.possible(alternative, type_)
            self._possible[key] = found
        return found

    # Of containers.

    def fields(self, alternative: Alternative) -> Fields:
        found = self._fields.get(alternative)
        if found is None:
            found = self._fields[alternative] = Fields(in_order(alternative), self)
        return found

    def items(self, alternative: Alternative) -> Items:
        return Items(in_order(alternative), self)

    def part(self, condition: Condition) -> Part:
        found = self._parts.get(condition)
        if found is None:
            found = self._parts[condition] = Part(condition)
        return found

    def allows(self, names: Formula, key: str) -> bool:
        """Whether the key satisfies the formula; yes while that cannot be told."""
        try:
            return any(self.scalars.holds(one, key) for one in self._find(names, "string"))
        except _Unfinished:
            return True

    def keys(self, names: Formula) -> Expr:
        """The strings that satisfy the formula."""
        return either(*(self.scalars.text(one) for one in self._find(names, "string")))


def in_order(alternative: Alternative) -> list[Condition]:
    """The same in every run."""
    return sorted(alternative, key=lambda one: one.number)
