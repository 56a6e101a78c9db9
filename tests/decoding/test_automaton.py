"""The automaton against a search through the texts themselves."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.engine.decoding import automaton as module
from hasten.engine.decoding.automaton import ROOT, SuffixAutomaton
from hasten.engine.decoding.prompt_lookup import Options, PromptLookup

TEXT = st.lists(st.integers(0, 2), max_size=40)


def grown(texts: list[list[int]]) -> tuple[SuffixAutomaton, list[int]]:
    """All the texts, and the state at the end of each."""
    made, ends = SuffixAutomaton(), []
    for text in texts:
        state = ROOT
        for token in text:
            state = made.append(state, token)
        ends.append(state)
    return made, ends


def followed(texts: list[list[int]], stretch: list[int]) -> list[int]:
    """What comes after each occurrence of a stretch, the latest last."""
    n = len(stretch)
    return [text[i + n] for text in texts for i in range(len(text) - n) if text[i : i + n] == stretch]


def longest(texts: list[list[int]], end: list[int]) -> list[int]:
    """The longest suffix of `end` that something follows somewhere."""
    return next((end[i:] for i in range(len(end)) if followed(texts, end[i:])), [])


def naive(texts: list[list[int]], end: list[int], shortest: int, most: int) -> list[int]:
    """The draft by its definition."""
    stretch, out = longest(texts, end), list[int]()
    most = min(most, len(stretch))
    while len(stretch) >= shortest and len(out) < most:
        out.append(followed(texts, stretch)[-1])
        stretch = longest(texts, [*stretch, out[-1]])
    return out


@pytest.fixture(autouse=True)
def every_level(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEVELS", 1000)


@settings(max_examples=300, deadline=None)
@given(texts=st.lists(TEXT, min_size=1, max_size=4), shortest=st.integers(1, 4), most=st.integers(1, 8))
def test_drafts_are_those_of_a_naive_search(texts: list[list[int]], shortest: int, most: int) -> None:
    made, ends = grown(texts)
    lookup = PromptLookup(Options(shortest=shortest, most=most))
    for text, state in zip(texts, ends, strict=True):
        assert lookup._after(made, state)[1] == naive(texts, text, shortest, most)


@settings(max_examples=200, deadline=None)
@given(texts=st.lists(TEXT, min_size=1, max_size=4), asked=TEXT)
def test_counts_and_matches_are_those_of_a_naive_search(texts: list[list[int]], asked: list[int]) -> None:
    made, _ = grown(texts)
    state, matched = ROOT, 0
    for count, token in enumerate(asked, 1):
        state, matched = made.follow(state, matched, token)
        assert matched == max(n for n in range(count + 1) if n == 0 or occurs(texts, asked[count - n : count]))
        if state != ROOT:
            check_branches(made, texts, state, asked[count - matched : count])


@settings(max_examples=200, deadline=None)
@given(first=TEXT, then=st.lists(TEXT, min_size=1, max_size=3), asked=TEXT, more=TEXT)
def test_what_was_matched_before_other_texts_came_still_is(
    first: list[int], then: list[list[int]], asked: list[int], more: list[int]
) -> None:
    made, _ = grown([first])
    state, matched = ROOT, 0
    for token in asked:
        state, matched = made.follow(state, matched, token)
    for text in then:
        end = ROOT
        for token in text:
            end = made.append(end, token)
    if state != ROOT:
        check_branches(made, [first, *then], made.now_of(state, matched), asked[len(asked) - matched :])
    for count, token in enumerate(more, 1):
        state, matched = made.follow(state, matched, token)
        if state != ROOT:
            check_branches(made, [first, *then], state, [*asked, *more[:count]][len(asked) + count - matched :])


def occurs(texts: list[list[int]], stretch: list[int]) -> bool:
    n = len(stretch)
    return any(text[i : i + n] == stretch for text in texts for i in range(len(text) - n + 1))


def check_branches(made: SuffixAutomaton, texts: list[list[int]], state: int, stretch: list[int]) -> None:
    after = followed(texts, stretch)
    shares = {token: share for token, _, share in made.branches(state)}
    assert shares == {token: pytest.approx(after.count(token) / len(after)) for token in after}


@settings(max_examples=100, deadline=None)
@given(text=st.lists(st.integers(0, 2), max_size=200))
def test_it_is_linear(text: list[int]) -> None:
    made, _ = grown([text])
    assert len(made) <= max(2, 2 * len(text))
    assert sum(map(len, made._next)) <= 3 * len(text) + 1


def test_texts_with_one_beginning_share_it() -> None:
    made, (end,) = grown([[1, 2, 3, 4]])
    size = len(made)
    assert grown([[1, 2, 3, 4], [1, 2, 3, 4]])[1] == [end, end]
    assert [made.append(end, 5), made.append(end, 5)] == [size, size], "two branches that say the same"
    assert made.latest(end)[0] == 5
    made.append(end, 6)
    assert made.latest(end)[0] == 6


def test_repeating_one_token_stays_cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEVELS", 16)
    made, (end,) = grown([[7] * 5000])
    assert len(made) == 5001
    assert PromptLookup(Options(shortest=3, most=8))._after(made, end)[1] == [7] * 8
