"""Expressions compiled to automata of bytes, against a plain matcher of expressions."""

import functools
import json
import time
from ctypes import create_string_buffer

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.engine.decoding.constraints.base import GrammarError, Limits
from hasten.engine.decoding.constraints.grammar import Form
from hasten.engine.decoding.constraints.languages import (
    ANY,
    EMPTY,
    EVERYTHING,
    NOTHING,
    Expr,
    automaton,
    both,
    but,
    cat,
    chars,
    either,
    optional,
    program,
    repeat,
    text,
    without,
    words,
)
from hasten.engine.decoding.constraints.native import Language, library

A = chars((ord("a"), ord("a")))
EDGES = [
    0,
    0x1F,
    0x20,
    0x22,
    0x5C,
    0x7F,
    0x80,
    0x7FF,
    0x800,
    0xFFF,
    0x1000,
    0xD7FF,
    0xE000,
    0xFFFF,
    0x10000,
    0x3FFFF,
    0x40000,
    0x10FFFF,
]
POINTS = st.sampled_from(EDGES) | st.characters(exclude_categories=["Cs"]).map(ord)


def accepts(expr: Expr, string: str) -> bool:
    @functools.cache
    def ends(expr: Expr, at: int) -> frozenset[int]:
        kind = expr[0]
        if kind == "chars":
            return frozenset([at + 1] if at < len(string) and any(x <= ord(string[at]) <= y for x, y in expr[1]) else [])
        if kind == "words":
            return frozenset(at + len(word) for word in expr[1] if string.startswith(word, at))
        if kind == "cat":
            return functools.reduce(
                lambda found, part: frozenset().union(*(ends(part, e) for e in found)), expr[1], frozenset([at])
            )
        if kind == "either":
            return frozenset().union(*(ends(part, at) for part in expr[1]))
        if kind == "both":
            return frozenset.intersection(*(ends(part, at) for part in expr[1]))
        if kind == "without":
            return frozenset(range(at, len(string) + 1)) - ends(expr[1], at)
        if kind == "repeat":
            _, part, least, most = expr
            found, now = frozenset(), frozenset([at])
            for count in range(least + len(string) + 2):
                found |= now if count >= least and (most is None or count <= most) else frozenset()
                now = frozenset().union(*(ends(part, e) for e in now))
            return found
        return frozenset([at] if kind == "empty" else [])

    return len(string) in ends(expr, 0)


def expressions() -> st.SearchStrategy[Expr]:
    leaves = st.one_of(
        st.sampled_from([EMPTY, NOTHING, ANY, A, EVERYTHING]),
        st.text("abé", max_size=3).map(text),
        st.lists(st.text("abé", max_size=3), max_size=4).map(words),
        st.lists(st.sampled_from([(97, 97), (98, 98), (97, 98), (0xE0, 0xFF)]), max_size=2).map(lambda ranges: chars(*ranges)),
    )
    counts = st.tuples(st.integers(0, 2), st.none() | st.integers(0, 2))

    def larger(inner: st.SearchStrategy[Expr]) -> st.SearchStrategy[Expr]:
        several = st.lists(inner, min_size=1, max_size=3)
        return st.one_of(
            several.map(lambda parts: cat(*parts)),
            several.map(lambda parts: either(*parts)),
            several.map(lambda parts: both(*parts)),
            inner.map(without),
            st.tuples(inner, counts).map(lambda x: repeat(x[0], x[1][0], None if x[1][1] is None else x[1][0] + x[1][1])),
        )

    return st.recursive(leaves, larger, max_leaves=8)


@settings(max_examples=250)
@given(expressions(), st.lists(st.text("abéx", max_size=5), min_size=1, max_size=8))
def test_expressions(expr, strings):
    language, quoted = Language(expr), Language(expr, Form.STRING)
    for string in strings:
        expected = accepts(expr, string)
        assert language.match(string.encode())[1] == expected
        assert quoted.match(f'"{string}"'.encode())[1] == expected


@given(st.lists(st.tuples(POINTS, POINTS).map(sorted), max_size=4), st.lists(POINTS, max_size=20))
def test_utf8(ranges, points):
    language = Language(chars(*map(tuple, ranges)))
    for point in points + [end for ends in ranges for end in ends]:
        if not 0xD800 <= point < 0xE000:
            inside = any(low <= point <= high for low, high in ranges)
            data = chr(point).encode()
            assert language.match(data) == (len(data), True) if inside else not language.match(data)[1]


@given(POINTS)
def test_splits_of_characters(point):
    data = chr(point).encode()
    language = Language(ANY)
    for size in range(len(data)):
        assert language.match(data[:size]) == (size, False)
        assert language.match(data[:size] + b"a")[0] == (size if size else 1)


@pytest.mark.parametrize(
    "data",
    [b"\x80", b"\xc0\x80", b"\xc1\xbf", b"\xe0\x9f\xbf", b"\xed\xa0\x80", b"\xf0\x8f\xbf\xbf", b"\xf4\x90\x80\x80", b"\xff"],
)
def test_what_is_no_utf8_matches_nothing(data):
    assert not Language(EVERYTHING).match(data)[1]
    assert not Language(EVERYTHING, Form.STRING).match(b'"' + data + b'"')[1]
    assert not Language(NOTHING, Form.ANY_STRING).match(b'"' + data + b'"')[1]


