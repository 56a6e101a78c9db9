"""What a grammar may cost whoever serves it, and who may free what in which order."""

from __future__ import annotations

import gc
import random
import time
from itertools import permutations, product

import numpy as np
import pytest
from tests.constraints.grammars import json, rules, signs

from hasten.engine.decoding.constraints.base import GrammarError, Limits
from hasten.engine.decoding.constraints.grammar import Grammar, Terminal
from hasten.engine.decoding.constraints.languages import Expr, cat, chars, optional, repeat, text, words
from hasten.engine.decoding.constraints.machine import CompiledGrammar, State, Vocabulary
from hasten.engine.decoding.constraints.native import Language

BYTES = [b"", *(bytes([b]) for b in range(256))]


def mask_of(state: State) -> list[int]:
    mask = np.zeros(state.grammar.vocabulary.words, np.int32)
    state.fill(mask)
    return mask.tolist()


def test_states_outlive_what_they_come_from() -> None:
    """Garbage collectors free a cycle's members in any order."""
    vocabulary = Vocabulary([*BYTES, b"[[", b"]]"], [0])
    compiled = CompiledGrammar(json(True), vocabulary)
    state = compiled.start()
    state.advance(1 + ord("["))
    before = mask_of(state)
    compiled.__del__()
    vocabulary.__del__()
    assert mask_of(state) == before
    other = state.fork()
    del state
    other.advance(1 + ord("]"))
    assert other.ended

    holder: dict[str, object] = {"grammar": CompiledGrammar(json(True), Vocabulary(BYTES, [0]))}
    holder["state"] = holder["grammar"].start()  # type: ignore[attr-defined]
    holder["self"] = holder
    del holder
    gc.collect()


# ---- compiling


def chain(length: int) -> Grammar:
    """Rules that each begin with the next one or a terminal of their own, the last one first: what a rule begins with grows
    by one terminal a rule."""
    grammar = Grammar()
    terminals = [grammar.terminal(Terminal(text(f"t{i};"), name=f"t{i}")) for i in range(length)]
    end = grammar.terminal(Terminal(text("x"), name="x"))
    names = [grammar.nonterminal(f"a{i}") for i in reversed(range(length))][::-1]
    for i in range(length):
        grammar.produce(names[i], terminals[i])
        if i + 1 < length:
            grammar.produce(names[i], names[i + 1], end)
    grammar.start = names[0]
    return grammar


def test_what_rules_begin_with_is_found_in_order() -> None:
    vocabulary, grammar = Vocabulary(BYTES, [0]), chain(1500)
    began = time.process_time()
    state = CompiledGrammar(grammar, vocabulary).start()
    assert time.process_time() - began < 2, "seventeen seconds and 2 GB where each step on the way is kept"
    assert len(state.expected()) == 1500 and state.match(b"t1499;xx") == 8 and state.match(b"t1;xx") == 4


def test_what_rules_begin_with_goes_round_circles() -> None:
    """Whichever of them is looked at first, and wherever in the circle the terminal is found."""
    circle = {"b": "a y | t", "a": "c x", "c": "b"}
    for order in permutations(circle):
        lines = "".join(f"{left}: {circle[left]}\n" for left in order)
        for inner in circle:
            compiled = CompiledGrammar(rules("s", f"{lines}s: z {inner}\nz: q", signs("x y t q")), Vocabulary(BYTES, [0]))
            assert compiled.start().match(b"qtxyx") == 5, (order, inner)


def test_what_rules_begin_with_is_bounded() -> None:
    with pytest.raises(GrammarError, match="what its rules begin with takes too much memory"):
        CompiledGrammar(chain(10_000), Vocabulary(BYTES, [0]))


EVEN = [(0x4E00 + 2 * i, 0x4E00 + 2 * i) for i in range(3000)]
HOSTILE: dict[str, tuple[Expr, str]] = {
    "large sets": (cat(*(chars((0x4E00 + i, 0x7000)) for i in range(4500))), "too many and too large"),
    "ambiguous": (cat(repeat(optional(chars(*EVEN)), 3000, 3000), *(chars(one) for one in EVEN)), "too ambiguous"),
    "scattered": (repeat(chars(*EVEN), 1, 20_000), "too many|more than"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_languages_that_would_need_gigabytes(name: str) -> None:
    expr, why = HOSTILE[name]
    began = time.process_time()
    with pytest.raises(GrammarError, match=why):
        Language(expr)
    assert time.process_time() - began < 4


def test_automata_that_nobody_asks_for_are_forgotten() -> None:
    draw, vocabulary = random.Random(1), Vocabulary(BYTES, [0])
    signs = [chr(one) for one in range(33, 127)]

    def large() -> Grammar:
        return rules("s", "s: t", {"t": Terminal(words("".join(draw.choices(signs, k=8)) for _ in range(2500)))})

    total = 0
    while total < 200 << 20:
        compiled = CompiledGrammar(large(), vocabulary)
        assert compiled.bytes > 2 << 20, "a grammar is charged for its automata"
        total += compiled.bytes
        assert 2 << 20 < compiled.report()["automata_bytes"] <= 128 << 20


# ---- masks


def test_a_mask_that_would_take_seconds_is_refused() -> None:
    """More readings than anybody can follow; what was there before the call is there after it."""
    pieces = [*BYTES, *(bytes(one) for length in range(2, 13) for one in product(b"ab", repeat=length))]
    letters = chars((97, 122))
    grammar = rules(
        "s",
        "s: s s | s s s | a | b | u\nu: s u s | a",
        {"a": Terminal(repeat(letters, 1)), "b": Terminal(repeat(letters, 1, 3))},
    )
    vocabulary = Vocabulary(pieces, [0])
    state = CompiledGrammar(grammar, vocabulary).start()
    state.advance(1 + ord("a"))
    with pytest.raises(GrammarError, match="following all of it takes too long"):
        for _ in range(12):
            mask_of(state)
            state.advance(1 + ord("a"))
    assert state.ended and state.match(b"a") == 1
    before, other = state.fork(), CompiledGrammar(json(True), vocabulary).start()
    masks = np.zeros((2, vocabulary.words), np.int32)
    with pytest.raises(GrammarError, match="takes too long"):
        State.fill_many([state, other], masks, 2)
    assert masks[1].tolist() == mask_of(other)
    state.advance(1 + ord("b"))
    state.rollback(1)
    assert state.expected() == before.expected()


def test_an_automaton_that_outgrows_its_memory_stops() -> None:
    """Each opening sign gives the rule another follower, and so a state of its own with all of its productions."""
    count = 3600
    terminals = {f"o{i}": Terminal(text(chr(0x4E00 + i))) for i in range(count)} | {
        f"c{i}": Terminal(text(chr(0x7E00 + i))) for i in range(count)
    }
    terminals["x"] = Terminal(text("x"))
    grammar = rules("v", "v: x | " + " | ".join(f"o{i} v c{i}" for i in range(count)), terminals)
    pieces = [b"", *(chr(0x4E00 + i).encode() for i in range(count)), b"x"]
    compiled = CompiledGrammar(grammar, Vocabulary(pieces, [0]), Limits(bytes=16 << 20))
    state, depth = compiled.start(), 0
    with pytest.raises(GrammarError, match=r"LR\(1\) automaton takes more than 128 MiB"):
        for depth in range(count):
            state.advance(1 + depth)
    assert depth > 100 and compiled.bytes < 256 << 20
    # The last sign was to be shifted then; what was read before it can go on.
    assert state.rollback(1) is None and state.match(chr(0x4E00).encode()) == 3
    state.advance(depth)
