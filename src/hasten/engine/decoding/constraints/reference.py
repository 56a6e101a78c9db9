"""Pre^3, readable: the deterministic pushdown automaton of a grammar, and the masks it stands for (the specification).

Pre^3 (Chen et al., "Enabling Deterministic Pushdown Automata for Faster Structured LLM Generation", 2025) composes all
reductions that a terminal causes, and its shift, into one *prefix-conditioned edge*: (states required on top of the stack, how
many to pop, states to push). A step is then one look-up. Where a reduction needs to see deeper, one edge is made for each way
in which the stack may go on below, found by walking the automaton backwards; at most one of them fits a stack.

Left recursion keeps conditions finite. Right recursion (`a: b a | b`) would need one edge for each depth. Going round its loop
takes the previous lap off the stack, where that changes nothing (`laps.py`). Where it would, beyond `DEPTH` required states or
`EDGES` edges, a *partial* edge stops between reductions, reads nothing and leaves the rest to the next look-up.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from hasten.engine.decoding.constraints import laps
from hasten.engine.decoding.constraints.base import Limits
from hasten.engine.decoding.constraints.derivatives import build
from hasten.engine.decoding.constraints.grammar import Act, Form, Grammar
from hasten.engine.decoding.constraints.lr import Automaton, Stack

DEPTH = 32
EDGES = 256


@dataclass(frozen=True, slots=True)
class Edge:
    """`required`: states on top of the stack, the top first. `push`: the last one becomes the top. `partial`: the terminal
    has not been read. For the end mark, a full edge means acceptance."""

    required: tuple[int, ...]
    pop: int
    push: tuple[int, ...]
    partial: bool = False

    def fits(self, stack: Stack) -> bool:
        return stack[: -len(self.required) - 1 : -1] == self.required

    def apply(self, stack: Stack) -> Stack:
        return stack[: len(stack) - self.pop] + self.push


class Pushdown:
    """Edges of all states that a terminal leads to, and of the start; more come where partial edges end."""

    def __init__(self, lr: Automaton, limits: Limits | None = None, depth: int = DEPTH, *, absorb: bool = True) -> None:
        self.lr, self.depth, self._limits = lr, depth, limits or Limits()
        self.laps = laps.find(lr, self._limits) if absorb else {}
        self.edges: dict[tuple[int, int], list[Edge]] = {}
        tops = {0} | {to for state in lr.states for symbol, to in state.shifts.items() if symbol >= 0}
        todo = sorted(tops)
        for top in todo:
            for terminal in sorted(lr.accepted(top)):
                self.edges[top, terminal] = self._compose(top, terminal)
                fresh = {edge.push[-1] for edge in self.edges[top, terminal] if edge.partial} - tops
                tops |= fresh
                todo += sorted(fresh)

    def _compose(self, top: int, terminal: int) -> list[Edge]:
        """All reductions that the terminal causes in this state, and its shift, for every stack that may lie below."""
        lr = self.lr
        found: list[Edge] = []
        todo = deque([Edge((top,), 0, ())])
        while todo:
            self._limits.check()
            edge = todo.popleft()
            current = edge.push[-1] if edge.push else edge.required[edge.pop]
            state = lr.states[current]
            if terminal in state.shifts:
                found += self._absorb(Edge(edge.required, edge.pop, (*edge.push, state.shifts[terminal])))
            for production in state.reductions.get(terminal, ()):
                left, right = lr.productions[production]
                if left == -1 - len(lr.grammar.names):
                    found.append(edge)
                elif edge.push and (len(edge.required) > self.depth or len(found) + len(todo) > EDGES):
                    # Without the shift, which has an edge of its own; followed by what comes next from `current`.
                    found.append(Edge(edge.required, edge.pop, edge.push, partial=True))
                    break
                else:
                    todo += self._reduce(edge, left, len(right))
        return found

    def _reduce(self, edge: Edge, left: int, size: int) -> list[Edge]:
        """`size` states leave the stack, those that `edge` pushed first; below, the nonterminal `left` is shifted."""
        push = edge.push[: max(len(edge.push) - size, 0)]
        pop = edge.pop + max(size - len(edge.push), 0)
        walks = [edge.required]
        while walks and len(walks[0]) <= pop:
            walks = [deeper for walk in walks for deeper in self._deeper(walk)]
        return [
            after
            for walk in walks
            # Walking backwards may leave the ways on which the production can stand.
            if left in (shifts := self.lr.states[push[-1] if push else walk[pop]].shifts)
            for after in self._absorb(Edge(walk, pop, (*push, shifts[left])))
        ]

    def _deeper(self, walk: Stack) -> list[Stack]:
        """One state further down the stack; laps that would have been absorbed are not there."""
        walks = [(*walk, below) for below in self.lr.before[walk[-1]]]
        return [one for one in walks if not any(one[: -len(lap) - 1 : -1] == lap for lap in self.laps.get(one[-1], ()))]

    def _absorb(self, edge: Edge) -> list[Edge]:
        """The edge without the lap that its last push completes, for stacks on which it does, and as it is for the others."""
        found: list[Edge] = []
        todo = [edge]
        for one in todo:
            known = one.required[: one.pop - 1 if one.pop else None : -1] + one.push
            for lap in self.laps.get(edge.push[-1], ()):
                shared = min(len(lap), len(known))
                if known[-shared:] != lap[-shared:] or (shared < len(lap) and one.required[-1] == 0):
                    continue
                if shared < len(lap):
                    todo += [Edge(walk, one.pop, one.push) for walk in self._deeper(one.required)]
                else:
                    # The lower state of the lap is popped too and pushed again, for an edge pushes its destination.
                    push = one.push[: max(len(one.push) - len(lap), 0)]
                    found.append(Edge(one.required, one.pop + max(len(lap) - len(one.push), 0), (*push, lap[0])))
                break
            else:
                found.append(one)
        return found

    def step(self, stack: Stack, terminal: int) -> set[Stack]:
        """As `Automaton.step`, by edges alone."""
        todo = [stack]
        found: set[Stack] = set()
        while todo:
            current = todo.pop()
            for edge in self.edges.get((current[-1], terminal), ()):
                if edge.fits(current):
                    (todo.append if edge.partial else found.add)(edge.apply(current))
        return found

    def accepts(self, terminals: Sequence[int]) -> bool:
        stacks: set[Stack] = {(0,)}
        for terminal in (*terminals, self.lr.end):
            stacks = {after for stack in stacks for after in self.step(stack, terminal)}
        return bool(stacks)


Lexeme = tuple[tuple[int, int, bytes], ...]
"""Of each terminal that may still match: its number, its automaton's state, the first bytes of a character not yet whole."""
Thread = tuple[Stack, Lexeme]


