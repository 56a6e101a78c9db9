"""Boolean formulas over literals, in negation normal form.

A schema is the conjunction of its keywords, each a `Literal` or a formula over the schemas inside it; `Reference` stands for a
schema that is looked into only when needed, which is how recursion ends. Formulas are interned: equal ones are the same object.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum, auto
from typing import Any


class Kind(Enum):
    TRUE = auto()
    FALSE = auto()
    ALL = auto()
    ANY = auto()
    ONE = auto()
    """Exactly one of the parts."""
    LITERAL = auto()
    REFERENCE = auto()


class Formula:
    """`parts`: of ALL, ANY and ONE. `payload`: of LITERAL and REFERENCE. `positive`: of LITERAL, REFERENCE and ONE."""

    __slots__ = ("kind", "negation", "number", "parts", "payload", "positive")

    def __init__(self, number: int, kind: Kind, parts: tuple[Formula, ...], payload: Any, positive: bool) -> None:
        self.number, self.kind, self.parts, self.payload, self.positive = number, kind, parts, payload, positive
        self.negation: Formula | None = None

    def says(self, what: str) -> bool:
        """Whether it is a literal of that kind, not negated."""
        return self.kind is Kind.LITERAL and self.positive and self.payload[0] == what


class Formulas:
    """The formulas of one schema. Their numbers, by which parts are sorted, make the outcome the same in every run."""

    def __init__(self) -> None:
        self._known: dict[tuple[Any, ...], Formula] = {}
        self.true = self._make(Kind.TRUE)
        self.false = self._make(Kind.FALSE)
        self.true.negation, self.false.negation = self.false, self.true

    def _make(self, kind: Kind, parts: tuple[Formula, ...] = (), payload: Any = None, positive: bool = True) -> Formula:
        key = (kind, parts, payload, positive)
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = Formula(len(self._known), kind, parts, payload, positive)
        return found

    def literal(self, payload: Any) -> Formula:
        return self._make(Kind.LITERAL, payload=payload)

    def reference(self, payload: Any) -> Formula:
        return self._make(Kind.REFERENCE, payload=payload)

    def all(self, parts: Iterable[Formula]) -> Formula:
        parts = list(parts)
        types = [part.payload[1] for part in parts if part.says("types")]
        if types and any(part.says("among") for part in parts):
            # What is listed says its types too.
            names = frozenset.intersection(*types)
            parts = [
                self.among(one for one in part.payload[1] if one[0] in names) if part.says("among") else part
                for part in parts
                if not part.says("types")
            ]
        return self._join(Kind.ALL, parts, self.true, self.false)

    def any(self, parts: Iterable[Formula]) -> Formula:
        parts = list(parts)
        lists = [part for part in parts if part.says("among")]
        if len(lists) > 1:
            listed = self.among(one for part in lists for one in part.payload[1])
            parts = [listed, *(part for part in parts if not part.says("among"))]
        return self._join(Kind.ANY, parts, self.false, self.true)

    def among(self, values: Iterable[tuple[str, Iterable[Any]]]) -> Formula:
        """One of the scalars, each list with its type."""
        by_type: dict[str, set[Any]] = {}
        for type_, some in values:
            by_type.setdefault(type_, set()).update(some)
        found = tuple((type_, frozenset(by_type[type_])) for type_ in sorted(by_type) if by_type[type_])
        return self.literal(("among", found)) if found else self.false

    def _join(self, kind: Kind, parts: Iterable[Formula], neutral: Formula, absorbing: Formula) -> Formula:
        flat: dict[Formula, None] = {}
        for part in parts:
            for one in part.parts if part.kind is kind else (part,):
                if one is absorbing or (one.negation is not None and one.negation in flat):
                    return absorbing
                if one is not neutral:
                    flat[one] = None
        if len(flat) < 2:
            return next(iter(flat), neutral)
        return self._make(kind, tuple(sorted(flat, key=lambda one: one.number)))

    def one(self, parts: list[Formula]) -> Formula:
        return parts[0] if len(parts) == 1 else self._make(Kind.ONE, tuple(parts))

    def negate(self, formula: Formula) -> Formula:
        """Down to the literals, without recursion: a schema may be nested as deep as its writer likes."""
        todo = [formula]
        while todo:
            top = todo[-1]
            if top.negation is None and top.kind in (Kind.ALL, Kind.ANY):
                waiting = [part for part in top.parts if part.negation is None]
                if waiting:
                    todo += waiting
                    continue
                other = Kind.ANY if top.kind is Kind.ALL else Kind.ALL
                neutral, absorbing = (self.false, self.true) if other is Kind.ANY else (self.true, self.false)
                opposite = self._join(other, [part.negation for part in top.parts if part.negation], neutral, absorbing)
                top.negation = opposite
                if opposite.negation is None:
                    opposite.negation = top
            elif top.negation is None:
                top.negation = self._make(top.kind, top.parts, top.payload, not top.positive)
                top.negation.negation = top
            todo.pop()
        assert formula.negation is not None
        return formula.negation
