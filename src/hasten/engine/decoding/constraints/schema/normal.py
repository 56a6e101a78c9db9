"""Formulas as alternatives: for each JSON type, the sets of conditions one of which a value of that type must satisfy.

This is the disjunctive normal form, made by need and type by type, so that what another type says costs nothing. It stays small
because sets that no value satisfies are dropped when they arise (as far as that is quickly seen; `emptiness.py` finds the
rest), and so are sets that contain another one. Scalars' sets are joined when they become many: languages have unions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from hasten.engine.decoding.constraints.base import GrammarError, Limits
from hasten.engine.decoding.constraints.languages import Expr, either
from hasten.engine.decoding.constraints.schema.conditions import FREE, TYPES, Alternative, Condition, Conditions, in_order, kept
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
    def __init__(
        self, formulas: Formulas, conditions: Conditions, keywords: Keywords, scalars: Scalars, limits: Limits
    ) -> None:
        self.formulas, self.conditions, self.scalars = formulas, conditions, scalars
        self._keywords, self._limits, self.check = keywords, limits, limits.check
        self._known: dict[tuple[Formula, str], tuple[Alternative, ...]] = {}
        self._open: set[tuple[Formula, str]] = set()
        self._conjunctions: dict[Formula, Iterable[Formula]] = {}
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
            found = tuple(self._make(formula, type_))
            if len(found) > MOST:
                raise GrammarError(f"the combinations of its parts are more than {MOST} alternatives")
        except GrammarError as error:
            if error.where or formula.kind is not Kind.REFERENCE:
                raise
            raise GrammarError(str(error).removeprefix(f"{error.part}: "), error.part, formula.payload.where or "/") from None
        finally:
            self._open.discard(key)
        self._known[key] = found
        return found

    def _make(self, formula: Formula, type_: str) -> Iterable[Alternative]:
        kind = formula.kind
        if kind is Kind.TRUE:
            return [FREE]
        if kind is Kind.ALL:
            return self._all(formula, type_)
        if kind is Kind.ANY:
            return self._reduced([one for part in formula.parts for one in self._find(part, type_)], type_)
        if kind is Kind.ONE:
            return self._one([FREE], formula, type_) if formula.positive else self._not_one(formula, type_)
        if kind is Kind.REFERENCE and formula.positive:
            return self._all(formula, type_)
        if kind is Kind.REFERENCE:
            return self._find(self.formulas.negate(self._keywords.definition(formula.payload)), type_)
        if kind is Kind.FALSE:
            return []
        if formula.positive:
            alternative = self.conditions.when(formula.payload, type_)
            return [] if alternative is None or not self.possible(alternative, type_) else [alternative]
        if formula.payload[0] == "if" and formula.payload[1] == type_ and type_ in ("array", "object"):
            return negated(formula.payload[2], self)
        return kept(formula.payload, type_, self.conditions)

    def _all(self, formula: Formula, type_: str) -> list[Alternative]:
        together: set[Alternative] = set()
        factors, choices = [], []
        for part in self._flat(formula):
            if part.kind is Kind.LITERAL and part.positive:
                one = self.conditions.when(part.payload, type_)
                if one is None:
                    return []
                together.add(one)
            elif part.kind is Kind.ONE and part.positive:
                choices.append(part)
            else:
                factors.append(self._find(part, type_))
                if not factors[-1]:
                    return []
        start = FREE.union(*together)
        current = [start] if self.possible(start, type_) else []
        for factor in sorted(factors, key=len):
            current = self._product(current, factor, type_)
        for choice in choices:
            current = self._one(current, choice, type_)
        return current

    def _flat(self, formula: Formula) -> Iterable[Formula]:
        """What the formula is the conjunction of, looking into definitions."""
        known = self._conjunctions.get(formula)
        if known is not None:
            return known
        found: dict[Formula, None] = {}
        inside: set[Formula] = set()
        seen: set[Formula] = set()
        todo = [(formula, False)]
        while todo:
            part, done = todo.pop()
            if done:
                inside.discard(part)
                seen.add(part)
            elif part in seen:
                continue
            elif part.kind is Kind.ALL:
                todo += [(one, False) for one in reversed(part.parts)]
            elif part.kind is Kind.REFERENCE and part.positive:
                if part in inside:
                    raise _Unfinished
                inside.add(part)
                todo += [(part, True), (self._keywords.definition(part.payload), False)]
            elif part.kind is not Kind.TRUE:
                found[part] = None
        self._conjunctions[formula] = found
        return found

    def _product(self, left: list[Alternative], right: Sequence[Alternative], type_: str) -> list[Alternative]:
        if type_ not in ("array", "object") and len(left) * len(right) > _JOINED:
            # The conjunction of two unions, not the union of all conjunctions.
            left, right = self.scalars.joined(left), self.scalars.joined(right)
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
            self._limits.check()
            if not any(other <= one for other in left):
                left.append(one)
        if type_ in ("array", "object") or len(left) <= _JOINED:
            return left
        return self.scalars.joined(left)

    def _one(self, start: list[Alternative], formula: Formula, type_: str) -> list[Alternative]:
        """Exactly one of the parts, of values that satisfy one of `start`. What is known of the values matters: branches for
        the values of some key exclude each other only where the key is there."""
        parts, found = [self._find(part, type_) for part in formula.parts], []
        for context in start:
            ways = [[context | one for one in part if self.possible(context | one, type_)] for part in parts]
            for at, mine in enumerate(ways):
                for other, theirs in enumerate(ways):
                    if other != at and self._meet(mine, theirs, type_):
                        mine = self._product(mine, self._find(self.formulas.negate(formula.parts[other]), type_), type_)
                found += mine
        return self._reduced(found, type_)

    def _not_one(self, formula: Formula, type_: str) -> list[Alternative]:
        """None of the parts, or two."""
        found = list(self._find(self.formulas.all(map(self.formulas.negate, formula.parts)), type_))
        parts = [self._find(part, type_) for part in formula.parts]
        for at, one in enumerate(parts):
            for other in parts[:at]:
                found += self._product(list(one), other, type_)
        return self._reduced(found, type_)

    def _meet(self, ones: Iterable[Alternative], others: Iterable[Alternative], type_: str) -> bool:
        """Whether some value may be of both."""
        return any(self.possible(one | other, type_) for one in ones for other in others)

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
            self._limits.check()
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
