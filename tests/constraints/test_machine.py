"""The machine against trying everything: masks bit for bit, over hand-written and random grammars."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.constraints.brute import Brute
from tests.constraints.grammars import GRAMMARS, arrays, json, listen, rules

from hasten.engine.decoding.constraints.base import GrammarError, Limits
from hasten.engine.decoding.constraints.grammar import Act, Grammar, Plan, Row, Terminal
from hasten.engine.decoding.constraints.languages import chars, repeat, text, words
from hasten.engine.decoding.constraints.machine import CompiledGrammar, State, Vocabulary

ENDS = {3}
NUMBERED = [b"<none>", b"", b"", b"</s>"]
STRINGS = ['"', "a", "b", "ab", ":", ",", "{", "}", "[", "]", " ", "1", "0.", "-", "é", "😀", "\\n", "\\u00", "\\ud83d\\ude00"]
STRINGS += ["+", "(", ")", "true", "list", "en", "ed", "if", "<a>", "</a>", '"a":', '":', '",', '"a', '{"', '"}', "]]", ', "']
VALUES = [b"1", b"1.0", b"10", b",", b", ", b'"a"', b'"b"', b'"\\u00', b'\\u0061"', b'"', b"{", b"}", b"[", b"]", b'{"a":1']
VALUES += [b":", b'"c":', b'"c', b'":2', b'"ab":"x"', b'"b":{', b"true", b'"a":1', b'},{"a":', b"1,1", b'"c":1,', b"],["]
VALUES += [b"[]", b"0}", b"],", b"]]", b"},", b"}}", b"1,", b"1]"]


def mixed(seed: int) -> list[bytes]:
    """All single bytes and random strings; some several times, some cut inside a character."""
    draw = random.Random(seed)
    extra = []
    for _ in range(90):
        whole = "".join(draw.choices(STRINGS, k=draw.randint(1, 4))).encode()
        start = draw.randint(0, min(2, len(whole) - 1)) if draw.random() < 0.3 else 0
        extra.append(whole[start : draw.randint(start + 1, len(whole)) if draw.random() < 0.3 else None])
    return [*NUMBERED, *(bytes([b]) for b in range(256)), *extra, *draw.sample(extra, 5)]


def legal(state: State, plain: bool = False) -> set[int]:
    """From a poisoned mask, so that a word which is not written is noticed."""
    mask = np.full(state.grammar.vocabulary.words, -0x5A5A5A5B, np.int32)
    (state.fill_plain if plain else state.fill)(mask)
    bits = np.unpackbits(mask.view(np.uint8), bitorder="little")
    assert not bits[state.grammar.vocabulary.tokens :].any()
    return set(map(int, np.flatnonzero(bits)))


def walk(grammar: Grammar, pieces: list[bytes], seed: int, steps: int, limits: Limits | None = None) -> list[bytes | int]:
    compiled = CompiledGrammar(grammar, Vocabulary(pieces, sorted(ENDS)), limits)
    return compare(Brute(grammar), compiled, pieces, seed, steps)


def compare(brute: Brute, compiled: CompiledGrammar, pieces: list[bytes], seed: int, steps: int) -> list[bytes | int]:
    """A random text, token by token: every mask, and whether it may end."""
    draw = random.Random(seed)
    config, state = frozenset({brute.start()}), compiled.start()
    past: list[bytes | int] = []
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
    return past


@pytest.mark.parametrize("name", GRAMMARS)
def test_masks_are_those_of_trying_everything(name: str) -> None:
    for seed in range(2):
        walk(GRAMMARS[name], mixed(seed), seed, 10)


@pytest.mark.parametrize("name", [name for name in GRAMMARS if name.startswith(("objects", "arrays", "two"))])
def test_masks_inside_containers(name: str) -> None:
    """With few tokens, of structure, so that walks get deep and repeat keys and items."""
    longest = max((walk(GRAMMARS[name], [*NUMBERED, *VALUES], seed, 30) for seed in range(20)), key=len)
    assert len(longest) > (1 if name == "arrays empty" else 5)


def test_masks_when_memory_is_short() -> None:
    """Everything is forgotten and renumbered after every token."""
    limits = Limits(bytes=1)
    for name in ("json", "objects any", "arrays unique", "palindromes", "counted"):
        walk(GRAMMARS[name], [*NUMBERED, *VALUES, b"a", b"b"], 1, 20, limits)


SYMBOLS = st.sampled_from(["A", "B", "C", "x", "y", "z"])
RULES = st.lists(st.lists(SYMBOLS, min_size=1, max_size=3), min_size=1, max_size=3)
A_OR_B = chars((97, 98))
LANGUAGES = st.sampled_from(
    [*map(text, ("a", "b", "ab")), words(["a", "ba"]), words(["ab", "abab"]), repeat(text("a"), 1), repeat(A_OR_B, 1)]
)


@settings(max_examples=150)
@given(st.lists(RULES, min_size=3, max_size=3), st.lists(LANGUAGES, min_size=3, max_size=3), st.booleans(), st.integers(0, 9))
def test_random_grammars(productions: list[list[list[str]]], languages: list, longest: bool, seed: int) -> None:
    lines = [
        f"{left}: {' | '.join(' '.join(right) for right in rights)}" for left, rights in zip("ABC", productions, strict=True)
    ]
    terminals = {name: Terminal(one, priority=i) for i, (name, one) in enumerate(zip("xyz", languages, strict=True))}
    grammar = rules("A", "\n".join(lines), terminals, longest=longest)
    pieces = [*NUMBERED, b"a", b"b", b"ab", b"ba", b"aab", b"bb", b"abab"]
    try:
        compiled = CompiledGrammar(grammar, Vocabulary(pieces, sorted(ENDS)))
    except GrammarError as error:
        assert "allows no text" in str(error)
        return
    try:
        compare(Brute(grammar), compiled, pieces, seed, 5)
    except AssertionError:
        # Where a grammar is ambiguous, what is longest and what has priority is found for each reading by itself.
        if not (longest and compiled.report()["conflicts"]):
            raise


def vocabulary() -> tuple[Vocabulary, dict[bytes, int]]:
    pieces = [*NUMBERED, *dict.fromkeys([*(bytes([b]) for b in range(256)), *VALUES])]
    return Vocabulary(pieces, sorted(ENDS)), {piece: token for token, piece in enumerate(pieces)}


@pytest.mark.parametrize("name", ["json right", "objects any", "arrays unique", "two objects", "ambiguous"])
def test_fork_and_rollback_are_a_replay(name: str) -> None:
    """Random walks of several forks, each compared with a state that has read the same from the start."""
    table, _ = vocabulary()
    compiled, draw = CompiledGrammar(GRAMMARS[name], table), random.Random(7)
    states: list[tuple[State, list[int]]] = [(compiled.start(), [])]
    for _ in range(150):
        index = draw.randrange(len(states))
        state, past = states[index]
        choices = sorted(legal(state) - ENDS)
        action = draw.random()
        if action < 0.15 and len(states) < 6:
            states.append((state.fork(), list(past)))
        elif (action < 0.4 or not choices) and past:
            count = draw.randint(0, len(past))
            state.rollback(count)
            del past[len(past) - count :]
        elif choices:
            past.append(draw.choice(choices))
            state.advance(past[-1])
        again = compiled.start()
        for token in past:
            again.advance(token)
        assert legal(again) == legal(state)


def test_what_follows_a_container_depends_on_the_one_around_it() -> None:
    """The frame below is first looked at when the next lexeme starts, behind the end that the token begins with."""
    table, token = vocabulary()
    compiled = CompiledGrammar(arrays((Row(most=2),)), table)
    for text_before, more in ((b"[[1", True), (b"[1,[1", False), (b"[[[1", True), (b"[[1,[1", False)):
        state = compiled.start()
        for byte in text_before:
            state.advance(token[bytes([byte])])
        assert (token[b"],"] in legal(state)) == more and token[b"]"] in legal(state)


def test_what_is_not_legal_changes_nothing() -> None:
    table, token = vocabulary()
    state = CompiledGrammar(GRAMMARS["objects closed"], table).start()
    for piece in (b"{", b'"a":1', b","):
        state.advance(token[piece])
    before = legal(state)
    with pytest.raises(ValueError, match=r"expected .*ab, b") as caught:
        state.advance(token[b'"a":1'])
    assert "other" not in str(caught.value)
    for bad in (-1, table.tokens, 3):
        with pytest.raises(ValueError, match="not legal"):
            state.advance(bad)
    with pytest.raises(ValueError, match="4 tokens cannot be undone"):
        state.rollback(4)
    assert legal(state) == before and not state.ended
    assert state.match(b'"b":{"x":1}}') == 6 and state.match(b'"b":{"ab":"","a":1},"ab":"","a":1') == 27


def test_the_end_of_a_text() -> None:
    table, token = vocabulary()
    state = CompiledGrammar(json(True), table).start()
    for piece in (b"[", b"1", b"]"):
        assert not state.ended and not legal(state) & ENDS
        state.advance(token[piece])
    assert state.ended and legal(state) == ENDS and state.expected() == ["]", "the end"]
    state.advance(3)
    assert not state.ended and legal(state) == set()
    state.rollback(1)
    assert state.ended


def test_forced_bytes() -> None:
    table, _ = vocabulary()
    state = CompiledGrammar(listen(False), table).start()
    assert state.forced_bytes() == b"list"
    state = CompiledGrammar(GRAMMARS["two objects"], table).start()
    assert state.forced_bytes() == b"{"
    state = CompiledGrammar(rules("s", "s: t s t | t", {"t": Terminal(text("a"))}), table).start()
    assert state.forced_bytes() == b"a"
    long = CompiledGrammar(rules("s", "s: t", {"t": Terminal(text("a" * 999))}), table)
    assert long.start().forced_bytes() == b"a" * 256


def test_many_masks_at_once() -> None:
    table, _ = vocabulary()
    grammars = [CompiledGrammar(GRAMMARS[name], table) for name in ("json", "objects any", "counted")]
    states = [compiled.start() for compiled in grammars * 5]
    for state in states[::2]:
        state.advance(min(legal(state) - ENDS))
    for threads in (1, 3):
        masks = np.full((len(states), table.words), 77, np.int32)
        State.fill_many(states, masks, threads)
        alone = np.zeros(table.words, np.int32)
        for state, mask in zip(states, masks, strict=True):
            state.fill(alone)
            assert (alone == mask).all()
    with pytest.raises(ValueError, match="int32"):
        State.fill_many(states, masks.astype(np.int64))
    with pytest.raises(ValueError, match=r"int32 \[9\]"):
        states[0].fill(np.zeros(8, np.int32))
    other = CompiledGrammar(json(True), Vocabulary([b"1"], [])).start()
    with pytest.raises(ValueError, match="several vocabularies"):
        State.fill_many([states[0], other], masks[:2])


def test_what_no_grammar_is_refused() -> None:
    table, _ = vocabulary()
    unproductive = rules("s", "s: t s", {"t": Terminal(text("a"))})
    with pytest.raises(GrammarError, match="allows no text"):
        CompiledGrammar(unproductive, table)
    with pytest.raises(GrammarError, match="token 9999 is not in the vocabulary"):
        CompiledGrammar(rules("s", "s: t", {"t": Terminal(text("a"), act=Act.TOKEN, argument=9999)}), table)
    with pytest.raises(GrammarError, match="only strings' characters are counted"):
        CompiledGrammar(rules("s", "s: t", {"t": Terminal(text("a"), most=3)}), table)
    with pytest.raises(GrammarError, match="needs a token"):
        Vocabulary([], [])
    with pytest.raises(GrammarError, match="no token of the vocabulary"):
        Vocabulary([b"a"], [1])


def test_hostile_blobs() -> None:
    """Whatever the bytes are: an error, or a grammar that can be used."""
    table, _ = vocabulary()
    draw = random.Random(3)
    mask = np.zeros(table.words, np.int32)
    refused = 0
    for name, _ in itertools.product(("objects either", "arrays witness", "keywords", "marked"), range(150)):
        blob = bytearray(GRAMMARS[name].blob())
        for _ in range(draw.randint(1, 4)):
            at = draw.randrange(len(blob) // 4) * 4
            value = draw.choice([0, 1, -1, 7, 2**31 - 1, -(2**31), draw.randrange(256)])
            blob[at : at + 4] = value.to_bytes(4, "little", signed=True)
        if draw.random() < 0.3:
            del blob[draw.randrange(len(blob)) :]
        try:
            state = CompiledGrammar(bytes(blob), table, Limits(seconds=0.5)).start()
        except GrammarError:
            refused += 1
            continue
        for _ in range(6):
            state.fill(mask)
            choices = sorted(legal(state) - ENDS)
            if not choices:
                break
            state.advance(draw.choice(choices))
    assert 100 < refused < 600


def test_memory_is_bounded_and_reported() -> None:
    table, token = vocabulary()
    compiled = CompiledGrammar(json(True), table, Limits(bytes=200_000))
    state = compiled.start()
    for i in range(3000):
        state.advance(token[b"["])
        legal(state)
        assert i % 100 or compiled.bytes < 1_500_000
    report = compiled.report()
    assert report["conflicts"] == 0 and report["states"] > 10
    assert CompiledGrammar(GRAMMARS["palindromes"], table).report()["bytes"] > 0


def test_a_grammar_with_too_many_readings_goes_on_with_some() -> None:
    table, token = vocabulary()
    grammar = rules("s", "s: s s | a | b | c | d", {name: Terminal(text("a")) for name in "abcd"})
    compiled = CompiledGrammar(grammar, table)
    state = compiled.start()
    for _ in range(12):
        assert legal(state) - ENDS == {token[b"a"]}
        state.advance(token[b"a"])
    assert state.ended


def test_a_count_of_items_beyond_what_matters_is_not_remembered() -> None:
    """The frames of long lists are equal, so their masks are found again."""
    table, token = vocabulary()
    grammar = rules(
        "l",
        "l: [ i ]\ni: one | i , one",
        {
            "[": Terminal(text("["), act=Act.OPEN),
            ",": Terminal(text(","), act=Act.COMMA),
            "]": Terminal(text("]"), act=Act.CLOSE),
            "one": Terminal(text("1")),
        },
        (Plan(True, (Row(least=2),)),),
    )
    compiled = CompiledGrammar(grammar, table)
    state = compiled.start()
    state.advance(token[b"["])
    sizes = []
    for _ in range(40):
        for piece in (b"1", b","):
            legal(state)
            state.advance(token[piece])
        sizes.append(compiled.report()["leaves"])
    assert sizes[5] == sizes[-1]
