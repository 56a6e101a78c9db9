"""GBNF: what it reads, and that merging rules into terminals changes no text."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tests.constraints.derivation import derived

from hasten.engine.decoding.constraints import gbnf
from hasten.engine.decoding.constraints.base import GrammarError, Limits
from hasten.engine.decoding.constraints.languages import text
from hasten.engine.decoding.constraints.reference import Matcher
from hasten.engine.decoding.constraints.regular import merge
from hasten.engine.decoding.constraints.rules import Either, Node, Ref, Repeat, Seq, Text, grammar_of


def accepts(source: str, *texts: str) -> list[bool]:
    matcher = Matcher(gbnf.parse(source))
    return [matcher.accepts(one.encode()) for one in texts]


@pytest.mark.parametrize(
    ("source", "good", "bad"),
    [
        (r'root ::= "a" | "b" "c"', ["a", "bc"], ["", "b", "ac"]),
        (r'root ::= "\"\\\n\t\x41é\u00e9"', ['"\\\n\tAéé'], ["x"]),
        (r"root ::= [a-c0-9_\-\]\x41]", [*"abc059_-]A"], [*"dB[\\"]),
        (r"root ::= [^a-c\n] [a-] [-a] .", ["d-a\n", "é-aé"], ["a---", "\n---", "db-x"]),
        (r'root ::= "a"{2} "b"{1,} "c"{0,2} "d"{0,1}', ["aab", "aabbbccd"], ["ab", "aa", "aabccc", "aabdd"]),
        (r'root ::= ("a" | "b")* "c"+ "d"?', ["c", "ababcccd"], ["ab", "d", "cdd"]),
        ("root ::= # comment ::= \n  a\n  | b # more\na ::= \"x\"\nb::=\"y\" a", ["x", "yx"], ["y", "xx"]),
        ('root ::= "[" w (v ("," w v)*)? "]" w\nv ::= root | [0-9] w\nw ::= ([ \\n] w)?', ["[]", "[ 1 ,[2\n]]"], ["[1,]"]),
        ('root ::= "" a "b"\na ::= "" | "a"', ["b", "ab"], ["a"]),
        ('root ::= a-b_c\na-b_c ::= "x"', ["x"], []),
        ('root ::= t "!"\nt ::= t "x" | "y"', ["y!", "yxx!"], ["x!", "!"]),
    ],
)  # fmt: skip
def test_reads(source: str, good: list[str], bad: list[str]) -> None:
    assert accepts(source, *good, *bad) == [True] * len(good) + [False] * len(bad)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("", "there is no rule 'root' to start from (at line 1, column 1)"),
        ('root ::= "a', "'\"' is not expected here (at line 1, column 10)"),
        ('root ::= ("a"\nb ::= "c"', "')' is expected here, not 'b' (at line 2, column 1)"),
        ('root ::= "a" )', "the name of a rule is expected here, not ')' (at line 1, column 14)"),
        ('root ::= "a"\n  b', "there is no rule 'b' (at line 2, column 3)"),
        ('root ::= "a"\nroot ::= "b"', "the rule 'root' is there already (at line 2, column 1)"),
        ("root ::= [b-a]", "b-a is no range of characters (at line 1, column 10)"),
        ('root ::= "\\xZZ"', "\\xZZ is no character (at line 1, column 11)"),
        ('root ::= "\\ud800"', "\\ud800 is no character (at line 1, column 11)"),
        ('root ::= "a"{3,2}', "{3,2}: the second number is less than the first (at line 1, column 13)"),
        ('root ::= "a" root', "the start 'root' derives no text: every way through it goes on without end"),
        ('root ::= ""', "the start 'root' has the empty text only"),
        ('root ::= "(" root ")" | b | "x"\nb ::= root', "rules that stand for themselves: root -> b -> root"),
        (f"root ::= {'(' * 200}", "nested more than 100 deep (at line 1, column 110)"),
        ('root ::= "a" root "b"{99999}', "it has more than 20000 parts"),
        ('root ::= "a"{' + "1" * 5000 + "}", "a number of more than 9 digits (at line 1, column 13)"),
        ('root ::= "\ud800"', "half of a surrogate pair is no character (at line 1, column 11)"),
        (f'root ::= ({"x " * 10_000}){{10000,}}\nx ::= "(" x ")" | "a"', "it has more than 20000 parts"),
        (f'root ::= {" | ".join(f"{chr(34)}w{i}{chr(34)} root" for i in range(30_000))} | "z"', "it has more than 20000 parts"),
    ],
)
def test_refuses(source: str, message: str) -> None:
    with pytest.raises(GrammarError) as refused:
        gbnf.parse(source, Limits(seconds=60))  # time is not what these are refused for
    assert str(refused.value) == message


def test_warns() -> None:
    grammar = gbnf.parse('root ::= "a"* | "(" root ")" | "x" b\nb ::= "b" b\nc ::= "c"')
    assert grammar.warnings == [
        "the start 'root' may be empty; the empty text is left out",
        "the rule 'b' derives no text",
        "the rule 'c' is never used",
    ]
    assert accepts('root ::= "a"* | "(" root ")" | "x" b\nb ::= "b" b', "", "()", "(aa)", "xb") == [False, True, True, False]


def test_regular_rules_become_one_terminal() -> None:
    grammar = gbnf.parse('root ::= number ("," number)*\nnumber ::= "-"? digits\ndigits ::= [0-9] digits | [0-9]')
    assert len(grammar.terminals) == 1 and len(grammar.productions) == 1


def test_merging_has_a_limit() -> None:
    doubling = "\n".join(f"r{n} ::= r{n + 1} r{n + 1}" for n in range(30)) + '\nr30 ::= "a"'
    grammar = gbnf.parse(f"root ::= r0\n{doubling}")
    assert len(grammar.blob()) < 100_000


SIGNS: list[Node] = [Text(text(one), name=one) for one in ("a", "b", "ab", "ba")]
NODES = st.recursive(
    st.sampled_from([*SIGNS, Ref("S"), Ref("A"), Ref("B")]),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda parts: Seq(tuple(parts))),
        st.lists(inner, min_size=1, max_size=3).map(lambda options: Either(tuple(options))),
        st.builds(lambda part, ends: Repeat(part, *ends), inner, st.sampled_from([(0, None), (1, None), (0, 1), (1, 2)])),
    ),
    max_leaves=6,
)


@settings(max_examples=150)
@given(st.fixed_dictionaries({"S": NODES, "A": NODES, "B": NODES}))
def test_merging_changes_no_text(rules: dict[str, Node]) -> None:
    try:
        plain, merged = (grammar_of(one, "S", Limits(), longest=False) for one in (rules, merge(rules, Limits())))
    except GrammarError:
        assume(False)
    matchers = Matcher(plain), Matcher(merged)
    assert len(merged.productions) <= len(plain.productions)
    expected = {"".join(one) for one in derived(rules, "S", 4)}
    for length in range(1, 5):
        for word in map("".join, product("ab", repeat=length)):
            assert [one.accepts(word.encode()) for one in matchers] == [word in expected] * 2
