"""EBNF as Lark writes it: rules in lower case over terminals in upper case.

    start: item ("," item)*
    item: NAME "=" (INT | ESCAPED_STRING) | "if"i NAME
    NAME.2: /[a-z]\\w*/ | "_" DIGIT~1..3
    %import common (INT, DIGIT, ESCAPED_STRING, WS)
    %ignore WS

A terminal ends only where it cannot go on; of two that match the same text the higher priority wins, then a literal. What
Lark would decide by the length of the pattern stays open, and both are followed. Shaping of trees (`?rule`, `!rule`, `_rule`,
`-> alias`) and priorities of rules change no text and are passed over. Texts that are ignored may stand before every terminal
and at the end; they are folded into the terminals (`ignoring.py`). Patterns are JSON Schema's (`regex.py`), but a dot is all
but a line feed, and everything with the flag s. A lazy quantifier makes its pattern end at the first place
where it can: `/<!--(.|\\n)*?-->/`. Not taken: templates, imports but those of `common`, `%declare`, `%override`, `%extend`.
"""

from __future__ import annotations

import re

from hasten.engine.decoding.constraints import regex
from hasten.engine.decoding.constraints.base import GrammarError, Limits
from hasten.engine.decoding.constraints.common import COMMON, any_case
from hasten.engine.decoding.constraints.grammar import Grammar
from hasten.engine.decoding.constraints.ignoring import Ignored
from hasten.engine.decoding.constraints.languages import ANY, Expr, both, cat, chars, repeat, without
from hasten.engine.decoding.constraints.languages import either as union
from hasten.engine.decoding.constraints.languages import text as literal
from hasten.engine.decoding.constraints.reader import Reader, Token
from hasten.engine.decoding.constraints.regular import Known, expression, ordered
from hasten.engine.decoding.constraints.rules import (
    Either,
    Node,
    Ref,
    Repeat,
    Seq,
    Text,
    choice,
    grammar_of,
    refs,
    sequence,
    text,
    unused,
)

_TOKENS = re.compile(
    r"""(?P<skip>\s+|//[^\n]*|\#[^\n]*)
      | (?P<rule>!?[?]?_?[a-z][_a-z0-9]*)
      | (?P<terminal>_?[A-Z][_A-Z0-9]*)
      | (?P<string>"(?:\\.|[^"\\\n])*"i?)
      | (?P<regex>/(?:\\.|\[(?:\\.|[^\]\\\n])*\]|[^/\\\n\[])+/[a-z]*)
      | (?P<directive>%[a-z]+)
      | (?P<arrow>->\s*[A-Za-z_][A-Za-z_0-9]*)
      | (?P<sign>\.\.|[:|()\[\]*+?~,.{}])
      | (?P<number>-?\d+)""",
    re.VERBOSE,
)
_REPEATS: dict[str, tuple[int, int | None]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}
_PIECES = re.compile(r"\\.|\[(?:\\.|[^\]\\])*\]|[*+?}]\?|.", re.DOTALL)
"""Of a pattern: what is escaped, sets of characters, and lazy quantifiers are one piece."""
_ATOMS = ("rule", "terminal", "string", "regex")


def parse(source: str, limits: Limits | None = None) -> Grammar:
    """The grammar, or a GrammarError with line and column."""
    limits = limits or Limits()
    return _Parser(source, limits).grammar()


