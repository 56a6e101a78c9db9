"""Which formulas some value satisfies, and which ways of being complete a container has, so that a grammar has no dead ends.

The least fixpoint: a container can be finished if its required parts can, so a schema that only ever needs another one of
itself has no values.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from hasten.engine.decoding.constraints.base import Limits
from hasten.engine.decoding.constraints.grammar import Form, Terminal
from hasten.engine.decoding.constraints.languages import EVERYTHING, NOTHING, SURROGATE, text, words
from hasten.engine.decoding.constraints.schema.arrays import Arrays
from hasten.engine.decoding.constraints.schema.conditions import FREE
from hasten.engine.decoding.constraints.schema.containers import ENDLESS
from hasten.engine.decoding.constraints.schema.formulas import Formula
from hasten.engine.decoding.constraints.schema.normal import Normal
from hasten.engine.decoding.constraints.schema.objects import Objects
from hasten.engine.decoding.constraints.schema.shapes import ArrayShape, Presence, SetShape, Shape


@dataclass(slots=True)
class Node:
    """What satisfies a formula."""

    scalars: list[Terminal]
    shapes: list[Shape]


class Nodes:
    """All formulas that the root needs. Those that no value satisfies are not in `satisfied`."""

    def __init__(self, root: Formula, normal: Normal, limits: Limits) -> None:
        self._normal, self._limits = normal, limits
        self._nodes: dict[Formula, Node] = {}
        self.satisfied: set[Formula] = set()
        self._find(root, Arrays(normal))
        shapes = [shape for node in self._nodes.values() for shape in node.shapes]
        if any(isinstance(one, ArrayShape) and one.unique for one in shapes) and any(
            isinstance(one, SetShape) for one in shapes
        ):
            # Arrays inside arrays of different items are compared, and a set does not know its order.
            self._nodes.clear()
            self._find(root, Arrays(normal, sets=False))
        self._settle()

    def _find(self, root: Formula, arrays: Arrays) -> None:
        objects = Objects(self._normal)
        todo = [root]
        while todo:
            formula = todo.pop()
            if formula not in self._nodes:
                self._limits.check(len(self._nodes))
                node = self._nodes[formula] = Node(scalars(formula, self._normal), [*arrays.of(formula), *objects.of(formula)])
                for shape in node.shapes:
                    todo += needed(shape)

    def __getitem__(self, formula: Formula) -> Node:
        return self._nodes[formula]

    def _settle(self) -> None:
        # Parts were found after what they are part of: backwards, most are settled at once.
        order = list(reversed(self._nodes.items()))
        changed = True
        while changed:
            self._limits.check()
            changed = False
            left = []
            for formula, node in order:
                if node.scalars or any(self.rows(shape) for shape in node.shapes):
                    self.satisfied.add(formula)
                    changed = True
                else:
                    left.append((formula, node))
            order = left

    def rows(self, shape: Shape) -> list[Presence]:
        """Those that some container satisfies, as far as is known so far; at most as many items as it can have."""
        if isinstance(shape, SetShape):
            return _within(shape.rows, len(shape.values))
        if isinstance(shape, ArrayShape):
            rows, matching = _within(shape.rows, self.longest(shape)), shape.matching
            if not shape.owed:
                return rows
            can = self.satisfied.issuperset(shape.witnesses if matching is None else (matching.match,))
            return [row for row in rows if can and len(shape.prefix) + shape.owed <= row.most]
        named = {key for key, value in shape.keys.items() if value in self.satisfied and not SURROGATE.search(key)}
        others = [ways for _, value, ways in shape.classes if value in self.satisfied]
        for at in range(shape.witnesses):
            if not any(ways[at] in self.satisfied for ways in others):
                return []
        found = []
        for row in shape.rows:
            available = ENDLESS if others else len(named - row.lacks)
            most, least = min(row.most, available), max(row.least, len(row.has) + shape.witnesses)
            if row.has <= named and not row.has & row.lacks and least <= most:
                found.append(row)
        return found

    def longest(self, shape: ArrayShape) -> int:
        for at, item in enumerate(shape.prefix):
            if item not in self.satisfied:
                return at
        if shape.matching is not None and shape.matching.other not in self.satisfied:
            matches = ENDLESS if shape.matching.most is None else len(shape.prefix) + shape.matching.most
            return matches if shape.matching.match in self.satisfied else len(shape.prefix)
        return ENDLESS if shape.rest in self.satisfied else len(shape.prefix)


def _within(rows: list[Presence], longest: int) -> list[Presence]:
    return [replace(row, most=min(row.most, longest)) for row in rows if row.least <= min(row.most, longest)]


def needed(shape: Shape) -> list[Formula]:
    """The formulas of the parts."""
    if isinstance(shape, SetShape):
        return []
    if isinstance(shape, ArrayShape):
        counted = [] if shape.matching is None else [shape.matching.match, shape.matching.other]
        return [*shape.prefix, shape.rest, *shape.witnesses, *counted]
    others = [value for _, value, _ in shape.classes] + [way for _, _, ways in shape.classes for way in ways if way is not None]
    return [*shape.keys.values(), *others]


def scalars(formula: Formula, normal: Normal) -> list[Terminal]:
    """The terminals of the formula's values that are no containers."""
    found = []
    strings = normal.alternatives(formula, "string")
    if FREE in strings:
        found.append(Terminal(EVERYTHING, Form.ANY_STRING, name="a string"))
    elif strings:
        for (least, most), expr in normal.scalars.texts(strings).items():
            found.append(Terminal(expr, Form.STRING, least=least, most=most, name="a string"))
    numerals = normal.scalars.numerals(normal.alternatives(formula, "number"))
    if numerals != NOTHING:
        found.append(Terminal(numerals, name="a number"))
    booleans = {
        value for one in normal.alternatives(formula, "boolean") for value in normal.scalars.values(one, "boolean") or ()
    }
    if booleans:
        found.append(Terminal(words("true" if value else "false" for value in booleans), name="true or false"))
    if normal.alternatives(formula, "null"):
        found.append(Terminal(text("null"), name="null"))
    return found
