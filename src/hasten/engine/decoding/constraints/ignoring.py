"""`%ignore`: texts that may stand before every terminal, folded into the terminals.

As terminals of their own they would hide from the parser which terminal comes next. In front of a terminal they do not, if no
byte can belong to both: an ignored text goes on as long as it can, and only then another one or the terminal begins. So "#x" is
a comment, never a comment "#" and the name "x". The automaton follows the ignored text and the terminal side by side.
"""

from __future__ import annotations

from itertools import pairwise

from hasten.engine.decoding.constraints.base import GrammarError, Limits
from hasten.engine.decoding.constraints.derivatives import MOST_STATES, Automaton, build, nonempty, trimmed
from hasten.engine.decoding.constraints.languages import NOTHING, Expr

Pair = tuple[int | None, int | None]
"""States of the ignored text's automaton and of the terminal's; None: it has failed."""


class Ignored:
    def __init__(self, language: Expr, limits: Limits) -> None:
        self.limits = limits
        self.automaton = build(nonempty(language), limits)
        self._folded: dict[Expr, Expr] = {}

    def before(self, language: Expr) -> Expr:
        """Texts of the terminal, after any number of ignored ones."""
        if language not in self._folded:
            self._folded[language] = self._fold(build(language, self.limits), alone=False)
        return self._folded[language]

    def alone(self) -> Expr:
        """One ignored text or more."""
        return self._fold(build(NOTHING), alone=True)

    def _fold(self, terminal: Automaton, *, alone: bool) -> Expr:
        start: Pair = (0, 0)
        states: dict[Pair, int] = {start: 0}
        order = [start]
        rows: list[list[tuple[int, int, int]]] = []
        while len(rows) < len(order):
            if len(order) > MOST_STATES:
                raise GrammarError(f"a terminal with what is ignored before it needs more than {MOST_STATES} states")
            self.limits.check()
            row: list[tuple[int, int, int]] = []
            for low, high, pair in self._edges(terminal, order[len(rows)]):
                number = states.setdefault(pair, len(order))
                if number == len(order):
                    order.append(pair)
                row.append((low, high, number))
            rows.append(row)
        ends, side = (self.automaton.accepting, 0) if alone else (terminal.accepting, 1)
        return trimmed(rows, [number for pair, number in states.items() if pair[side] in ends]).expr()

    def _edges(self, terminal: Automaton, pair: Pair) -> list[tuple[int, int, Pair]]:
        ignored, inside = pair
        ranges = [
            (low, high)
            for automaton, state in ((self.automaton, ignored), (terminal, inside))
            if state is not None
            for low, high, _ in automaton.rows[state]
        ]
        again = ignored in self.automaton.accepting
        if again:
            ranges += [(low, high) for automaton in (self.automaton, terminal) for low, high, _ in automaton.rows[0]]
        cuts = sorted({end for low, high in ranges for end in (low, high + 1)})
        found = []
        for low, after in pairwise(cuts):
            following = self._step(terminal, pair, low)
            if following == (None, None) and again:
                following = self._step(terminal, (0, 0), low)
            if following != (None, None):
                found.append((low, after - 1, following))
        return found

    def _step(self, terminal: Automaton, pair: Pair, point: int) -> Pair:
        ignored, inside = pair
        return (
            None if ignored is None else self.automaton.step(ignored, point),
            None if inside is None else terminal.step(inside, point),
        )