class _Parser(Reader):
    def __init__(self, source: str, limits: Limits) -> None:
        super().__init__(source, _TOKENS, limits)
        self.rules: dict[str, Node] = {}
        self.terminals: dict[str, Node] = {}
        self.priorities: dict[str, int] = {}
        self.ignored: list[Node] = []
        self.used: dict[str, Token] = {}

    def grammar(self) -> Grammar:
        while self.peek().kind != "end":
            self.limits.check(len(self.rules) + len(self.terminals))
            self.directive() if self.peek().kind == "directive" else self.definition()
        for name, token in self.used.items():
            if name not in self.rules and name not in self.terminals:
                kind = "terminal" if token.kind == "terminal" else "rule"
                raise self.fault(f"there is no {kind} {name!r}", token.at)
        if "start" not in self.rules:
            raise self.fault("there is no rule 'start'", 0)
        for name, node in self.terminals.items():
            if wrong := refs(node) & self.rules.keys():
                raise GrammarError(f"the terminal {name} mentions the rule {min(wrong)!r}; terminals are made of terminals")
        return _Assembly(self).grammar()

    def definition(self) -> None:
        token = self.take()
        if token.kind not in ("rule", "terminal"):
            raise self.fault(f"a rule, a terminal or a directive is expected here, not {token.text!r}", token.at)
        name = token.text.lstrip("!?")
        if name in self.rules or name in self.terminals:
            raise self.fault(f"{name!r} is there already", token.at)
        if self.peek().text == "{":
            raise self.fault("templates are not supported", token.at, name)
        if self.skip("."):
            self.priorities[name] = self.integer("a priority")
        self.expect(":")
        (self.terminals if token.kind == "terminal" else self.rules)[name] = self.alternatives()

    def directive(self) -> None:
        token = self.take()
        if token.text == "%ignore":
            self.ignored.append(self.alternatives())
        elif token.text == "%import":
            self.imports()
        else:
            raise self.fault("is not supported; %ignore and %import are", token.at, token.text)

    def imports(self) -> None:
        module = self.take()
        if module.text != "common" or self.peek().text not in (".", "("):
            raise self.fault("only `common` can be imported from", module.at, "%import")
        several = self.take().text == "("
        while True:
            token = self.expect(kind="terminal", what="the name of a terminal")
            if token.text not in COMMON:
                raise self.fault(f"`common` has no {token.text}; it has {', '.join(COMMON)}", token.at)
            name = token.text
            if not several and self.peek().kind == "arrow":
                name = self.take().text[2:].strip()
            self.terminals[name] = Text(COMMON[token.text], name=name)
            if not several or not self.skip(","):
                break
        if several:
            self.expect(")")

    def alternatives(self) -> Node:
        options = [self.parts()]
        while self.skip("|"):
            options.append(self.parts())
        return choice(options)

    def parts(self) -> Node:
        found: list[Node] = []
        while (self.peek().kind in _ATOMS or self.peek().text in ("(", "[")) and not self.begins():
            found.append(self.repeated(self.one()))
        if self.peek().kind == "arrow":
            self.take()
        return sequence(found)

    def begins(self) -> bool:
        """Whether the next definition starts here: a name and a colon, perhaps with a priority between."""
        if self.peek().kind not in ("rule", "terminal"):
            return False
        return self.peek(1).text in (":", "{") or (self.peek(1).text == "." and self.peek(3).text == ":")

    def repeated(self, node: Node) -> Node:
        while True:
            token = self.peek()
            if token.text in _REPEATS:
                self.take()
                node = Repeat(node, *_REPEATS[token.text])
            elif self.skip("~"):
                least = most = self.integer("a number")
                if self.skip(".."):
                    most = self.integer("a number")
                if not 0 <= least <= most:
                    raise self.fault(f"~{least}..{most}: from 0 up, and the second number not less than the first", token.at)
                node = Repeat(node, least, most)
            else:
                return node

    def one(self) -> Node:
        token = self.take()
        if token.text in ("(", "["):
            self.enter(token)
            node = self.alternatives()
            self.expect(")" if token.text == "(" else "]")
            self.leave()
            return node if token.text == "(" else Repeat(node, 0, 1)
        if token.kind in ("rule", "terminal"):
            name = token.text.lstrip("!?")
            self.used.setdefault(name, token)
            return Ref(name)
        if token.kind == "regex":
            return text(self.pattern(token), token.text)
        if self.skip(".."):
            return text(self.range(token, self.expect(kind="string", what="the last character of a range")), token.text)
        language = literal(self.string(token))
        return text(any_case(language, self.limits) if token.text.endswith("i") else language, token.text, priority=1)

    def integer(self, what: str) -> int:
        token = self.expect(kind="number", what=what)
        return self.number(token.text, token.at)

    def string(self, token: Token) -> str:
        return self.unescape(token.text[1 : token.text.rindex('"')], token.at + 1)

    def range(self, first: Token, last: Token) -> Expr:
        low, high = self.string(first), self.string(last)
        if len(low) != 1 or len(high) != 1 or low > high:
            raise self.fault(f"{first.text}..{last.text} is no range of characters", first.at)
        return chars((ord(low), ord(high)))

    def pattern(self, token: Token) -> Expr:
        body, _, flags = token.text[1:].rpartition("/")
        if wrong := set(flags) - set("isu"):
            raise self.fault(f"the flag {min(wrong)!r} is not supported; i, s and u are", token.at, token.text)
        pieces = [piece[0] for piece in _PIECES.finditer(body)]
        dot = "[^]" if "s" in flags else "[^\\n]"
        try:
            written = "".join(dot if piece == "." else piece for piece in pieces)
            found = regex.parse(written, search=False, limits=self.limits)
        except GrammarError as fault:
            raise self.fault(str(fault), token.at, token.text) from None
        if any(piece in ("*?", "+?", "??", "}?") for piece in pieces):
            found = both(found, without(cat(found, repeat(ANY, 1))))
        return any_case(found, self.limits) if "i" in flags else found