@given(st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from('\x00\x08\x0b\x1f\x7f"\\/\n'), max_size=8))
def test_strings_as_json_writes_them(string):
    language = Language(text(string), Form.STRING)
    written = json.dumps(string, ensure_ascii=False)
    assert language.match(written.encode()) == (len(written.encode()), True)
    assert Language(EVERYTHING, Form.STRING).match(written.encode())[1]
    assert Language(NOTHING, Form.ANY_STRING).match(json.dumps(string).encode())[1]
    assert not language.match(written.encode()[:-1])[1]


@settings(max_examples=300)
@given(
    st.lists(
        st.sampled_from(
            ['"', "\\", "/", "u", "00", "1f", "1F", "d8", "D8", "dc", "00e9", "ud83d", "\\ude00", "b", "n", "x", "é", "\n"]
        ),
        max_size=6,
    )
)
def test_escapes_of_any_string(parts):
    data = '"' + "".join(parts) + '"'
    try:
        meant = json.loads(data)
        valid = not any(0xD800 <= ord(letter) < 0xE000 for letter in meant)
    except ValueError:
        valid = False
    assert Language(NOTHING, Form.ANY_STRING).match(data.encode())[1] == valid
    # The shortest form is one of them.
    shortest = valid and json.dumps(meant, ensure_ascii=False).replace("\\u001f", "\\u001F") == data.replace(
        "\\u001f", "\\u001F"
    )
    assert Language(EVERYTHING, Form.STRING).match(data.encode())[1] == shortest


def test_equal_languages_have_equal_automata():
    vowels = [letter + rest for letter in "aeiou" for rest in ("", "x", "y")]
    one = Language(words(vowels))
    other = Language(both(repeat(ANY, 1, 2), cat(but(but(chars(*((ord(v), ord(v)) for v in "aeiou")))), optional(words("xy")))))
    assert one.states == other.states == 3
    assert Language(both(A, text("b"))).states == 0
    assert Language(without(without(cat(A, EVERYTHING)))).states == Language(cat(A, EVERYTHING)).states
    assert Language(NOTHING).match(b"") == (0, False)
    assert Language(EMPTY).match(b"") == (0, True)


def test_automata_and_words_with_surrogates():
    even = automaton([((97, 97, 1), (98, 0x10FFFF, 0)), ((97, 97, 0),)], [0])
    assert [Language(even).match(word)[1] for word in (b"", b"aa", b"a", "zé".encode(), b"ab")] == [
        True,
        True,
        False,
        True,
        False,
    ]
    assert Language(words(["a", "\ud800", "b\udfff"])).match(b"a") == (1, True)
    assert Language(words(["\ud800"])).states == 0


def _nested(levels: int) -> Expr:
    expr: Expr = A
    for level in range(levels):
        expr = ("either", (expr, text("b"))) if level % 2 else ("repeat", expr, 0, None)
    return expr


HOSTILE = {
    "copies of copies": repeat(repeat(A, 1000, 1000), 1000, 1000),
    "more copies": repeat(repeat(A, 0, 1000), 0, 1000),
    "empty copies": repeat(repeat(optional(A), 100, 100), 100, 100),
    "2^30 copies": repeat(A, 1 << 30, 1 << 30),
    "exponential": cat(EVERYTHING, A, repeat(ANY, 30, 30)),
    "words": words(f"{n * 7919 % 100_003:x}{n}" for n in range(100_000)),
    "classes": both(
        *(without(cat(chars(*((n * m % 65536, n * m % 65536) for n in range(500))), EVERYTHING)) for m in range(1, 200))
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_expressions_are_refused_in_time(name):
    expr = HOSTILE[name]
    start = time.perf_counter()
    try:
        Language(expr, limits=Limits(seconds=1.0))
    except GrammarError:
        pass
    assert time.perf_counter() - start < 3.0


def test_deep_expressions():
    # Either an automaton or a refusal, but no overflow of the stack.
    assert Language(_nested(3_000)).match(b"ab") == (2, True)
    assert Language(_nested(100_000)).match(b"ab") == (2, True)
    assert Language(cat(repeat(repeat(A)), text("b"))).states == 2


@given(st.binary(max_size=60))
def test_programs_that_are_none(data):
    error = create_string_buffer(200)
    handle = library().hasten_language_new(data, len(data), 0, 1000, 1.0, error, 200)
    if handle is None:
        assert error.value
    else:
        library().hasten_language_free(handle)


@given(expressions(), st.data())
def test_programs_that_are_cut(expr, data):
    code = program(expr)
    cut = code[: data.draw(st.integers(0, len(code)))]
    handle = library().hasten_language_new(cut, len(cut), 1, 1000, 1.0, create_string_buffer(200), 200)
    if handle is not None:
        library().hasten_language_free(handle)
