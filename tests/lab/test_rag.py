"""Libraries of pieces and questions about them: what a question needs is in the prompt and nowhere else."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.engine.config import EngineConfig
from hasten.engine.text import Tokenizer, load_text
from hasten.lab.bench.rag import KINDS, Library, Question, library, retrieved, shuffled, zipf
from hasten.lab.testbed.material import Material

TOKENIZER: Tokenizer = load_text(EngineConfig().model)[0]


def encode(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False)


MATERIAL = Material(lambda text: len(encode(text)))


def text_of(books: Library, pieces: tuple[int, ...]) -> str:
    return "".join(TOKENIZER.decode(books.pieces[number]) for number in pieces)


def key_of(question: Question) -> str:
    """Keys are two words, and every question ends with its own."""
    return " ".join(question.text.rstrip(".?").split()[-2:])


def make(seed: int, **shape: int) -> Library:
    return library(encode, MATERIAL, seed, **{"pieces": 12, "tokens": 96, "facts": 2, "cut": 4, "links": 3, **shape})


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10**6))
def test_what_is_asked_stands_where_it_is_said_to(seed: int) -> None:
    books = make(seed)
    assert {len(piece) for piece in books.pieces} == {96}
    assert sorted(piece for text in books.texts for piece in text) == list(range(12))
    kinds = [question.kind for question in books.questions]
    assert [kinds.count(kind) for kind in KINDS] == [24, 4, 3]
    for question in books.questions:
        assert question.expected in text_of(books, question.pieces)
        if question.kind == "own":
            assert key_of(question) in text_of(books, question.pieces)
        if question.kind == "cut":
            assert question.pieces in books.texts and len(question.pieces) == 2
        if question.kind == "linked":
            one, other = ({number for text in books.texts if piece in text for number in text} for piece in question.pieces)
            assert not one & other, "a link is between two texts"


def test_a_cut_goes_through_the_fact_between_its_key_and_its_value() -> None:
    for seed in range(8):
        books = make(seed, pieces=8, cut=4, links=0, facts=0)
        for question in books.questions:
            first, second = (text_of(books, (number,)) for number in question.pieces)
            whole = (first + second).replace("\n", " ")
            at = whole.index(key_of(question))
            assert at < len(first) < whole.index(question.expected, at) + len(question.expected), (question, first[-60:])
            assert first + second == TOKENIZER.decode(encode(first) + encode(second))


def test_the_seed_decides_everything() -> None:
    one, other, unlike = make(3), make(3), make(4)
    assert one == other != unlike
    weights = zipf(len(one.texts), 1.0, 0)
    assert retrieved(one, weights, 5, questions=3) == retrieved(other, weights, 5, questions=3)
    assert retrieved(one, weights, 5) != retrieved(one, weights, 6)


BOOKS = make(1, pieces=14, cut=5)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 14), st.integers(1, 4))
def test_retrieved_pieces_hold_the_answers(seed: int, pieces: int, questions: int) -> None:
    books = BOOKS
    query = retrieved(books, zipf(len(books.texts), 1.0, seed), seed, pieces=pieces, questions=questions)
    assert len(query.pieces) == len(set(query.pieces)) == pieces
    assert 1 <= len(query.questions) <= questions and len(set(query.questions)) == len(query.questions)
    for question in query.questions:
        assert set(question.pieces) <= set(query.pieces)
        if question.kind == "cut":
            first, second = question.pieces
            assert query.pieces.index(second) == query.pieces.index(first) + 1, "the cut is between neighbours"


def test_all_pieces_in_changing_order_and_every_kind_in_turn() -> None:
    queries = [shuffled(BOOKS, seed, 6) for seed in range(6)]
    assert len({query.pieces for query in queries}) == 6
    for query in queries:
        assert sorted(query.pieces) == list(range(14))
        kinds = [question.kind for question in query.questions]
        assert sorted(kinds) == sorted(2 * list(KINDS)) and kinds[:3] == kinds[3:]


def test_zipf_is_skewed_as_it_says() -> None:
    weights = zipf(100, 1.0, 0)
    assert sorted(weights, reverse=True) == [1 / rank for rank in range(1, 101)]
    assert weights != sorted(weights, reverse=True) and zipf(100, 0.0, 0) == [1.0] * 100
    wanted = [0] * 100
    books = make(2, pieces=100, cut=0, links=0)
    for seed in range(300):
        for piece in retrieved(books, weights, seed, pieces=3).pieces:
            wanted[piece] += 1
    top = max(range(100), key=weights.__getitem__)
    assert wanted[top] == max(wanted) > 100


def test_prompts_mark_the_pieces_and_answers_are_scored_as_the_tasks_do() -> None:
    books = BOOKS
    for kind in KINDS:
        question = next(one for one in books.questions if one.kind == kind)
        first, *middle, last = books.prompt((3, 0), question)
        assert [segment.content for segment in middle] == [books.pieces[3], books.pieces[0]]
        assert [segment.cache for segment in (first, *middle, last)] == [False, True, True, False]
        assert ("Think" in str(first.content)) == (kind == "linked") and question.text in str(last.content)
        said = f"<think>\nSo a = b\n</think>\n\n{question.expected}" if kind == "linked" else f"The key is {question.expected}"
        assert question.right(said) and question.right(said + ".") and not question.right(said + "9") and not question.right("")


@pytest.mark.parametrize(
    ("shape", "why"),
    [({"cut": 7}, "do not fit"), ({"links": 5}, "do not fit"), ({"facts": 9, "tokens": 64}, "statements do not fit")],
)
def test_what_does_not_fit_is_refused(shape: dict[str, int], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        make(0, **shape)
