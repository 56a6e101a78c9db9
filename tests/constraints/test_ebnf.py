"""Lark's EBNF: the same texts as Lark accepts, and faults that say where."""

from __future__ import annotations

import contextlib
import time
from itertools import product

import lark
import pytest

from hasten.engine.decoding.constraints import ebnf
from hasten.engine.decoding.constraints.base import GrammarError, Limits
from hasten.engine.decoding.constraints.common import COMMON, any_case
from hasten.engine.decoding.constraints.derivatives import build
from hasten.engine.decoding.constraints.ignoring import Ignored
from hasten.engine.decoding.constraints.languages import Expr, text
from hasten.engine.decoding.constraints.lr import Automaton
from hasten.engine.decoding.constraints.reference import Matcher


def same_as_lark(source: str, alphabet: str, most: int) -> int:
    """Compares all texts of up to `most` pieces of the alphabet; how many are accepted."""
    matcher = Matcher(ebnf.parse(source))
    parser = lark.Lark(source, parser="lalr")
    accepted = 0
    for length in range(1, most + 1):
        for word in map("".join, product(alphabet, repeat=length)):
            try:
                parser.parse(word)
                expected = True
            except lark.exceptions.UnexpectedInput:
                expected = False
            assert matcher.accepts(word.encode()) == expected, repr(word)
            accepted += expected
    return accepted


@pytest.mark.parametrize(
    ("source", "alphabet", "most"),
    [
        ('start: "a" b+ | "c"\nb: "b" | "d"', "abcd", 5),
        ('start: expr\n?expr: expr "+" term -> add | term\n?term: term "*" "1" | "1" | "(" expr ")"', "1+*()", 5),
        ('start: a ("," a)* [","]\na: "x" "y"? | "(" start ")"', "x,y()", 5),
        ('start: "a"~2 "b"~1..3 C~0..1\nC: "c"~2', "abc", 7),
        ('start: A | B "!"\nA: "a".."c"+\nB: ("d" | "e".."f") A?', "abdf!", 5),
        ("start: (NAME | IF)+\nNAME: LETTER+\nIF: \"if\"\n%import common.LETTER\n%ignore \" \"", "if x", 5),
        ('start: "if" NAME | NAME "=" INT\n%import common.CNAME -> NAME\n%import common (INT, WS)\n%ignore WS', "if=1 ", 6),
        ('start: NAME "(" NAME ")"\n%import common.WORD -> NAME\n%ignore " "\n%ignore "\\n"+', "a() \n", 6),
        ('start: "x" start? "/" | "y"\n%import common.CPP_COMMENT\n%ignore CPP_COMMENT\n%ignore "\\n"+', "xy/\n", 6),
        ('start: "x"+ ";"\n%import common.SH_COMMENT\n%ignore SH_COMMENT', "x#;", 7),
        ('start: "a" | b*\nb: "b" a?\na: "a" b | "c"', "abc", 6),
        ('start: A B | "y" A\nA: "x"\nB.2: "x" | "y"', "xy", 4),
        ('!start: "aB"i | /b/ "é"', "aAbBé", 3),
        ('start: (A | B)+\nA: /a.c*/i\nB: /b[^a\\n]{1,2}/', "abC\n", 5),
        ('start: (A | B)+\nA: /a.*?b/s\nB: "c" /\\/b+?/', "abc/\n", 5),
        ('start: NAME NUMBER? | "if" NUMBER\nNAME: /[a-z_]\\w*/\nNUMBER: /0|[1-9]\\d*/\n%ignore /\\s+/', "if01 ", 6),
        ('start: "x"+\n%ignore /\\/\\*(.|\\n)*?\\*\\//', "x/*\n", 6),
        ("start: a | b // comment\n# another\na: \"a\"\nb: \"b\" |", "ab", 3),
    ],
)  # fmt: skip
def test_same_as_lark(source: str, alphabet: str, most: int) -> None:
    assert same_as_lark(source, alphabet, most) > 0


LINES = [
    *["", "ab", "aB_1", "_", "1", "12", "-1", "+12", "1.", ".5", "1.5", "1e5", "1.5E-3", "e5", "1e", "a", "F", "g", "é"],
    *['""', '"a"', '"a\\"', '"a\\""', '"\\\\"', '"', '"a\n"', " ", "\t ", "\n", "\r\n", "\r", "\n\n", " \n\f"],
    *["#", "#a", "# a\n", "//", "//x", "/**/", "/*a*/", "/***/", "/* * /*/", "/*/", "/**/*/", "--", "--x"],
]


def test_common_terminals_are_larks() -> None:
    for name, language in COMMON.items():
        parser = lark.Lark(f"start: {name}\n%import common.{name}", parser="lalr", lexer="basic")
        for line in LINES:
            try:
                parser.parse(line)
                expected = True
            except lark.exceptions.UnexpectedInput:
                expected = False
            assert _has(language, line) == expected, (name, line)


