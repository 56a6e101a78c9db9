"""Shapes as productions. Nothing that no value satisfies is written.

    value  -> terminal | container ...
    object -> members CLOSE | OPEN EMPTY
    members -> OPEN member | members COMMA member
    member -> KEY COLON value
    array  -> items CLOSE | OPEN EMPTY
    items  -> OPEN value | items COMMA value      (a prefix: one symbol a position)

Every container has an OPEN of its own, which is where alternatives part; what separates and closes is shared, since the frame
knows which container is open. Blanks belong to one terminal each: after an opening bracket to it, around commas and colons to
these, before a closing bracket to it, except right after the opening one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from hasten.engine.decoding.constraints import numbers
from hasten.engine.decoding.constraints.base import GrammarError, Limits
from hasten.engine.decoding.constraints.grammar import Act, Form, Grammar, Plan, Row, Terminal
from hasten.engine.decoding.constraints.languages import EMPTY, Expr, cat, chars, repeat, text, words
from hasten.engine.decoding.constraints.schema.containers import ENDLESS
from hasten.engine.decoding.constraints.schema.emptiness import Nodes
from hasten.engine.decoding.constraints.schema.formulas import Formula
from hasten.engine.decoding.constraints.schema.shapes import ArrayShape, Matching, ObjectShape, Presence, SetShape, Shape

_BLANK = chars((0x20, 0x20), (0x09, 0x0A), (0x0D, 0x0D))


class Unsatisfiable(GrammarError):
    """The schema is understood, and nothing satisfies it."""


class Emitter:
    def __init__(self, nodes: Nodes, whitespace: str | int, order: str, limits: Limits) -> None:
        self.grammar = Grammar()
        self._nodes, self._ordered, self._limits = nodes, order == "schema", limits
        self._known: dict[Terminal, int] = {}
        self._values: dict[Formula, int] = {}
        self._containers: dict[tuple[Any, ...], int] = {}
        self._todo: deque[tuple[Shape, int]] = deque()
        blank = {"any": repeat(_BLANK), "compact": EMPTY, "spaced": EMPTY}.get(str(whitespace)) or repeat(
            _BLANK, 0, int(whitespace)
        )
        after = text(" ") if whitespace == "spaced" else blank
        self._blank, self._comma, self._colon = blank, cat(blank, text(","), after), cat(blank, text(":"), after)

    def emit(self, root: Formula) -> Grammar:
        if root not in self._nodes.satisfied:
            raise Unsatisfiable("no value satisfies the schema")
        start = self.grammar.start = self.grammar.nonterminal("root")
        self.grammar.produce(start, self._value(root))
        while self._todo:
            self._limits.check(len(self.grammar.terminals))
            shape, symbol = self._todo.popleft()
            if isinstance(shape, ObjectShape):
                self._object(shape, symbol)
            elif isinstance(shape, ArrayShape):
                self._array(shape, symbol)
            else:
                self._set(shape, symbol)
        return self.grammar

    def _terminal(self, language: Expr, form: Form = Form.TEXT, act: Act = Act.NONE, argument: int = 0, **more: Any) -> int:
        return self._add(Terminal(language, form, act, argument, **more))

    def _add(self, terminal: Terminal) -> int:
        found = self._known.get(terminal)
        if found is None:
            found = self._known[terminal] = self.grammar.terminal(terminal)
        return found

    def _value(self, formula: Formula) -> int:
        """The symbol of a formula that some value satisfies."""
        found = self._values.get(formula)
        if found is None:
            node = self._nodes[formula]
            symbols = [self._add(terminal) for terminal in node.scalars]
            for shape in node.shapes:
                if self._nodes.rows(shape):
                    symbols.append(self._container(shape))
            found = symbols[0] if len(symbols) == 1 else self.grammar.nonterminal("value")
            if len(symbols) > 1:
                for symbol in symbols:
                    self.grammar.produce(found, symbol)
            self._values[formula] = found
        return found

    def _container(self, shape: Shape) -> int:
        key = shape.key()
        found = self._containers.get(key)
        if found is None:
            name = "object" if isinstance(shape, ObjectShape) else "array"
            found = self._containers[key] = self.grammar.nonterminal(name)
            self._todo.append((shape, found))
        return found

    def _open(self, bracket: str, plan: int, witness: int = -1) -> int:
        return self._terminal(cat(text(bracket), self._blank), act=Act.OPEN, argument=plan, witness=witness, name=repr(bracket))

    def _separator(self, array: bool, witness: int = -1) -> int:
        return self._terminal(self._comma, act=Act.COMMA, argument=int(array), witness=witness, name="','")

    def _close(self, bracket: str) -> int:
        return self._terminal(cat(self._blank, text(bracket)), act=Act.CLOSE, name=repr(bracket))

    def _empty(self, bracket: str) -> int:
        return self._terminal(text(bracket), act=Act.EMPTY, name=repr(bracket))

    def _object(self, shape: ObjectShape, symbol: int) -> None:
        grammar, satisfied, rows = self.grammar, self._nodes.satisfied, self._nodes.rows(shape)
        never = frozenset.intersection(*(row.lacks for row in rows))
        bits: dict[str, int] = {}
        for key, value in shape.keys.items():
            if key not in never and value in satisfied:
                bits[key] = len(bits)
        plan = grammar.plan(_plan(rows, bits, shape.witnesses, self._ordered))
        member = grammar.nonterminal("member")
        colon = self._terminal(self._colon, name="':'")
        before = len(grammar.productions)
        for key, bit in bits.items():
            name = self._terminal(words([key]), Form.STRING, Act.KEY, bit, name=repr(key))
            grammar.produce(member, name, colon, self._value(shape.keys[key]))
        for language, value, ways in shape.classes:
            if value not in satisfied:
                continue
            for witness, wanted in ((-1, value), *enumerate(ways)):
                if wanted in satisfied:
                    name = self._terminal(language, Form.STRING, Act.KEY, -1, witness=witness, distinct=True, name="a key")
                    grammar.produce(member, name, colon, self._value(wanted))
        opening = self._open("{", plan)
        if any(row.least == 0 and not row.has for row in rows) and not shape.witnesses:
            grammar.produce(symbol, opening, self._empty("}"))
        if len(grammar.productions) > before and any(row.most for row in rows):
            members = grammar.nonterminal("members")
            grammar.produce(members, opening, member)
            grammar.produce(members, members, self._separator(False), member)
            grammar.produce(symbol, members, self._close("}"))

    def _array(self, shape: ArrayShape, symbol: int) -> None:
        grammar, rows = self.grammar, self._nodes.rows(shape)
        plan = grammar.plan(_plan(rows, {}, shape.owed, array=True, unique=shape.unique))
        opening, comma, close = self._open("[", plan), self._separator(True), self._close("]")
        most = max(row.most for row in rows)
        if not shape.owed and any(row.least == 0 for row in rows):
            grammar.produce(symbol, opening, self._empty("]"))
        items = 0
        for at, item in enumerate(shape.prefix[:most], 1):
            before, items = items, grammar.nonterminal(f"items {at}")
            grammar.produce(items, *((before, comma) if at > 1 else (opening,)), self._value(item))
            if not shape.owed and any(row.least <= at <= row.most for row in rows):
                grammar.produce(symbol, items, close)
        if most <= len(shape.prefix):
            return

        def produce(left: int, after: int, formula: Formula, witness: int) -> None:
            """An item of the rest: `after` what comes before it, 0 if it is the first one."""
            before = (after or items, self._separator(True, witness))
            grammar.produce(left, *(before if before[0] else (self._open("[", plan, witness),)), self._value(formula))

        if shape.matching is not None:
            self._matching(shape.matching, symbol, close, produce)
            return
        rest = grammar.nonterminal("items")
        for witness, wanted in ((-1, shape.rest), *enumerate(shape.witnesses)):
            produce(rest, 0, wanted, witness)
            produce(rest, rest, wanted, witness)
        grammar.produce(symbol, rest, close)

    def _matching(self, matching: Matching, symbol: int, close: int, produce: Callable[[int, int, Formula, int], None]) -> None:
        """A symbol for each number of matches, up to those that matter. The matches that must be are witnesses, so that room is
        left for them."""
        top = matching.least if matching.most is None else matching.most
        match, other = (one in self._nodes.satisfied for one in (matching.match, matching.other))
        before = 0
        for matches in range(top + 1 if match else 1):
            if not (matches or other):
                continue
            items = self.grammar.nonterminal(f"items, {matches} match")
            if matches:
                witness = matches - 1 if matches <= matching.least else -1
                if matches == 1:
                    produce(items, 0, matching.match, witness)
                if before:
                    produce(items, before, matching.match, witness)
            else:
                produce(items, 0, matching.other, -1)
            if other:
                produce(items, items, matching.other, -1)
            if matching.most is None and matches == top:
                produce(items, items, matching.match, -1)
            if matches >= matching.least:
                self.grammar.produce(symbol, items, close)
            before = items

    def _set(self, shape: SetShape, symbol: int) -> None:
        """As an object of keys without values: each may come once."""
        grammar, rows = self.grammar, self._nodes.rows(shape)
        bits = {str(at): at for at in range(len(shape.values))}
        opening, item = self._open("[", grammar.plan(_plan(rows, bits))), grammar.nonterminal("item")
        if any(row.least == 0 for row in rows):
            grammar.produce(symbol, opening, self._empty("]"))
        if not shape.values or not any(row.most for row in rows):
            return
        for bit, (type_, value) in enumerate(shape.values):
            language, form = text({None: "null", True: "true", False: "false"}.get(value, "")), Form.TEXT
            if type_ == "number":
                language = numbers.literal(value)
            elif type_ == "string":
                language, form = words([value]), Form.STRING
            grammar.produce(item, self._terminal(language, form, Act.KEY, bit, name=repr(value)))
        items = grammar.nonterminal("items")
        grammar.produce(items, opening, item)
        grammar.produce(items, items, self._separator(True), item)
        grammar.produce(symbol, items, self._close("]"))


def _plan(
    rows: list[Presence],
    bits: dict[str, int],
    witnesses: int = 0,
    ordered: bool = False,
    array: bool = False,
    unique: bool = False,
) -> Plan:
    found = tuple(
        Row(
            frozenset(bits[key] for key in row.has),
            frozenset(bits[key] for key in row.lacks if key in bits),
            row.least,
            None if row.most >= ENDLESS else row.most,
        )
        for row in rows
    )
    return Plan(array, found, len(bits), witnesses, unique, ordered)