class Matcher:
    """Bytes against a grammar whose terminals are plain text: which may follow, and which tokens of a vocabulary. A value of
    `configuration` is all threads that the bytes so far allow; an empty one is a dead end."""

    def __init__(self, grammar: Grammar) -> None:
        assert all(one.form == Form.TEXT and one.act == Act.NONE for one in grammar.terminals), "plain text only"
        self.grammar, self.lr = grammar, Automaton(grammar)
        self.automata = [build(one.language) for one in grammar.terminals]
        self.start = frozenset({self._between((0,))})

    def _between(self, stack: Stack) -> Thread:
        """At the beginning of a terminal."""
        return stack, tuple((terminal, 0, b"") for terminal in sorted(self.lr.accepted(stack[-1]) - {self.lr.end}))

    def advance(self, configuration: frozenset[Thread], data: bytes) -> frozenset[Thread]:
        for byte in data:
            configuration = frozenset(after for thread in configuration for after in self._byte(thread, byte))
        return configuration

    def _byte(self, thread: Thread, byte: int) -> list[Thread]:
        stack, lexeme = thread
        going = self._within(lexeme, byte)
        found = [(stack, going)] if going else []
        if not going or not self.grammar.longest:
            for after in self._ended(thread):
                fresh, begun = self._between(after)
                if begun := self._within(begun, byte):
                    found.append((fresh, begun))
        return found

    def _within(self, lexeme: Lexeme, byte: int) -> Lexeme:
        found = []
        for terminal, state, begun in lexeme:
            after = _utf8_step(self.automata[terminal].rows[state], begun, byte)
            if after is not None:
                found.append((terminal, state if after[1] else after[0], after[1]))
        return tuple(found)

    def _ended(self, thread: Thread) -> set[Stack]:
        """Stacks after the terminals that end here."""
        stack, lexeme = thread
        ends = [one for one, state, begun in lexeme if not begun and state in self.automata[one].accepting]
        if self.grammar.longest and ends:
            highest = max(self.grammar.terminals[one].priority for one in ends)
            ends = [one for one in ends if self.grammar.terminals[one].priority == highest]
        return {after for one in ends for after in self.lr.step(stack, one)}

    def ended(self, configuration: frozenset[Thread]) -> bool:
        """Whether the text may end here."""
        return any(self.lr.step(after, self.lr.end) for thread in configuration for after in self._ended(thread))

    def mask(self, configuration: frozenset[Thread], vocabulary: Sequence[bytes]) -> list[bool]:
        """Which tokens may follow. Empty ones may not: they would change nothing."""
        return [bool(token) and bool(self.advance(configuration, token)) for token in vocabulary]

    def accepts(self, data: bytes) -> bool:
        return self.ended(self.advance(self.start, data))


@cache
def _utf8_step(row: tuple[tuple[int, int, int], ...], begun: bytes, byte: int) -> tuple[int, bytes] | None:
    """One byte of UTF-8 from a state with these edges: (next state, nothing), or (-1, the bytes of the character so far); None
    if no character fits."""
    data = begun + bytes([byte])
    size = next((size for first, size in ((0xF0, 4), (0xE0, 3), (0xC0, 2), (0x80, 0), (0, 1)) if data[0] >= first))
    if size == 0 or data[0] > 0xF4:
        return None
    # The characters that begin with these bytes lie between those with the lowest and the highest bytes still possible.
    missing = size - len(data)
    low, high = (_decode(data + bytes([fill]) * missing) for fill in (0x80, 0xBF))
    least = (0, 0, 0x80, 0x800, 0x10000)[size]
    low, high = max(low, least), min(high, 0x10FFFF)
    if low > high or any(not 0x80 <= one <= 0xBF for one in data[1:]):
        return None
    for first, last, target in row:
        if first <= high and low <= last:
            return (-1, data) if missing else (target, b"")
    return None


def _decode(data: bytes) -> int:
    if len(data) == 1:
        return data[0]
    point = data[0] & (0x7F >> len(data))
    for byte in data[1:]:
        point = point << 6 | byte & 0x3F
    return point