def _has(language: Expr, word: str) -> bool:
    automaton, state = build(language), 0
    for sign in word:
        if (after := automaton.step(state, ord(sign))) is None:
            return False
        state = after
    return state in automaton.accepting


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("", "there is no rule 'start' (at line 1, column 1)"),
        ("start: a", "there is no rule 'a' (at line 1, column 8)"),
        ("start:\n  A", "there is no terminal 'A' (at line 2, column 3)"),
        ('start: ("a"\nb: "c"', "')' is expected here, not 'b' (at line 2, column 1)"),
        ('start: "a" @', "'@' is not expected here (at line 1, column 12)"),
        ('start: "a"\nstart: "b"', "'start' is there already (at line 2, column 1)"),
        ("start: A\nA: b\nb: \"x\"", "the terminal A mentions the rule 'b'; terminals are made of terminals"),
        ('start: A\nA: B "x"\nB: "y" A | "z"', "terminals that mention themselves: A -> B -> A"),
        ('start: a\na: b | "x"\nb: a', "rules that stand for themselves: a -> b -> a"),
        ('start: "x" start', "the start 'start' derives no text: every way through it goes on without end"),
        ('start: "a"~3..2', "~3..2: from 0 up, and the second number not less than the first (at line 1, column 11)"),
        ('start: "b".."a"', '"b".."a" is no range of characters (at line 1, column 8)'),
        ("start: A\nA." + "9" * 5000 + ": /a/", "a number of more than 9 digits (at line 2, column 3)"),
        ('start: "a"~' + "1" * 5000, "a number of more than 9 digits (at line 1, column 12)"),
        ('start: x~300000000\nx: "(" x ")" | "a"', "it has more than 20000 parts"),
        ('start: "\ud800"', "half of a surrogate pair is no character (at line 1, column 9)"),
        ('start: _sep{"a", ","}', "_sep: templates are not supported (at line 1, column 8)"),
        ('_sep{x}: x\nstart: "a"', "_sep: templates are not supported (at line 1, column 1)"),
        ("start: /a(/", "/a(/: pattern: "),
        ("start: /a/x", "/a/x: the flag 'x' is not supported; i, s and u are (at line 1, column 8)"),
        ("%declare A", "%declare: is not supported; %ignore and %import are (at line 1, column 1)"),
        ("%import python.NAME", "%import: only `common` can be imported from (at line 1, column 9)"),
        ("start: A\n%import common.A", f"`common` has no A; it has {', '.join(COMMON)} (at line 2, column 16)"),
    ],
)  # fmt: skip
def test_refuses(source: str, message: str) -> None:
    with pytest.raises(GrammarError) as refused:
        ebnf.parse(source)
    assert str(refused.value).startswith(message)


@pytest.mark.parametrize(
    "source",
    [
        "start: /" + "[a-z0-9]" * 60_000 + "/i",
        'start: "' + "".join(map(chr, range(0x4E00, 0x9E00))) + '"i',
        "start: " + " | ".join(f'"w{number}"i' for number in range(60_000)),
    ],
    ids=["sets", "characters", "words"],
)
def test_any_case_of_much_ends_in_time(source: str) -> None:
    start = time.perf_counter()
    with contextlib.suppress(GrammarError):
        ebnf.parse(source, Limits(seconds=2))
    assert time.perf_counter() - start < 5


def test_warns() -> None:
    grammar = ebnf.parse('start: "a"?\nb: "b"')
    assert grammar.warnings == ["the start 'start' may be empty; the empty text is left out", "the rule 'b' is never used"]


def test_ignored_texts_go_on_as_long_as_they_can() -> None:
    """What is ignored hides no terminal from the parser: the grammar has no conflict."""
    comment = Ignored(COMMON["SH_COMMENT"], ebnf.Limits())
    assert [_has(comment.before(text("x")), word) for word in ("x", "#x", "#\nx", "# a x")] == [True, False, False, False]
    both = Ignored(("either", (COMMON["SH_COMMENT"], COMMON["WS"])), ebnf.Limits())
    assert [_has(both.before(text("x")), word) for word in ("x", "#x", "#\nx", " \n #a\n #b\n x", "#")] == [
        True, False, True, True, False,
    ]  # fmt: skip
    assert [_has(both.alone(), word) for word in ("", " ", "#x\n ", " # x", "x")] == [False, True, True, True, False]
    grammar = ebnf.parse('start: ("a" "b"?)+\n%import common (WS, SH_COMMENT)\n%ignore WS\n%ignore SH_COMMENT')
    assert not Automaton(grammar).conflicts()


def test_a_terminal_does_not_go_back() -> None:
    """Lark would take back "liste" and find "list"; a terminal that has gone on here has gone on."""
    matcher = Matcher(ebnf.parse('start: ("list" | "listen") "ed"?'))
    assert [matcher.accepts(one) for one in (b"list", b"listen", b"listened", b"listed")] == [True, True, True, False]


def test_any_case() -> None:
    assert all(_has(any_case(text("aß1"), Limits()), one) for one in ("aß1", "Aß1"))
    assert not _has(any_case(text("ab"), Limits()), "b")
