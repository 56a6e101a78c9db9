"""Canonical LR(1), readable: the automaton of a grammar's terminals, and a parser that runs on it.

Look-aheads are not merged as LALR does: a state accepts exactly the terminals that may come next, whatever lies below it on the
stack. That is what makes masks exact. Where a state has several actions for one terminal (a conflict), all are followed.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from functools import cached_property

from hasten.engine.decoding.constraints.base import GrammarError, Limits
from hasten.engine.decoding.constraints.grammar import Grammar

MOST_STATES = 5_000
MOST_PREFIX = 1_000
"""Terminals of the text that leads to a conflict."""

Stack = tuple[int, ...]
"""LR states, the top one last."""
Item = tuple[int, int]
"""A production, and how many symbols of it have been seen."""


@dataclass(frozen=True, slots=True)
class Conflict:
    """Two actions in one state for one terminal. `prefix`: the terminals of a short text that leads there, or its beginning."""

    terminal: int
    productions: tuple[int, int]
    """As far as they are known: of a shift one of those that go on."""
    kind: str
    prefix: tuple[int, ...]


@dataclass(slots=True)
class State:
    items: dict[Item, frozenset[int]]
    """With the terminals that may follow the whole production."""
    shifts: dict[int, int] = field(default_factory=dict)
    """To which state each symbol leads."""
    reductions: dict[int, list[int]] = field(default_factory=dict)
    """Productions that a terminal ends."""


class Automaton:
    """`end` is the number of the end mark; `productions` has the grammar's and, last, the one that derives the start."""

    def __init__(self, grammar: Grammar, limits: Limits | None = None) -> None:
        self.grammar, self._limits = grammar, limits or Limits()
        self.end = len(grammar.terminals)
        self.productions = [(-1 - left, right) for left, right in grammar.productions]
        self._of: dict[int, list[int]] = {}
        for number, (left, _) in enumerate(self.productions):
            self._of.setdefault(left, []).append(number)
        self._whole = len(self.productions)
        self.productions.append((-1 - len(grammar.names), (grammar.start,)))
        self._first = self._find_first()
        self.states: list[State] = []
        self.before: list[list[int]] = []
        """Of each state: those that lead to it by its symbol."""
        self._build()

    def _find_first(self) -> dict[int, frozenset[int]]:
        """Terminals that a symbol's texts begin with. No symbol is empty, so only the first of a production counts."""
        found = {symbol: frozenset((symbol,)) for symbol in range(self.end + 1)}
        found |= {-1 - number: frozenset() for number in range(len(self.grammar.names) + 1)}
        changed = True
        while changed:
            changed = False
            self._limits.check()
            for left, right in self.productions:
                if not found[right[0]] <= found[left]:
                    found[left] |= found[right[0]]
                    changed = True
        return found

    def _build(self) -> None:
        kernel = frozenset({((self._whole, 0), frozenset((self.end,)))})
        numbers = {kernel: 0}
        self._add(dict(kernel))
        todo = deque([0])
        while todo:
            number = todo.popleft()
            state = self.states[number]
            moved: dict[int, dict[Item, frozenset[int]]] = {}
            for (production, dot), follow in state.items.items():
                right = self.productions[production][1]
                if dot < len(right):
                    moved.setdefault(right[dot], {})[production, dot + 1] = follow
                else:
                    for terminal in follow:
                        state.reductions.setdefault(terminal, []).append(production)
            for symbol, items in moved.items():
                kernel = frozenset(items.items())
                if kernel not in numbers:
                    if len(self.states) >= MOST_STATES:
                        raise GrammarError(f"its LR(1) automaton has more than {MOST_STATES} states")
                    numbers[kernel] = len(self.states)
                    todo.append(len(self.states))
                    self._add(items)
                state.shifts[symbol] = numbers[kernel]
                self.before[numbers[kernel]].append(number)

    def _add(self, kernel: dict[Item, frozenset[int]]) -> None:
        """A state with the closure of the items: what may begin where a nonterminal is expected."""
        items, todo = dict(kernel), list(kernel)
        while todo:
            self._limits.check()
            production, dot = item = todo.pop()
            right = self.productions[production][1]
            if dot == len(right) or right[dot] >= 0:
                continue
            follow = self._first[right[dot + 1]] if dot + 1 < len(right) else items[item]
            for number in self._of[right[dot]]:
                known = items.get((number, 0), frozenset())
                if not follow <= known:
                    items[number, 0] = known | follow
                    todo.append((number, 0))
        self.states.append(State(items))
        self.before.append([])

    def of(self, nonterminal: int) -> list[int]:
        """Its productions."""
        return self._of[nonterminal]

    def accepted(self, state: int) -> set[int]:
        """Terminals, and perhaps the end mark, that may come when this state is on top."""
        one = self.states[state]
        return {symbol for symbol in one.shifts if symbol >= 0} | one.reductions.keys()

    def step(self, stack: Stack, terminal: int) -> set[Stack]:
        """The stacks after a terminal; none if it may not come, several after a conflict. The end mark: the stack as it is."""
        todo = [stack]
        found: set[Stack] = set()
        while todo:
            current = todo.pop()
            state = self.states[current[-1]]
            if terminal in state.shifts:
                found.add((*current, state.shifts[terminal]))
            for production in state.reductions.get(terminal, ()):
                left, right = self.productions[production]
                if production == self._whole:
                    found.add(current)
                    continue
                below = current[: -len(right)]
                todo.append((*below, self.states[below[-1]].shifts[left]))
        return found

    def accepts(self, terminals: tuple[int, ...]) -> bool:
        stacks: set[Stack] = {(0,)}
        for terminal in (*terminals, self.end):
            stacks = {after for stack in stacks for after in self.step(stack, terminal)}
        return bool(stacks)

    def conflicts(self) -> list[Conflict]:
        found = []
        for number, state in enumerate(self.states):
            for terminal, ended in state.reductions.items():
                if terminal in state.shifts:
                    going = next(p for p, dot in state.items if self.productions[p][1][dot : dot + 1] == (terminal,))
                    found.append(Conflict(terminal, (going, ended[0]), "shift/reduce", self._prefix(number)))
                if len(ended) > 1:
                    found.append(Conflict(terminal, (ended[0], ended[1]), "reduce/reduce", self._prefix(number)))
        return found

    def _prefix(self, state: int) -> tuple[int, ...]:
        """Terminals that lead from the start to the state, by few symbols, each in its shortest text; at most MOST_PREFIX."""
        todo: list[int] = []  # symbols, the first one last
        while state != 0:
            state, symbol = self._came[state]
            todo.append(symbol)
        found: list[int] = []
        while todo and len(found) < MOST_PREFIX:
            symbol = todo.pop()
            if symbol >= 0:
                found.append(symbol)
            else:
                todo += reversed(self.productions[self._shortest[symbol]][1])
        return tuple(found)

    @cached_property
    def _came(self) -> dict[int, tuple[int, int]]:
        """Of each state but the first: from which one it is reached, by few symbols, and by which symbol."""
        found: dict[int, tuple[int, int]] = {}
        todo = deque([0])
        while todo:
            number = todo.popleft()
            for symbol, target in self.states[number].shifts.items():
                if target not in found and target != 0:
                    found[target] = (number, symbol)
                    todo.append(target)
        return found

    @cached_property
    def _shortest(self) -> dict[int, int]:
        """Of each nonterminal that has a text: the production that begins its shortest one."""
        length = dict.fromkeys(range(self.end), 1)
        found: dict[int, int] = {}
        changed = True
        while changed:
            self._limits.check()
            changed = False
            for number, (left, right) in enumerate(self.productions):
                if all(symbol in length for symbol in right):
                    size = sum(length[symbol] for symbol in right)
                    if left not in length or size < length[left]:
                        length[left], found[left] = size, number
                        changed = True
        return found

    def name(self, symbol: int) -> str:
        if symbol == self.end:
            return "the end"
        return self.grammar.terminals[symbol].name or f"T{symbol}" if symbol >= 0 else self.grammar.names[-1 - symbol]

    def show(self, production: int) -> str:
        left, right = self.productions[production]
        return f"{self.name(left)} -> {' '.join(map(self.name, right))}"
