"""Containers as they are written: which keys or items there are, what each may hold, and which of them must be there.

Alternatives that differ only in what must be there become the rows of one shape. A condition that some item or property must
satisfy becomes alternatives in which it is one with a name or a position, and one in which it is any of the others: a
*witness*, which is guessed when it begins (`witnesses.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hasten.engine.decoding.constraints.languages import Expr
from hasten.engine.decoding.constraints.schema.containers import ENDLESS
from hasten.engine.decoding.constraints.schema.formulas import Formula


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


@dataclass(frozen=True, slots=True)
class Matching:
    """How many of the items after a prefix satisfy some condition, what these satisfy, and what the others do."""

    least: int
    most: int | None
    match: Formula
    other: Formula


@dataclass(slots=True)
class ArrayShape:
    """`rest`: of items after the prefix. `witnesses`: what an item of these satisfies if it is that witness; there are none
    beside `matching`."""

    prefix: tuple[Formula, ...]
    rest: Formula
    witnesses: tuple[Formula, ...]
    matching: Matching | None
    unique: bool
    rows: list[Presence] = field(default_factory=list)

    @property
    def owed(self) -> int:
        """Items after the prefix that there must be."""
        return len(self.witnesses) if self.matching is None else self.matching.least

    def key(self) -> tuple[Any, ...]:
        return ("array", self.prefix, self.rest, self.witnesses, self.matching, self.unique, tuple(self.rows))


@dataclass(slots=True)
class SetShape:
    """An array of different values, all of which are known: (type, value)."""

    values: list[tuple[str, Any]]
    rows: list[Presence] = field(default_factory=list)

    def key(self) -> tuple[Any, ...]:
        return ("set", tuple(self.values), tuple(self.rows))


Shape = ObjectShape | ArrayShape | SetShape


def weakest(rows: list[Presence]) -> list[Presence]:
    """Without the rows that imply another."""
    kept: list[Presence] = []
    for row in dict.fromkeys(rows):
        if not any(row.implies(other) for other in kept):
            kept = [other for other in kept if not other.implies(row)] + [row]
    return kept
