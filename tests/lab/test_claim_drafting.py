"""What the claims about drafting do between their measurements: who answers when, and when tokens count as equal."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from hasten.engine.events import Kind
from hasten.engine.request import Request, SamplingParams
from hasten.lab.claims import drafting, prompt_lookup, rewrites, suffix_tree
from hasten.lab.claims.drafting import OFF, in_turns, questions, same_tokens, teach
from hasten.lab.testbed.document import Document
from hasten.lab.testbed.material import Material


@pytest.fixture(scope="module", autouse=True)
def few_texts() -> Iterator[None]:
    """Questions that need no text do not wait for all there is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drafting, "texts", lambda: Material(lambda text: len(text) // 4))
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


def test_rewrites_repeat_their_prompt_but_for_one_place() -> None:
    source = "def f(a):\n    total = 0\n" + "    total = total + a\n" * 12 + "    return total\n"
    texts = Material(len, held_out=[Document("python", "m", source)])
    for seed in range(5):
        rng = random.Random(seed)
        code, records = rewrites.code_edit(rng, texts), rewrites.json_rewrite(rng)
        assert code.answer.count("total_of_") == 26 and "return total_of_" in code.answer and code.answer.startswith("def f")
        before = json.loads(records.prompt.split("```")[1].removeprefix("json"))
        after = json.loads(records.answer.split("```")[0])
        changed = [
            (old, new)
            for one, other in zip(before, after, strict=True)
            for old, new in zip(one.items(), other.items(), strict=True)
            if old != new
        ]
        assert len(changed) == 1 and changed[0][0][0] == changed[0][1][0], "another value under the same name"


def test_a_large_shape_says_what_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 32}
    monkeypatch.setattr(rewrites, "SERVED", {**rewrites.SERVED, **small, "num_key_value_heads": 1, "vocab_size": 20_000})
    one = rewrites.Rewrite(
        "one two three four five six seven eight nine ten. " * 3, "one two three four five six seven eight. " * 4
    )
    prompt, said = np.array(drafting.encode(one.prompt)), drafting.encode(one.answer)
    for side in (OFF, prompt_lookup.ON):
        engine = rewrites.dummy(side).engine
        voice = engine.decoding.sampler = rewrites.Dictated(engine.decoding.sampler)
        voice.text = said
        sampling = SamplingParams(max_tokens=len(said), temperature=0.0, ignore_eos=True)
        engine.add(Request(id="r", prompt=prompt, sampling=sampling))
        assert [token for delta in engine.run() for token in delta.tokens] == said
        assert (engine.events.counts[Kind.DRAFTED] > 0) == (side is not OFF)
        engine.executor.close()
    found = rewrites.large(prompt_lookup.ON, [{"counting": one}] * 2, drafting.encode, lambda what, done: None)
    off, on = found["counting"]["off"], found["counting"]["prompt-lookup"]
    assert off.tokens == [1.0, 1.0] and off.drafted == 0
    assert len(on.tokens) == 2 and min(on.tokens) > 2 and on.accepted > 20
