"""Regular expressions as languages, against python's `re` where the dialects agree."""

import json
import os
import random
import re
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.engine.decoding.constraints.base import GrammarError, Limits
from hasten.engine.decoding.constraints.grammar import Form
from hasten.engine.decoding.constraints.native import Language
from hasten.engine.decoding.constraints.regex import parse

SAMPLE = Path(os.environ.get("HASTEN_DATA", "shared/data"), "maskbench-sample.jsonl")


def found(pattern: str, string: str, search: bool = True) -> bool:
    return Language(parse(pattern, search=search)).match(string.encode())[1]


def in_python(pattern: str) -> str:
    """python's `$` also matches before a line end."""
    return re.sub(r"(\\.|\[(?:\\.|[^\]\\])*\])|\$", lambda token: token[1] or r"\Z", pattern)


LEAVES = st.sampled_from(
    ["a", "b", "ab", "-", "é", ".", r"\d", r"\w", r"\S", r"\D", "[ab]", "[^a]", r"[a-c\d-]", r"\x61", "(?:)", "^", "$"]
)
LOOKAHEADS = st.sampled_from(["(?=a)", "(?!ab)", "(?=.*1)", "(?!.*b$)", "(?=a(?!b))"])
REPEATS = st.sampled_from(["", "", "*", "+", "?", "{2}", "{1,}", "{0,2}", "*?", "{1,2}?"])


def patterns(leaves: st.SearchStrategy[str] = LEAVES) -> st.SearchStrategy[str]:
    def larger(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        several = st.lists(inner, min_size=1, max_size=4)
        return st.one_of(
            several.map("".join),
            several.map("|".join).map("(?:{})".format),
            st.tuples(inner, REPEATS).map(lambda x: f"({x[0]}){x[1]}"),
        )

    return st.recursive(leaves, larger, max_leaves=8)


STRINGS = st.lists(st.text("ab1-é\n", max_size=5), min_size=1, max_size=8)


@settings(max_examples=300)
@given(patterns(), STRINGS)
def test_as_python_finds_it(pattern, strings):
    searched, matched = Language(parse(pattern, search=True)), Language(parse(pattern, search=False))
    python = re.compile(in_python(pattern), re.ASCII)
    for string in strings:
        assert searched.match(string.encode())[1] == bool(python.search(string))
        assert matched.match(string.encode())[1] == bool(python.fullmatch(string))


@settings(max_examples=200)
@given(st.lists(patterns(LEAVES | LOOKAHEADS), min_size=1, max_size=3), STRINGS)
def test_lookahead(parts, strings):
    pattern = "".join(parts)
    try:
        language, matched = Language(parse(pattern, search=True)), Language(parse(pattern, search=False))
    except GrammarError as refused:
        assert "lookahead" in str(refused) or "states" in str(refused)
        return
    python = re.compile(in_python(pattern), re.ASCII)
    for string in strings:
        assert language.match(string.encode())[1] == bool(python.search(string))
        assert matched.match(string.encode())[1] == bool(python.fullmatch(string))


@pytest.mark.skipif(not SAMPLE.exists(), reason="no MaskBench sample")
def test_patterns_of_maskbench():
    wanted: set[str] = set()
    strings: set[str] = {""}

    def gather(node: object, schema: bool) -> None:
        if isinstance(node, dict):
            if schema and isinstance(node.get("pattern"), str):
                wanted.add(node["pattern"])
            if schema and isinstance(node.get("patternProperties"), dict):
                wanted.update(node["patternProperties"])
            strings.update(node if not schema else ())
            for value in node.values():
                gather(value, schema)
        elif isinstance(node, list):
            for value in node:
                gather(value, schema)
        elif isinstance(node, str) and not schema and len(node) < 60:
            strings.add(node)

    for line in SAMPLE.open():
        row = json.loads(line)
        gather(row["schema"], True)
        for test in row["tests"]:
            gather(test["data"], False)
    dice = random.Random(0)
    pool = sorted(strings)
    assert len(wanted) > 300
    for pattern in sorted(wanted):
        language = Language(parse(pattern, search=True), Form.STRING)
        python = re.compile(in_python(pattern), re.ASCII)
        for string in dice.sample(pool, 200):
            if "\x7f" in string or (re.search(r"[\r\u2028\u2029]|[^\S\n]", string) and not string.isascii()):
                continue
            for one in (string, string[: len(string) // 2], string + "/1", string.upper()):
                expected = bool(python.search(one))
                assert language.match(json.dumps(one, ensure_ascii=False).encode())[1] == expected, (pattern, one)


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        (r"^\s$", " \u00a0\ufeff\u2028\v", "a\u200b"),
        (r"^.$", "a\u0085😀", "\n\r\u2028\u2029"),
        (r"^[^]$", "a\n", ""),
        (r"^\w$", "aZ_0", "é-"),
        (r"^\u{1F600}$", "😀", "a"),
        (r"^\ud83d\ude00$", "😀", "a"),
        (r"^[\ud83d\ude00-\ud83d\ude02]$", "😀😁😂", "😃"),
        (r"^\cJ$", "\n", "J"),
        (r"^[\b]$", "\b", "b"),
        (r"^\0$", "\0", "0"),
        (r"^[a\-z]$", "a-z", "b"),
        (r"^[\w-.]$", "a-.", "/"),
        (r"^[-a]$", "-a", "b"),
        (r"^\p{Lu}$", "AÉ", "aé1"),
        (r"^\p{Letter}$", "aé字", "1"),
        (r"^\P{L}$", "1 ", "a"),
        (r"^[^\p{Nd}]$", "a", "1٣"),
        (r"^\/\-\.$|^\@$", "@", "/"),
        (r"^(?<year>a)$|^(?P<b>b)$", "ab", "c"),
        ("^a{$|^}$|^]$", "}]", "a"),
    ],
)
def test_ecma_262(pattern, yes, no):
    language = Language(parse(pattern, search=True))
    for letter in yes:
        assert language.match(letter.encode())[1], letter
    for letter in no:
        assert not language.match(letter.encode())[1], letter


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        ("a)", "position 1"),
        ("x(a", "position 1"),
        ("[a", "position 0"),
        ("*a", "nothing to repeat"),
        ("a**", "nothing to repeat"),
        ("a{2,1}", "wrong way round"),
        ("[b-a]", "before it begins"),
        ("a\\", "backslash"),
        (r"\xZ1", "hexadecimal"),
        (r"\u12", "hexadecimal"),
        (r"\u{110000}", "beyond"),
        (r"(a)\1", "backreference"),
        (r"\k<a>", "backreference"),
        (r"\bword", "word boundary"),
        (r"(?<=a)b", "lookbehind"),
        (r"(?<!a)b", "lookbehind"),
        (r"((?!a).)*b", "lookahead that is repeated"),
        (r"(?!^a)b", "negative lookahead"),
        (r"(?i)a", "'(?i'"),
        (r"(?>a)", "'(?>'"),
        (r"\Aa\Z", r"'\A'"),
        (r"a\z", r"'\z'"),
        ("[[:alpha:]]", "POSIX"),
        (r"\p{Script=Greek}", "general categories"),
        (r"\p{", "braces"),
        ("(" * 200 + ")" * 200, "deep"),
        ("a{1000000000}", "repetitions"),
    ],
)
def test_refusals_name_what_is_wrong(pattern, why):
    with pytest.raises(GrammarError, match=re.escape(why)):
        parse(pattern, search=True)


