"""What the claims about drafting do between their measurements: who answers when, and when tokens count as equal."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from hasten.lab.claims import drafting, prompt_lookup, suffix_tree
from hasten.lab.claims.drafting import OFF, in_turns, questions, same_tokens, teach
from hasten.lab.testbed.material import Material


@pytest.fixture(scope="module", autouse=True)
def few_texts() -> Iterator[None]:
    """Questions that need no text do not wait for all there is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drafting, "_texts", lambda: Material(lambda text: len(text) // 4))
        yield


@pytest.fixture(scope="module")
def asked(few_texts: None) -> list[Any]:
    return questions("calls", 2, 0)


def test_questions_are_of_their_application_and_seed(asked: list[Any]) -> None:
    assert {one.app.application for one in asked} == {"calls"} and len({one.id for one in asked}) == 2
    assert [one.prompt.tolist() for one in questions("calls", 2, 0)] == [one.prompt.tolist() for one in asked]
    assert questions("calls", 1, 1)[0].prompt.tolist() != asked[0].prompt.tolist()


def test_what_was_taught_is_drafted_and_steps_are_counted(asked: list[Any]) -> None:
    engines = {side.name: drafting.built(side) for side in (OFF, suffix_tree.ON)}
    for engine in engines.values():
        teach(engine, asked)
    times = in_turns(engines, [asked], lambda what, done: None)
    for engine in engines.values():
        engine.engine.executor.close()
    assert times["off"].tokens == [1.0] and times["off"].drafted == 0
    assert times["suffix-tree"].tokens[0] > 2 and times["suffix-tree"].accepted > 10
    assert all(len(found.seconds) == 1 and found.seconds[0] > 0 for found in times.values())


def test_unequal_tokens_are_told(asked: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    guard = same_tokens(prompt_lookup.ON, [replace(one, id=f"{one.id}-{i}") for i in range(6) for one in asked])
    assert "0 of " in guard.detail and guard.held
    monkeypatch.setattr("hasten.engine.speculate.accept", lambda span, drawn, first: ([0], [0, 1]) if span.draft else ([], [0]))
    assert not same_tokens(prompt_lookup.ON, asked).held
