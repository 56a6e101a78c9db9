"""The machine against trying everything: masks bit for bit, over hand-written and random grammars."""

from __future__ import annotations

import random

import numpy as np
import pytest

pytest.importorskip("hasten.engine.decoding.constraints.native").library()
from tests.constraints.brute import Brute
from tests.constraints.grammars import GRAMMARS

from hasten.engine.decoding.constraints.grammar import Grammar
from hasten.engine.decoding.constraints.machine import CompiledGrammar, State, Vocabulary

ENDS = {3}
PIECES = [b"<none>", b"", b"", b"", *(bytes([b]) for b in range(256))]


def vocabulary_for(seed: int) -> tuple[list[bytes], Vocabulary]:
    """All single bytes, strings that occur in the grammars' texts, and random ones; some several times, some cut inside a character."""
    draw = random.Random(seed)
    alphabet = [
        '"',
        "a",
        "b",
        "ab",
        ":",
        ",",
        "{",
        "}",
        "[",
        "]",
        " ",
        "1",
        "0.",
        "-",
        "é",
        "😀",
        "\\n",
        "\\u00",
        "\\ud83d\\ude00",
        "+",
    ]
    alphabet += [
        "(",
        ")",
        "true",
        "list",
        "en",
        "ed",
        "if",
        "<a>",
        "</a>",
        '"a":',
        '":',
        '",',
        '"a',
        '{"',
        '"}',
        "]]",
        "}}",
        ', "',
    ]
    extra = []
    for _ in range(90):
        whole = "".join(draw.choices(alphabet, k=draw.randint(1, 4))).encode()
        start = draw.randint(0, min(2, len(whole) - 1)) if draw.random() < 0.3 else 0
        extra.append(whole[start : draw.randint(start + 1, len(whole)) if draw.random() < 0.3 else None])
    pieces = [*PIECES, *extra, *draw.sample(extra, 5)]
    return pieces, Vocabulary(pieces, sorted(ENDS))


def legal(state: State, plain: bool = False) -> set[int]:
    """From a poisoned mask, so that a word which is not written is noticed."""
    mask = np.full(state.grammar.vocabulary.words, -0x5A5A5A5B, np.int32)
    (state.fill_plain if plain else state.fill)(mask)
    bits = np.unpackbits(mask.view(np.uint8), bitorder="little")
    assert not bits[state.grammar.vocabulary.tokens :].any()
    return set(map(int, np.flatnonzero(bits)))


def walk(grammar: Grammar, seed: int, steps: int) -> None:
    """A random text, token by token: every mask, and whether it may end."""
    pieces, vocabulary = vocabulary_for(seed)
    draw = random.Random(seed)
    brute, compiled = Brute(grammar), CompiledGrammar(grammar, vocabulary)
    config, state = frozenset({brute.start()}), compiled.start()
    past = []
    for _ in range(steps):
        expected = brute.mask(config, pieces, ENDS)
        for plain in (True, False):
            found = legal(state, plain)
            assert found == expected, (past, plain, [pieces[i] for i in found ^ expected])
        assert state.ended == brute.ended(config)
        choices = sorted(expected - ENDS)
        if not choices:
            break
        longer = [token for token in choices if len(pieces[token]) > 1 or not pieces[token]]
        token = draw.choice(longer if longer and draw.random() < 0.6 else choices)
        state.advance(token)
        config = brute.token(config, token) | (brute.read(config, pieces[token]) if pieces[token] else frozenset())
        past.append(pieces[token] or token)


@pytest.mark.parametrize("name", GRAMMARS)
def test_masks_are_those_of_trying_everything(name: str) -> None:
    for seed in range(3):
        walk(GRAMMARS[name], seed, 12)