HOSTILE = ["(a*)*b", "(a|a)*b", "^(a+)+$", "((a?){1000}){1000}", "(x{1000}){1000}", "a" * 100_000, "[^a]a.{25}"]


def wrapped(pattern, before, after, times):
    return before * times + pattern + after * times


@pytest.mark.parametrize(
    "pattern",
    [
        *HOSTILE,
        "(a|b)" * 2000,
        "^|" * 20_000,
        "(^a|b$)*" * 100,
        "(^|a){60}$" * 30,
        wrapped("^a|b", "(?:", "){64}", 6),
        wrapped("(?=a)|b", "(?:(?=a)|b)(?=", ")", 40),
        "(?:^a?|b?$|c?)" * 60,
        "(?!ab)c" * 30_000,
        "[" + "[:" * 300_000,
        "[" + "[:a" * 300_000 + "]",
        r"\p{L}" * 20_000,
        "a?" * 300_000,
    ],
    ids=lambda pattern: pattern[:20],
)
def test_hostile_patterns_end_in_time(pattern):
    start, limits = time.perf_counter(), Limits(seconds=1.0)
    try:
        Language(parse(pattern, search=True, limits=limits), limits=limits)
    except GrammarError:
        pass
    assert time.perf_counter() - start < 2.5


@given(st.text("ab()[]{}^$|?*+.\\,1-:=!<>pux", max_size=12))
def test_any_text_is_a_pattern_or_refused(pattern):
    try:
        parse(pattern, search=True)
    except GrammarError as refused:
        assert refused.part == "pattern" and refused.where