class _Assembly:
    """The rules with their terminals' languages in place."""

    def __init__(self, parsed: _Parser) -> None:
        self.parsed = parsed
        self.known: Known = {}
        self.priority: dict[str, int] = {}
        for name in ordered(parsed.terminals):
            found = expression(parsed.terminals[name], self.known)
            if found is None:
                raise GrammarError(f"the terminal {name} is too large")
            self.known[name] = found
            node = parsed.terminals[name]
            # Odd ranks are literals', even ones patterns': of equal priorities the literal wins.
            self.priority[name] = 2 * parsed.priorities.get(name, 0) + (isinstance(node, Text) and node.priority)
        self.names = {(found[0], self.priority[name]): name for name, found in self.known.items()}
        languages = [expression(node, self.known) for node in parsed.ignored]
        if None in languages:
            raise GrammarError("what is ignored is made of terminals and not too large", "%ignore")
        self.ignored = Ignored(union(*(one[0] for one in languages if one)), parsed.limits) if languages else None

    def grammar(self) -> Grammar:
        rules = {name: self.placed(node) for name, node in self.parsed.rules.items()}
        warnings, start = unused(rules, "start"), "start"
        if self.ignored is not None:
            start = "start, ignored"  # a name that no rule can have: what is ignored after the last terminal
            rules[start] = Seq((Ref("start"), Repeat(Text(self.ignored.alone(), -1, "%ignore"), 0, 1)))
        grammar = grammar_of(rules, start, self.parsed.limits, longest=True)
        grammar.warnings += warnings
        return grammar

    def placed(self, node: Node) -> Node:
        match node:
            case Ref(name) if name in self.known:
                return self.terminal(self.known[name][0], name, self.priority[name])
            case Text(language, priority, name):
                return self.terminal(language, self.names.get((language, priority), name), priority)
            case Seq(parts):
                return Seq(tuple(map(self.placed, parts)))
            case Either(options):
                return Either(tuple(map(self.placed, options)))
            case Repeat(part, least, most):
                return Repeat(self.placed(part), least, most)
        return node

    def terminal(self, language: Expr, name: str, priority: int) -> Node:
        node = text(language, name, priority)
        if self.ignored is None:
            return node
        match node:
            case Text():
                return Text(self.ignored.before(node.language), priority, name)
            case Repeat(Text() as inner, least, most):
                return Repeat(Text(self.ignored.before(inner.language), priority, name), least, most)
        return node
