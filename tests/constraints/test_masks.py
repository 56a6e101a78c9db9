"""The native machine's masks are those of the readable reference, bit for bit, after any tokens."""

from __future__ import annotations

import random
from itertools import product

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tests.constraints.test_gbnf import NODES

from hasten.engine.decoding.constraints import ebnf, gbnf
from hasten.engine.decoding.constraints.base import GrammarError, Limits
from hasten.engine.decoding.constraints.grammar import Grammar
from hasten.engine.decoding.constraints.machine import CompiledGrammar, State, Vocabulary
from hasten.engine.decoding.constraints.reference import Matcher
from hasten.engine.decoding.constraints.regular import merge
from hasten.engine.decoding.constraints.rules import Node, grammar_of

ARITHMETIC = 'start: e\ne: e "+" t | t\nt: t "*" f | f\nf: INT | "(" e ")"\n%import common (INT, WS)\n%ignore WS'
PROGRAM = """
start: statement+
statement: "if" e ":" statement | NAME "=" e ";"
e: e ("+" | "-") t | t
t: NAME | INT | "(" e ")" | NAME "(" [e ("," e)*] ")"
%import common.CNAME -> NAME
%import common (INT, WS, SH_COMMENT)
%ignore WS
%ignore SH_COMMENT
"""
SQL = """
start: "select"i columns "from"i NAME ["where"i condition] ";"?
columns: "*" | NAME ("," NAME)*
condition: NAME ("=" | "<") value (("and"i | "or"i) NAME ("=" | "<") value)*
value: SIGNED_INT | ESCAPED_STRING | "(" start ")"
NAME: ("a".."z" | "_")+
%import common (SIGNED_INT, ESCAPED_STRING, WS)
%ignore WS
"""
MOST_READINGS = 50
NESTED = 'root ::= "[" w (v ("," w v)*)? "]" w\nv ::= root | [0-9]{1,3} w | "\\"" [^"\\\\]* "\\"" w\nw ::= ([ \\n] w)?'


@pytest.mark.parametrize(
    "grammar",
    [
        ebnf.parse(ARITHMETIC),
        ebnf.parse(PROGRAM),
        ebnf.parse(SQL),
        ebnf.parse('start: (NAME | IF)+\nNAME: LETTER+\nIF: "if"\n%import common.LETTER\n%ignore " "'),
        ebnf.parse('start: ("list" | "listen") "ed"?'),
        gbnf.parse(NESTED),
        gbnf.parse('root ::= t "+" root | t\nt ::= f "*" t | f\nf ::= [0-9] | "(" root ")"'),  # right recursion
        gbnf.parse('root ::= "a" root "a" | "b" root "b" | "a" | "b"'),  # no LR(k) language
        gbnf.parse('root ::= "if " e root | "if " e root " else " root | e\ne ::= [a-c] ";"'),  # ambiguous
        gbnf.parse('root ::= a | a "x" root\na ::= "e"+ | "ee" a "é"'),
        gbnf.parse('root ::= x root | x\nx ::= "(" root ")" | "a"'),
    ],
)
def test_masks(grammar: Grammar) -> None:
    signs = [one.encode() for one in '[]019",+*()abefilnst=:;<-# \néselect']
    words = [b"if ", b"if", b"listen", b"ed", b"else", b"else ", b"select", b" from ", b"[[", b"]]", b"((", b"))", b'",']
    compare(grammar, signs, words, walks=6, length=14)


@settings(max_examples=100)
@given(st.fixed_dictionaries({"S": NODES, "A": NODES, "B": NODES}), st.booleans())
def test_masks_of_random_grammars(rules: dict[str, Node], merged: bool) -> None:
    try:
        grammar = grammar_of(merge(rules, Limits()) if merged else rules, "S", Limits(), longest=not merged)
    except GrammarError:
        assume(False)
    words = [b"".join(one) for length in (2, 3) for one in product((b"a", b"b"), repeat=length)]
    compare(grammar, [], words, walks=3, length=5)


def compare(grammar: Grammar, signs: list[bytes], words: list[bytes], walks: int, length: int) -> None:
    chosen = random.Random(0)
    pieces = [bytes((byte,)) for byte in range(256)] + words
    pieces += [b"".join(chosen.choices(signs, k=chosen.randint(2, 5))) for _ in range(150) if signs]
    pieces += [b"", b"\xc3\xa9\xe2", b"\xa9"]
    end = pieces.index(b"")
    matcher, vocabulary = Matcher(grammar), Vocabulary(pieces, [end])
    compiled = CompiledGrammar(grammar, vocabulary)
    for _ in range(walks):
        state, configuration = compiled.start(), matcher.start
        for _ in range(length):
            expected = matcher.mask(configuration, pieces)
            expected[end] = matcher.ended(configuration)
            assert _mask(state, vocabulary) == expected
            legal = [token for token, may in enumerate(expected) if may and token != end]
            # Readings of an ambiguous text multiply without end; the machine would share or drop some.
            if not legal or len(configuration) > MOST_READINGS:
                break
            token = chosen.choice(legal)
            state.advance(token)
            configuration = matcher.advance(configuration, pieces[token])


def _mask(state: State, vocabulary: Vocabulary) -> list[bool]:
    mask = np.full(vocabulary.words, -1, np.int32)
    state.fill(mask)
    bits = np.unpackbits(mask.view(np.uint8), bitorder="little")
    assert not bits[vocabulary.tokens :].any()
    return [bool(bit) for bit in bits[: vocabulary.tokens]]
