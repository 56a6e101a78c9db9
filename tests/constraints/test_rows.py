"""Masks over a vocabulary so large that rows are shared, derived and changed, against walking all of it."""

from __future__ import annotations

import random
from functools import cache

import numpy as np
import pytest
from tests.constraints.grammars import GRAMMARS, OTHER_KEYS, counted, objects, rules

from hasten.engine.decoding.constraints.grammar import Form, Grammar, Row, Terminal
from hasten.engine.decoding.constraints.languages import (
    ANY,
    EVERYTHING,
    Expr,
    both,
    cat,
    chars,
    either,
    repeat,
    text,
    without,
    words,
)
from hasten.engine.decoding.constraints.machine import CompiledGrammar, Vocabulary

HEX = chars((48, 57), (97, 102))
LETTER = chars((97, 122), (223, 255))


def without_signs() -> Expr:
    return both(ANY, without(words("<>*#:/\\")))


@cache
def vocabulary() -> tuple[list[bytes], Vocabulary]:
    draw = random.Random(5)
    parts = ["a", "b", "e", "s", "1", "9", " the", "ing", "é", "ß", "漢", "😀", "-", " ", "\t", "_", "'"]
    parts += ['"', '":', '",', "\\\\", "\\n", "\\u00", "{", "}", "[", "]", ", ", ": "]
    rare = [0.3 if any(sign in part for sign in '"\\\\{}[]:\t') else 1.0 for part in parts]
    pieces = {"".join(draw.choices(parts, rare, k=draw.randint(1, 6))).encode() for _ in range(7000)}
    pieces |= {piece[:-1] for piece in list(pieces)[:300]} | {piece[1:] for piece in list(pieces)[:300]}
    table = [b"</s>", *(bytes([b]) for b in range(256)), *sorted(pieces - {b""}), b"the", b"the"]
    return table, Vocabulary(table, [0])


def name_of(language: object, form: Form = Form.TEXT) -> Grammar:
    return rules("s", "s: t | s stop t", {"t": Terminal(language, form), "stop": Terminal(words([";", "; "]))})  # type: ignore[arg-type]


CASES = {
    "json": GRAMMARS["json"],
    "objects": objects((Row(),)),
    "objects again": objects((Row(frozenset({1, 2}), most=4),)),
    "two objects": GRAMMARS["two objects"],
    "unique": GRAMMARS["arrays unique"],
    "other keys": name_of(OTHER_KEYS.language, Form.STRING),
    "no such words": name_of(both(EVERYTHING, without(cat(EVERYTHING, words(["the", "then", "beast"]), EVERYTHING)))),
    "six of sixteen": name_of(both(EVERYTHING, without(cat(EVERYTHING, repeat(HEX, 6, 6), EVERYTHING)))),
    "identifiers": name_of(cat(chars((97, 122)), repeat(chars((97, 122), (48, 57), (95, 95))))),
    "single characters": rules("s", "s: c | s c", {"c": Terminal(ANY)}),
    "words of a kind": rules("s", "s: w | s w", {"w": Terminal(cat(text(" "), repeat(chars((97, 122)), 1)))}),
    "short": counted(0, 9),
    "long": counted(40, None),
    "between": counted(5, 30, Form.STRING),
    "short or listed": name_of(repeat(ANY, 0, 12), Form.STRING),
    # Counted by their automata: states that are alike for all tokens, for some, for none.
    "letters, at most 60": name_of(cat(LETTER, repeat(either(LETTER, text(" ")), 0, 59)), Form.STRING),
    "letters, at most 7": name_of(repeat(LETTER, 1, 7)),
    "no signs, 5 to 300": name_of(repeat(without_signs(), 5, 300), Form.STRING),
    "dozens of hex digits": name_of(repeat(HEX, 24, 24), Form.STRING),
    "every third": name_of(repeat(cat(ANY, ANY, text("e")), 1, 40)),
    "longer or shorter": name_of(either(repeat(LETTER, 3, 30), cat(repeat(LETTER, 10, 20), text("1")))),
}


@pytest.mark.parametrize("name", CASES)
def test_masks_are_those_of_a_plain_walk(name: str) -> None:
    pieces, table = vocabulary()
    compiled = CompiledGrammar(CASES[name], table)
    mask, plain = np.full(table.words, -1, np.int32), np.full(table.words, 99, np.int32)
    draw = random.Random(name)
    for _ in range(6):
        state = compiled.start()
        for _ in range(14):
            state.fill(mask)
            state.fill_plain(plain)
            assert (mask == plain).all()
            legal = np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))
            legal = legal[legal > 0]
            if not len(legal):
                break
            structure = [token for token in legal if set(pieces[token]) & set(b'{}[]:,";')]
            state.advance(int(draw.choice(structure if structure and draw.random() < 0.4 else list(legal))))
    assert compiled.report()["leaves"] > 0


def test_counts_that_no_token_can_tell_apart_share_a_mask() -> None:
    pieces, table = vocabulary()
    longest = max(len(piece) for piece in pieces if piece.decode(errors="replace").isalpha())
    assert longest < 30
    compiled = CompiledGrammar(name_of(repeat(LETTER, 1, 200)), table)
    state, letter = compiled.start(), pieces.index(b"a")
    mask, leaves = np.zeros(table.words, np.int32), []
    for _ in range(200):
        state.advance(letter)
        state.fill(mask)
        leaves.append(compiled.report()["leaves"])
    assert leaves[2] == leaves[150] and leaves[150] < leaves[199] < leaves[150] + 2 * longest + 10
