"""Rules with alternatives, repeats and optional parts, as `ebnf.py` and `gbnf.py` read them, become productions.

Productions may not be empty, so every symbol stands for what its rule derives *without* the empty text; where the rule may be
empty, each production that uses it is there with and without the symbol (exact removal of epsilon). `x*` and `x+` become
left-recursive lists, which keep stacks shallow; `x{m,n}` nests to the right, which needs no decision before its end. A start
that may be empty loses its empty text, with a warning.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter

from hasten.engine.decoding.constraints.base import GrammarError, Limits
from hasten.engine.decoding.constraints.derivatives import nonempty
from hasten.engine.decoding.constraints.grammar import Grammar, Terminal
from hasten.engine.decoding.constraints.languages import EMPTY, NOTHING, Expr, nullable

MOST_INLINE = 16
"""Alternatives that one sequence may become by writing out those of its parts; beyond, parts get symbols of their own."""


@dataclass(frozen=True, slots=True)
class Text:
    """A terminal. Its language does not hold the empty text; made with `text`."""

    language: Expr
    priority: int = 0
    name: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Ref:
    name: str


@dataclass(frozen=True, slots=True)
class Seq:
    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Either:
    options: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    part: Node
    least: int
    most: int | None


Node = Text | Ref | Seq | Either | Repeat
NONE = Seq(())
"""The empty text."""


def text(language: Expr, name: str = "", priority: int = 0) -> Node:
    """A terminal, or one that may be left out if its language holds the empty text."""
    if language == EMPTY:
        return NONE
    found = Text(nonempty(language), priority, name)
    return Repeat(found, 0, 1) if nullable(language) else found


def choice(options: list[Node]) -> Node:
    return options[0] if len(options) == 1 else Either(tuple(options))


def sequence(parts: list[Node]) -> Node:
    return parts[0] if len(parts) == 1 else Seq(tuple(parts))


def parts_of(node: Node) -> tuple[Node, ...]:
    match node:
        case Seq(parts) | Either(parts):
            return parts
        case Repeat(part, _, _):
            return (part,)
    return ()


def refs(node: Node) -> set[str]:
    """The rules it mentions."""
    found, todo = set(), [node]
    while todo:
        one = todo.pop()
        if isinstance(one, Ref):
            found.add(one.name)
        todo += parts_of(one)
    return found


def unused(rules: dict[str, Node], start: str) -> list[str]:
    """Warnings about rules that `start` does not lead to."""
    reached, todo = {start}, [start]
    for name in todo:
        fresh = refs(rules[name]) - reached
        reached |= fresh
        todo += sorted(fresh)
    return [f"the rule {name!r} is never used" for name in rules if name not in reached]


def show(node: Node) -> str:
    """As a grammar would have it, for messages."""
    match node:
        case Text(_, _, name) | Ref(name):
            return name
        case Seq(parts):
            return " ".join(f"({show(part)})" if isinstance(part, Either) else show(part) for part in parts) or '""'
        case Either(options):
            return " | ".join(map(show, options))
        case Repeat(part, least, most):
            inner = f"({show(part)})" if isinstance(part, Seq | Either | Repeat) else show(part)
            sign = {(0, 1): "?", (0, None): "*", (1, None): "+"}.get((least, most))
            return inner + (sign or f"{{{least},{'' if most is None else most}}}")


def grammar_of(rules: dict[str, Node], start: str, limits: Limits, *, longest: bool) -> Grammar:
    """The grammar of `rules`, all of whose references exist."""
    return _Lowering(rules, limits, longest).run(start)


class _Lowering:
    def __init__(self, rules: dict[str, Node], limits: Limits, longest: bool) -> None:
        self.rules, self.limits = rules, limits
        self.grammar = Grammar(longest=longest)
        self.symbols: dict[Node, int] = {}
        self.waiting: list[tuple[int, Node]] = []
        self.empties: set[str] = set()
        """Rules that may be empty."""

    def run(self, start: str) -> Grammar:
        self._find_empties()
        self.grammar.start = self.symbol(Ref(start))
        while self.waiting:
            left, node = self.waiting.pop()
            for right in dict.fromkeys(self.expand(left, node)):
                # A symbol that stands for itself adds nothing; removing epsilon makes such productions of `a: a a |`.
                if right != (left,):
                    self.limits.check(len(self.grammar.productions))
                    self.grammar.produce(left, *right)
        return _tidy(self.grammar, self.rules, start, self.empties)

    def _find_empties(self) -> None:
        found = -1
        while found < len(self.empties):
            found = len(self.empties)
            self.limits.check(len(self.rules))
            self.empties |= {name for name, node in self.rules.items() if self.empty(node)}

    def empty(self, node: Node) -> bool:
        match node:
            case Ref(name):
                return name in self.empties
            case Seq(parts):
                return all(map(self.empty, parts))
            case Either(options):
                return any(map(self.empty, options))
            case Repeat(part, least, _):
                return least == 0 or self.empty(part)
        return False

    def symbol(self, node: Node) -> int:
        """The symbol for the texts of `node` but the empty one."""
        if (known := self.symbols.get(node)) is not None:
            return known
        if isinstance(node, Text):
            new = self.grammar.terminal(Terminal(node.language, priority=node.priority, name=node.name))
        else:
            new = self.grammar.nonterminal(show(node)[:80])
            self.waiting.append((new, self.rules[node.name] if isinstance(node, Ref) else node))
        self.symbols[node] = new
        return new

    def expand(self, left: int, node: Node) -> list[tuple[int, ...]]:
        """Right-hand sides of `left`, which stands for `node`."""
        if isinstance(node, Repeat) and node.most is None:
            options = self.options(node.part)
            item = options[0] if len(options) == 1 else (self.symbol(node.part),)
            least = 1 if self.empty(node.part) else max(node.least, 1)
            self.limits.check(least * len(item))
            return [item * least, (left, *item)]
        return self.options(node)

    def options(self, node: Node) -> list[tuple[int, ...]]:
        """Sequences of symbols that together have the texts of `node` but the empty one."""
        match node:
            case Either(options):
                return [option for part in options for option in self.options(part)]
            case Seq(parts):
                return self._sequences(parts)
            case Repeat(_, _, 0):
                return []
            case Repeat(part, least, most) if most is not None:
                if most == 1:
                    return self.options(part)
                self.limits.check(most)
                item = self.symbol(part)
                first = (item,) * (1 if self.empty(part) else max(least, 1))
                more = most - len(first)
                rest = part if more == 1 else Repeat(part, 1, more)
                return [first] + ([(*first, self.symbol(rest))] if more else [])
        return [(self.symbol(node),)]

    def _sequences(self, parts: tuple[Node, ...]) -> list[tuple[int, ...]]:
        found: list[tuple[int, ...]] = [()]
        for at, part in enumerate(parts):
            absent = [()] if self.empty(part) else []
            # Written out, alternatives need no decision at their end: `("a" | "b") "c" | "a" "c" "d"` is LR(1) only so.
            choices = self.options(part)
            if len(found) * (len(choices) + len(absent)) > MOST_INLINE:
                choices = [(self.symbol(part),)]
            if len(found) * (len(choices) + len(absent)) > MOST_INLINE:
                rest = Seq(parts[at:])
                found = [(*head, self.symbol(rest)) for head in found] + (found if self.empty(rest) else [])
                break
            found = [head + choice for head in found for choice in [*choices, *absent]]
        return [one for one in found if one]


def _tidy(grammar: Grammar, rules: dict[str, Node], start: str, empties: set[str]) -> Grammar:
    """Without the symbols that derive no text or that the start does not reach; what is left is numbered anew."""
    fertile = _fertile(grammar)
    productions: dict[int, list[tuple[int, ...]]] = {}
    for left, right in grammar.productions:
        if -1 - left in fertile and fertile.issuperset(right):
            productions.setdefault(-1 - left, []).append(right)
    if grammar.start not in fertile:
        only = "has the empty text only" if start in empties else "derives no text: every way through it goes on without end"
        raise GrammarError(f"the start {start!r} {only}")
    _refuse_cycles(grammar, productions)

    out = Grammar(longest=grammar.longest)
    number: dict[int, int] = {}

    def renumbered(symbol: int) -> int:
        if symbol not in number:
            if symbol < 0:
                number[symbol] = out.nonterminal(grammar.names[-1 - symbol])
                todo.append(symbol)
            else:
                number[symbol] = out.terminal(grammar.terminals[symbol])
        return number[symbol]

    todo: list[int] = []
    out.start = renumbered(grammar.start)
    for left in todo:
        for right in productions[left]:
            out.produce(number[left], *map(renumbered, right))
    if start in empties:
        out.warnings.append(f"the start {start!r} may be empty; the empty text is left out")
    barren = {grammar.names[-1 - left] for left in range(-len(grammar.names), 0) if left not in fertile}
    out.warnings += [f"the rule {name!r} derives no text" for name in rules if name in barren and name not in empties]
    return out


def _fertile(grammar: Grammar) -> set[int]:
    """Symbols that derive some text."""
    found = {number for number, one in enumerate(grammar.terminals) if one.language != NOTHING}
    uses: dict[int, list[int]] = {}
    missing = []
    todo = list(found)
    for at, (_, right) in enumerate(grammar.productions):
        missing.append(len(right))
        for symbol in right:
            uses.setdefault(symbol, []).append(at)
    while todo:
        for at in uses.get(todo.pop(), ()):
            missing[at] -= 1
            left = -1 - grammar.productions[at][0]
            if missing[at] == 0 and left not in found:
                found.add(left)
                todo.append(left)
    return found


def _refuse_cycles(grammar: Grammar, productions: dict[int, list[tuple[int, ...]]]) -> None:
    """A symbol that derives itself has endlessly many derivations of one text, and a parser endlessly many reductions."""
    units = {left: {right[0] for right in rights if len(right) == 1 and right[0] < 0} for left, rights in productions.items()}
    try:
        TopologicalSorter(units).prepare()
    except CycleError as fault:
        names = " -> ".join(grammar.names[-1 - symbol] for symbol in reversed(fault.args[1]))
        raise GrammarError(f"rules that stand for themselves: {names}") from None
