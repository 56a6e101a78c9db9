"""Canonical LR(1) and the edges of Pre^3 against each other and against all derivations; masks against their meaning."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tests.constraints.derivation import derived

from hasten.engine.decoding.constraints import gbnf
from hasten.engine.decoding.constraints.base import GrammarError, Limits
from hasten.engine.decoding.constraints.derivatives import build
from hasten.engine.decoding.constraints.grammar import Grammar
from hasten.engine.decoding.constraints.languages import NOTHING, both, cat, chars, either, nullable, repeat, text, without
from hasten.engine.decoding.constraints.lr import MOST_PREFIX, Automaton, Stack
from hasten.engine.decoding.constraints.reference import Matcher, Pushdown
from hasten.engine.decoding.constraints.rules import Either, Node, Ref, Repeat, Seq, Text, grammar_of

LETTERS = "abcd"
TERMINALS: list[Node] = [Text(text(letter), name=letter) for letter in LETTERS]


def plain(**alternatives: str) -> dict[str, Node]:
    """Rules from texts like "a S b | c": capital letters are rules."""
    return {
        name: Either(tuple(Seq(tuple(_symbol(one) for one in option.split())) for option in text.split("|")))
        for name, text in alternatives.items()
    }


def _symbol(name: str) -> Node:
    return Ref(name) if name.isupper() else TERMINALS[LETTERS.index(name)]


def check(rules: dict[str, Node], most: int, depth: int = 32) -> Pushdown:
    """That LR(1) and the edges accept what the rules derive, but for the empty text."""
    grammar = grammar_of(rules, "S", Limits(), longest=False)
    automaton = Automaton(grammar)
    pushdown, growing = Pushdown(automaton, depth=depth), Pushdown(automaton, depth=depth, absorb=False)
    numbers = {one.name: number for number, one in enumerate(grammar.terminals)}
    expected = {tuple(numbers[name] for name in one) for one in derived(rules, "S", most) if one}
    for length in range(1, most + 1):
        for word in product(range(len(grammar.terminals)), repeat=length):
            assert automaton.accepts(word) == (word in expected), (grammar, word)
            assert pushdown.accepts(word) == (word in expected), (grammar, word)
            assert growing.accepts(word) == (word in expected), (grammar, word)
    return growing


@pytest.mark.parametrize(
    ("rules", "conflicts"),
    [
        (plain(S="S a T | T", T="T b F | F", F="c | d S d"), False),  # arithmetic
        (plain(S="T a S | T", T="F b T | F", F="c | d S d"), False),  # the same, right-recursive
        (plain(S="a S | a"), False),
        (plain(S="a T | a", T="b S | b"), False),  # a lap of two
        (plain(S="a S b | a b"), False),
        (plain(S="S a S b | a b | S a b | a S b"), False),  # brackets
        (plain(S="a S a | b S b | a | b"), True),  # palindromes are no LR(k) language
        (plain(S="S S | a"), True),
        (plain(S="A c | B d", A="a", B="a"), False),  # needs the look-ahead
        (plain(S="a A d | b B d | a B c | b A c", A="d", B="d"), False),  # LR(1), not LALR(1)
        (plain(S="A | B", A="a b", B="a b"), True),
        (plain(S="a L b", L="L c V | V", V="d | a L b | a b"), False),  # nested lists
        (plain(S="A b | A A c", A="| a"), False),  # empty parts
    ],
)
def test_acceptance(rules: dict[str, Node], conflicts: bool) -> None:
    assert bool(check(rules, 6).lr.conflicts()) == conflicts


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_partial_edges_change_nothing(depth: int) -> None:
    for rules in (plain(S="a S | b"), plain(S="a T | a", T="b S | b"), plain(S="T a S | T", T="c b T | c")):
        assert any(edge.partial for edges in check(rules, 7, depth).edges.values() for edge in edges)


@pytest.mark.parametrize(
    ("rules", "most"),
    [
        (plain(S="a S | b"), 3),
        (plain(S="a T | a", T="b S | b"), 6),
        (plain(S="T a S | T", T="F b T | F", F="c | d S d"), 8),
        (plain(S="T S | T", T="a | b S c"), 5),  # a lap without a terminal of its own
        (plain(S="a S | a b"), 5),  # entered with two items
    ],
)
def test_laps_of_right_recursion_are_forgotten(rules: dict[str, Node], most: int) -> None:
    automaton = Automaton(grammar_of(rules, "S", Limits(), longest=False))
    edges = [edge for several in Pushdown(automaton).edges.values() for edge in several]
    assert not any(edge.partial for edge in edges)
    assert max(len(edge.required) for edge in edges) <= most
    assert any(edge.partial for edges in Pushdown(automaton, absorb=False).edges.values() for edge in edges)


def test_laps_that_something_waits_for_stay() -> None:
    for rules in (plain(S="a S c | a S | b"), plain(S="a S a | b"), plain(S="a S b T | c", T="d T | d")):
        pushdown = check(rules, 6)
        after_a = {state.shifts[0] for state in pushdown.lr.states if 0 in state.shifts}
        assert pushdown.lr.grammar.terminals[0].name == "a"
        assert not after_a & Pushdown(pushdown.lr).laps.keys()


def test_stacks_of_right_recursion_do_not_grow() -> None:
    pushdown = Pushdown(Automaton(grammar_of(plain(S="a S | b"), "S", Limits(), longest=False)))
    a = next(n for n, one in enumerate(pushdown.lr.grammar.terminals) if one.name == "a")
    stack: Stack = (0,)
    for _ in range(50):
        [stack] = pushdown.step(stack, a)
    assert len(stack) == 2


def test_right_recursion_deeper_than_any_edge() -> None:
    pushdown = Pushdown(Automaton(grammar_of(plain(S="a S | b"), "S", Limits(), longest=False)), absorb=False)
    a, b = (next(n for n, one in enumerate(pushdown.lr.grammar.terminals) if one.name == name) for name in "ab")
    for length in (30, 31, 32, 33, 34, 200):
        assert pushdown.accepts([a] * length + [b])
        assert not pushdown.accepts([a] * length)


def test_one_edge_holds_all_reductions() -> None:
    """After "d c" in arithmetic the closing "d" reduces F, T and S, and shifts: one step."""
    pushdown = check(plain(S="S a T | T", T="T b F | F", F="c | d S d"), 4)
    assert not any(edge.partial for edges in pushdown.edges.values() for edge in edges)
    for edges in pushdown.edges.values():
        # Conditions of one terminal exclude each other.
        for one in edges:
            for two in edges:
                assert one == two or one.required[: len(two.required)] != two.required[: len(one.required)]


NODES = st.recursive(
    st.sampled_from([*TERMINALS, Ref("S"), Ref("A"), Ref("B")]),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda parts: Seq(tuple(parts))),
        st.lists(inner, min_size=1, max_size=3).map(lambda options: Either(tuple(options))),
        st.builds(
            lambda part, least, more: Repeat(part, least, None if more is None else least + more),
            inner,
            st.integers(0, 2),
            st.sampled_from([None, 0, 1, 2]),
        ),
    ),
    max_leaves=6,
)


@settings(max_examples=150)
@given(st.fixed_dictionaries({"S": NODES, "A": NODES, "B": NODES}))
def test_random_rules(rules: dict[str, Node]) -> None:
    try:
        grammar_of(rules, "S", Limits(), longest=False)
    except GrammarError as refused:
        if "stand for themselves" not in str(refused):
            assert derived(rules, "S", 5) <= {()}
        assume(False)
    check(rules, 4, depth=4)


def test_conflicts_tell_where() -> None:
    rules = plain(S="a I d", I="b I | b I c I | a")  # the dangling else
    automaton = Automaton(grammar_of(rules, "S", Limits(), longest=False))
    [conflict] = automaton.conflicts()
    assert conflict.kind == "shift/reduce" and automaton.name(conflict.terminal) == "c"
    assert {automaton.show(one) for one in conflict.productions} == {"I -> b I", "I -> b I c I"}
    assert " ".join(map(automaton.name, conflict.prefix)) == "a b b a"


def test_a_conflict_after_a_long_text_is_told_by_its_beginning() -> None:
    doubling = {f"R{level}": f"R{level + 1} R{level + 1}" for level in range(60)}
    rules = plain(S="R0 I d", I="b I | b I c I | a", R60="d", **doubling)
    [conflict] = Automaton(grammar_of(rules, "S", Limits(), longest=False)).conflicts()
    assert len(conflict.prefix) == MOST_PREFIX and len(set(conflict.prefix)) == 1


# ---- bytes


def strings(alphabet: bytes, most: int) -> list[bytes]:
    return [bytes(one) for length in range(most + 1) for one in product(alphabet, repeat=length)]


LETTER = chars((97, 97)), chars((97, 98)), chars((0xE9, 0x20AC)), text("ab"), text("ba"), text("é")
EXPRESSIONS = st.recursive(
    st.sampled_from(LETTER),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda parts: cat(*parts)),
        st.lists(inner, max_size=3).map(lambda parts: either(*parts)),
        st.lists(inner, min_size=1, max_size=2).map(lambda parts: both(*parts)),
        st.builds(lambda part, least, more: repeat(part, least, least + more), inner, st.integers(0, 2), st.integers(0, 2)),
        inner.map(without),
        inner.map(repeat),
    ),
    max_leaves=5,
)
WORDS = ["".join(one) for length in range(5) for one in product("abé", repeat=length)]


def meaning(expr: tuple, words: frozenset[str]) -> frozenset[str]:
    """Which of `words`, all over an alphabet up to a length, are in the language."""
    kind, *rest = expr
    if kind == "chars":
        return frozenset(one for one in words if len(one) == 1 and any(low <= ord(one) <= high for low, high in rest[0]))
    if kind == "words":
        return words & frozenset(rest[0])
    if kind in ("cat", "either", "both"):
        found = [meaning(part, words) for part in rest[0]]
        if kind == "either":
            return frozenset().union(*found)
        if kind == "both":
            return frozenset.intersection(*found)
        texts = frozenset({""})
        for part in found:
            texts = frozenset(one + two for one in texts for two in part) & words
        return texts
    if kind == "without":
        return words - meaning(rest[0], words)
    if kind == "repeat":
        inner, texts = meaning(rest[0], words), frozenset({""})
        for _ in range(rest[1]):
            texts = frozenset(one + two for one in texts for two in inner) & words
        for _ in range(4 if rest[2] is None else rest[2] - rest[1]):
            texts |= frozenset(one + two for one in texts for two in inner) & words
        return texts
    return frozenset({""}) if kind == "empty" else frozenset()


@settings(max_examples=150)
@given(EXPRESSIONS)
def test_automata_of_expressions(expr: tuple) -> None:
    automaton = build(expr)
    expected = meaning(expr, frozenset(WORDS))
    assert nullable(expr) == ("" in expected)
    for word in WORDS:
        state: int | None = 0
        for sign in word:
            state = None if state is None else automaton.step(state, ord(sign))
        assert (state is not None and state in automaton.accepting) == (word in expected)


def test_automata_have_no_dead_ends() -> None:
    assert build(both(text("ab"), text("ac"))).rows == ((),)
    assert build(NOTHING).accepting == frozenset()


def grammar(source: str) -> Grammar:
    return gbnf.parse(source)


def test_bytes_follow_characters() -> None:
    matcher = Matcher(grammar('root ::= "<" [é-€] ">"'))
    for point in (0xE8, 0xE9, 0x7FF, 0x800, 0x20AC, 0x20AD, 0x1F600):
        assert matcher.accepts(f"<{chr(point)}>".encode()) == (0xE9 <= point <= 0x20AC)
    begun = matcher.advance(matcher.start, b"<")
    # Characters of two bytes begin with C3 to DF, those of three with E0 to E2; no surrogates, no overlong forms.
    assert [first for first in range(256) if matcher.advance(begun, bytes([first]))] == [*range(0xC3, 0xE3)]
    assert [second for second in range(256) if matcher.advance(begun, bytes([0xE0, second]))] == [*range(0xA0, 0xC0)]
    assert [second for second in range(256) if matcher.advance(begun, bytes([0xC3, second]))] == [*range(0xA9, 0xC0)]


def test_masks_are_what_can_be_completed() -> None:
    """A token is legal exactly if some text of the language begins so."""
    matcher = Matcher(grammar('root ::= item ("," item)*\nitem ::= "a"+ "c"? | "(" root ")"'))
    signs: dict[str, Node] = {sign: Text(text(sign), name=sign) for sign in "ac,()"}
    rules = {
        "root": Either((Ref("item"), Seq((Ref("root"), signs[","], Ref("item"))))),
        "item": Either(
            (Seq((Repeat(signs["a"], 1, None), Repeat(signs["c"], 0, 1))), Seq((signs["("], Ref("root"), signs[")"])))
        ),
    }
    texts = {"".join(one).encode() for one in derived(rules, "root", 9)}
    prefixes = {one[:length] for one in texts for length in range(len(one) + 1)}
    vocabulary = [b"", *strings(b"abc,()", 4)]
    for seen in (b"", b"a", b"(a", b"(a)", b"ac,"):
        mask = matcher.mask(matcher.advance(matcher.start, seen), vocabulary)
        for token, legal in zip(vocabulary, mask, strict=True):
            if len(seen) + len(token) <= 4:  # what can be completed at all then takes five more at most
                assert legal == (token != b"" and seen + token in prefixes), (seen, token)
    assert [matcher.ended(matcher.advance(matcher.start, one)) for one in (b"", b"a", b"a,", b"(a", b"(a)")] == [
        False, True, False, False, True,
    ]  # fmt: skip
