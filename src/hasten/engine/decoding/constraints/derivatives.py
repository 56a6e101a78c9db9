"""Automata of regular languages in plain Python, by derivatives (Brzozowski, "Derivatives of regular expressions", 1964).

The derivative of a language by a character is what may follow that character. A language's derivatives are the states of an
automaton over code points; there are finitely many once equal expressions are equal values. Readable and slow: for the
reference and for folding `%ignore` into terminals; what runs per token is native.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

from hasten.engine.decoding.constraints.base import GrammarError, Limits
from hasten.engine.decoding.constraints.languages import (
    EMPTY,
    LAST,
    NOTHING,
    Expr,
    automaton,
    both,
    cat,
    either,
    nullable,
    repeat,
    start_of,
    without,
    words,
)

MOST_STATES = 5_000


def nonempty(expr: Expr) -> Expr:
    """The same language without the empty text."""
    if not nullable(expr):
        return expr
    if expr == EMPTY:
        return NOTHING
    if expr[0] == "words":
        return words(word for word in expr[1] if word)
    if expr[0] == "repeat" and not nullable(expr[1]):
        return repeat(expr[1], 1, expr[3])
    return both(expr, without(EMPTY))


def derive(expr: Expr, point: int) -> Expr:
    """What may follow the code point."""
    kind = expr[0]
    if kind == "chars":
        at = bisect_right(expr[1], (point, LAST)) - 1
        return EMPTY if at >= 0 and point <= expr[1][at][1] else NOTHING
    if kind == "words":
        return words(word[1:] for word in expr[1] if word and ord(word[0]) == point)
    if kind == "cat":
        first, rest = expr[1][0], cat(*expr[1][1:])
        ways = cat(derive(first, point), rest)
        return _any(ways, derive(rest, point)) if nullable(first) else ways
    if kind == "either":
        return _any(*(derive(part, point) for part in expr[1]))
    if kind == "both":
        return both(*(derive(part, point) for part in expr[1]))
    if kind == "without":
        return without(derive(expr[1], point))
    if kind == "repeat":
        most = None if expr[3] is None else expr[3] - 1
        return cat(derive(expr[1], point), repeat(expr[1], max(expr[2] - 1, 0), most))
    if kind == "automaton":
        for low, high, target in expr[1][start_of(expr)]:
            if low <= point <= high:
                return ("automaton", expr[1], expr[2], target)
    return NOTHING


def _any(*parts: Expr) -> Expr:
    """`either` in one order, so that equal states are found equal."""
    found = either(*parts)
    return ("either", tuple(sorted(found[1], key=repr))) if found[0] == "either" else found


def _cuts(expr: Expr) -> set[int]:
    """Code points at which the derivative may change."""
    kind = expr[0]
    if kind == "chars":
        return {end for low, high in expr[1] for end in (low, high + 1)}
    if kind == "words":
        return {end for word in expr[1] if word for end in (ord(word[0]), ord(word[0]) + 1)}
    if kind == "cat":
        found: set[int] = set()
        for part in expr[1]:
            found |= _cuts(part)
            if not nullable(part):
                break
        return found
    if kind in ("either", "both"):
        return set().union(*map(_cuts, expr[1]))
    if kind in ("without", "repeat"):
        return _cuts(expr[1])
    if kind == "automaton":
        return {end for low, high, _ in expr[1][start_of(expr)] for end in (low, high + 1)}
    return set()


@dataclass(frozen=True, slots=True)
class Automaton:
    """Deterministic, over code points, from state 0: `rows[state]` holds sorted (low, high, next state). Every state leads to
    acceptance, but for state 0 of the language without any text."""

    rows: tuple[tuple[tuple[int, int, int], ...], ...]
    accepting: frozenset[int]

    def step(self, state: int, point: int) -> int | None:
        row = self.rows[state]
        at = bisect_right(row, point, key=lambda edge: edge[0]) - 1
        return row[at][2] if at >= 0 and point <= row[at][1] else None

    def alive(self, state: int, low: int, high: int) -> bool:
        """Whether some code point of the range leads on."""
        return any(first <= high and low <= last for first, last, _ in self.rows[state])

    def expr(self) -> Expr:
        return automaton(self.rows, self.accepting)


def build(expr: Expr, limits: Limits | None = None) -> Automaton:
    """The automaton of the language."""
    limits = limits or Limits()
    states = {expr: 0}
    order = [expr]
    rows: list[list[tuple[int, int, int]]] = []
    while len(rows) < len(order):
        if len(order) > MOST_STATES:
            raise GrammarError(f"a terminal needs more than {MOST_STATES} states")
        limits.check()
        current = order[len(rows)]
        cuts = sorted({0, 0xD800, 0xE000, *_cuts(current)} - {LAST + 1})
        row: list[tuple[int, int, int]] = []
        for low, after in zip(cuts, [*cuts[1:], LAST + 1], strict=True):
            if low == 0xD800 or (target := derive(current, low)) == NOTHING:
                continue
            number = states.setdefault(target, len(order))
            if number == len(order):
                order.append(target)
            if row and row[-1][1] + 1 == low and row[-1][2] == number:
                row[-1] = (row[-1][0], after - 1, number)
            else:
                row.append((low, after - 1, number))
        rows.append(row)
    return trimmed(rows, [number for number, one in enumerate(order) if nullable(one)])


def trimmed(rows: list[list[tuple[int, int, int]]], accepting: list[int]) -> Automaton:
    """Without the states that lead to no acceptance."""
    before: list[list[int]] = [[] for _ in rows]
    for state, row in enumerate(rows):
        for _, _, target in row:
            before[target].append(state)
    live, todo = set(accepting), list(accepting)
    while todo:
        for state in before[todo.pop()]:
            if state not in live:
                live.add(state)
                todo.append(state)
    number = {state: at for at, state in enumerate(sorted(live | {0}))}
    kept = (tuple((low, high, number[to]) for low, high, to in rows[state] if to in live) for state in number)
    return Automaton(tuple(kept), frozenset(number[state] for state in accepting))
