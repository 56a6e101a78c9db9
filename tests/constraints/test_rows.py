"""Masks over a vocabulary so large that rows are shared, derived and changed, against walking all of it."""

from __future__ import annotations

import random
from functools import cache

import numpy as np
import pytest
from tests.constraints.grammars import GRAMMARS, OTHER_KEYS, counted, objects, rules

from hasten.engine.decoding.constraints.grammar import Form, Grammar, Row, Terminal
from hasten.engine.decoding.constraints.languages import ANY, EVERYTHING, both, cat, chars, repeat, text, without, words
from hasten.engine.decoding.constraints.machine import CompiledGrammar, Vocabulary

HEX = chars((48, 57), (97, 102))


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
