"""GBNF, the grammars of llama.cpp, without a lexer: characters are the terminals.

    root  ::= "[" ws (value ("," ws value)*)? "]"     # rules; the text is a `root`
    value ::= [0-9]{1,3} | "\\"" [^"\\\\]* "\\"" | root
    ws    ::= [ \\t\\n]*

Parts of rules that are regular languages are merged into one terminal each, so that a parser acts once a word and not once a
character; what is accepted stays the same, because a terminal may end wherever it can and all ways are followed. `ws ::=
([ \\t] ws)?` counts as regular too. Where llama.cpp ends a rule at the end of its line, a rule here goes on to the next `::=`.
"""

from __future__ import annotations

import re

from hasten.engine.decoding.constraints.base import Limits
from hasten.engine.decoding.constraints.grammar import Grammar
from hasten.engine.decoding.constraints.languages import ANY, Expr, but, chars
from hasten.engine.decoding.constraints.languages import text as literal
from hasten.engine.decoding.constraints.reader import Reader, Token
from hasten.engine.decoding.constraints.regular import merge
from hasten.engine.decoding.constraints.rules import Node, Ref, Repeat, choice, grammar_of, sequence, text, unused

_TOKENS = re.compile(
    r"""(?P<skip>\s+|\#[^\n]*)
      | (?P<name>[A-Za-z0-9_-]+)
      | (?P<string>"(?:\\.|[^"\\\n])*")
      | (?P<chars>\[(?:\\.|[^\]\\\n])*\])
      | (?P<count>\{\s*\d+\s*(?:,\s*\d*\s*)?\})
      | (?P<sign>::=|[|()*+?.])""",
    re.VERBOSE,
)
_REPEATS: dict[str, tuple[int, int | None]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}


def parse(source: str, limits: Limits | None = None) -> Grammar:
    """The grammar, or a GrammarError with line and column."""
    limits = limits or Limits()
    rules = _Parser(source, limits).rules()
    grammar = grammar_of(merge(rules, limits), "root", limits, longest=False)
    grammar.warnings += unused(rules, "root")
    return grammar


class _Parser(Reader):
    def __init__(self, source: str, limits: Limits) -> None:
        super().__init__(source, _TOKENS, limits)
        self.used: dict[str, Token] = {}

    def rules(self) -> dict[str, Node]:
        found: dict[str, Node] = {}
        while self.peek().kind != "end":
            self.limits.check(len(found))
            name = self.expect(kind="name", what="the name of a rule")
            if name.text in found:
                raise self.fault(f"the rule {name.text!r} is there already", name.at)
            self.expect("::=")
            found[name.text] = self.alternatives()
        for missing, token in self.used.items():
            if missing not in found:
                raise self.fault(f"there is no rule {missing!r}", token.at)
        if "root" not in found:
            raise self.fault("there is no rule 'root' to start from", 0)
        return found

    def alternatives(self) -> Node:
        options = [self.parts()]
        while self.skip("|"):
            options.append(self.parts())
        return choice(options)

    def parts(self) -> Node:
        found: list[Node] = []
        while self.peek().kind in ("name", "string", "chars") or self.peek().text in ("(", "."):
            if self.peek().kind == "name" and self.peek(1).text == "::=":
                break
            found.append(self.repeated(self.one()))
        return sequence(found)

    def repeated(self, node: Node) -> Node:
        while True:
            token = self.peek()
            if token.text in _REPEATS:
                node = Repeat(node, *_REPEATS[token.text])
            elif token.kind == "count":
                first, comma, second = (part.strip() for part in token.text[1:-1].partition(","))
                least = self.number(first, token.at)
                most = self.number(second, token.at) if second else None if comma else least
                if most is not None and most < least:
                    raise self.fault(f"{token.text}: the second number is less than the first", token.at)
                node = Repeat(node, least, most)
            else:
                return node
            self.take()

    def one(self) -> Node:
        token = self.take()
        if token.text == "(":
            self.enter(token)
            node = self.alternatives()
            self.expect(")")
            self.leave()
            return node
        if token.kind == "name":
            self.used.setdefault(token.text, token)
            return Ref(token.text)
        if token.kind == "string":
            return text(literal(self.unescape(token.text[1:-1], token.at + 1)), token.text)
        return text(self.characters(token) if token.kind == "chars" else ANY, token.text)

    def characters(self, token: Token) -> Expr:
        body, inverted = token.text[1:-1], token.text.startswith("[^")
        at = token.at + 1 + inverted
        pieces = [
            (self.unescape(found[0], at + found.start()), found[0])
            for found in re.finditer(r"\\x..|\\u....|\\U.{8}|\\.|.", body[inverted:], re.DOTALL)
        ]
        ranges, place = [], 0
        while place < len(pieces):
            low = high = pieces[place][0]
            # A minus sign at the end, or an escaped one, is only itself.
            if pieces[place + 1 : place + 2] and pieces[place + 1][1] == "-" and place + 2 < len(pieces):
                high = pieces[place + 2][0]
                place += 2
            if len(low) != 1 or len(high) != 1 or low > high:
                what = f"{low} has no meaning" if low == high else f"{low}-{high} is no range of characters"
                raise self.fault(what, token.at)
            ranges.append((ord(low), ord(high)))
            place += 1
        return but(chars(*ranges)) if inverted else chars(*ranges)
