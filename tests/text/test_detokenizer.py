"""Whatever way tokens arrive, the text is that of decoding them all at once, cut before the first stop string."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.text.worlds import KINDS, TEXT

from hasten.engine.models.config import ModelError
from hasten.engine.text import Detokenizer, Tokenizer
from hasten.engine.text.pieces import read_decoder

ALPHABET = st.characters(codec="utf-8") | st.sampled_from("  \ndogthe好👍🏽é")
TEXTS = st.text(ALPHABET, max_size=30) | st.sampled_from(TEXT).map(lambda t: t[:40])
FEW = settings(max_examples=60)


def tokenizer(kind: str) -> Tokenizer:
    return Tokenizer(KINDS[kind]())


def cut(tokens: list[int], at: list[int]) -> list[list[int]]:
    edges = [0, *sorted({min(i, len(tokens)) for i in at}), len(tokens)]
    return [tokens[a:b] for a, b in pairwise(edges)]


def run(detokenizer: Detokenizer, parts: list[list[int]]) -> str:
    return "".join([detokenizer.push(part) for part in parts]) + detokenizer.flush()


CUTS = st.lists(st.integers(0, 60), max_size=12)


@pytest.mark.parametrize("kind", KINDS)
@FEW
@given(text=TEXTS, cuts=CUTS, skip=st.booleans())
def test_any_cut_gives_the_whole_text(kind: str, text: str, cuts: list[int], skip: bool) -> None:
    its = tokenizer(kind)
    tokens = its.encode(text)
    assert run(Detokenizer(its, skip_special=skip), cut(tokens, cuts)) == its.decode(tokens, skip)


@FEW
@given(raw=st.lists(st.integers(0, 370), max_size=40), cuts=CUTS, skip=st.booleans())
def test_any_tokens_at_all_byte_level(raw: list[int], cuts: list[int], skip: bool) -> None:
    """Also bytes that are no UTF-8, special tokens anywhere and ids beyond the vocabulary."""
    its = tokenizer("byte-level")
    whole = its.decode(raw, skip)
    known = b"".join(its.pieces(i) for i in raw if not (skip and i in its.pieces.special))
    assert known.decode(errors="replace") == whole
    expected = whole.removesuffix("\ufffd") if ends_incomplete(known) else whole
    assert run(Detokenizer(its, skip_special=skip), cut(raw, cuts)) == expected


def ends_incomplete(raw: bytes) -> bool:
    """Some one to three further bytes would make the end a character."""
    more = [first + b"\x80" * count for first in (b"\x80", b"\x90", b"\xa0") for count in range(3)]
    return any(is_character(raw[-length:] + rest) for length in (1, 2, 3) for rest in more)


def is_character(raw: bytes) -> bool:
    try:
        return len(raw.decode()) == 1
    except UnicodeDecodeError:
        return False


@pytest.mark.parametrize("kind", ["sentencepiece", "metaspace"])
@FEW
@given(raw=st.lists(st.integers(0, 380), max_size=40), cuts=CUTS)
def test_any_tokens_at_all_do_not_depend_on_the_cut(kind: str, raw: list[int], cuts: list[int]) -> None:
    its = tokenizer(kind)
    assert run(Detokenizer(its), cut(raw, cuts)) == run(Detokenizer(its), [raw])


@pytest.mark.parametrize("kind", ["byte-level", "sentencepiece", "metaspace"])
@FEW
@given(text=TEXTS, cuts=CUTS, data=st.data())
def test_stop_strings_cut_the_text(kind: str, text: str, cuts: list[int], data: st.DataObject) -> None:
    its = tokenizer(kind)
    tokens = its.encode(text, add_special_tokens=False)
    whole = its.decode(tokens)
    pieces = st.tuples(st.integers(0, 40), st.integers(1, 6)).map(lambda p: whole[p[0] : p[0] + p[1]])
    stops = tuple(s for s in data.draw(st.lists(pieces | st.text(ALPHABET, min_size=1, max_size=3), max_size=3)) if s)
    detokenizer = Detokenizer(its, stops)
    got = run(detokenizer, cut(tokens, cuts))
    found = [s for s in stops if s in whole]
    if not found:
        assert (got, detokenizer.stopped, detokenizer.tokens_used) == (whole, None, len(tokens))
        return
    used = detokenizer.tokens_used
    assert detokenizer.stopped in found
    assert got + detokenizer.stopped == whole[: len(got + detokenizer.stopped)]
    assert not any(s in got for s in stops)
    # The token that completed it, and none before: text of fewer tokens holds no stop string.
    before, upto = text_of(its, tokens[: used - 1]), text_of(its, tokens[:used])
    assert not any(s in before for s in stops)
    assert detokenizer.stopped in upto
    assert detokenizer.push(tokens) == "" and detokenizer.tokens_used == used


def text_of(its: Tokenizer, tokens: list[int]) -> str:
    return run(Detokenizer(its), [tokens])


def test_nothing_broken_is_shown_and_characters_come_when_they_are_whole() -> None:
    its = tokenizer("byte-level")
    thumb = [its._tokenizer.token_to_id(c) for c in bytes_as_letters("👍")]
    detokenizer = Detokenizer(its)
    assert [detokenizer.push([t]) for t in thumb] == ["", "", "", "👍"]
    assert detokenizer.push(thumb[:2]) == ""
    assert detokenizer.flush() == ""


def bytes_as_letters(text: str) -> list[str]:
    from hasten.engine.text.pieces import _BYTE_OF

    letters = {byte: letter for letter, byte in _BYTE_OF.items()}
    return [letters[byte] for byte in text.encode()]


def test_a_possible_stop_string_is_held_back_no_longer_than_needed() -> None:
    its = Tokenizer.of_bytes()
    detokenizer = Detokenizer(its, ("STOP", "TOAST"))
    given = [detokenizer.push(its.encode(letter)) for letter in "ASTO STOP!"]
    assert given == ["A", "", "", "", "STO ", "", "", "", "", ""]
    assert detokenizer.stopped == "STOP" and detokenizer.tokens_used == 9
    rest = Detokenizer(its, ("STOP",))
    assert rest.push(its.encode("ask ST")) == "ask " and rest.flush() == "ST" and rest.stopped is None


def test_the_stop_string_completed_first_wins_however_tokens_come() -> None:
    its = Tokenizer.of_bytes()
    for parts in ([its.encode("xabcd")], [its.encode(c) for c in "xabcd"]):
        detokenizer = Detokenizer(its, ("abcd", "bc"))
        assert run(detokenizer, parts) == "xa" and detokenizer.stopped == "bc" and detokenizer.tokens_used == 4


def test_text_that_continues_keeps_the_space_at_its_start() -> None:
    its = tokenizer("sentencepiece")
    tokens = its.encode("the dog", add_special_tokens=False)
    assert Detokenizer(its).push(tokens) == "the dog"
    assert Detokenizer(its, continues=True).push(tokens) == " the dog"


def test_an_unknown_decoder_is_refused_by_name() -> None:
    with pytest.raises(ModelError, match="WordPiece is not supported"):
        read_decoder({"type": "WordPiece", "prefix": "##", "cleanup": True})
