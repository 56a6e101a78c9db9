"""How much of a target's answers a draft would have proposed."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from tests.engine import tiny
from tests.lab.test_evaluate import MATERIAL, SETTINGS, Letters, Weighed

from hasten import LLM, SamplingParams
from hasten.lab.testbed.acceptance import ACCEPTED, acceptance


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    return LLM(tiny.folder(tmp_path_factory.mktemp("target"), eos_token_id=3), set_=SETTINGS)


@pytest.fixture(scope="module")
def draft(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    return LLM(tiny.folder(tmp_path_factory.mktemp("draft"), eos_token_id=3, num_hidden_layers=1), set_=SETTINGS)


def test_a_model_accepts_itself(target: LLM) -> None:
    scores = acceptance(target, target, [Letters(), Weighed()], 4, material=MATERIAL)
    for task in scores.tasks:
        assert task.estimates[ACCEPTED].value == 1.0
        assert task.output_tokens == sum(outcome.weight for outcome in task.outcomes) > 0


def test_shares_are_those_of_drafting_token_by_token(target: LLM, draft: LLM) -> None:
    found = acceptance(target, draft, [Letters()], 4, material=MATERIAL).tasks[0]
    right, total = 0, 0
    for i in range(4):
        example = Letters().example(random.Random(f"0/letters/{i}"), "held-out", MATERIAL)
        greedy = SamplingParams(max_tokens=example.max_tokens, temperature=0)
        ids = target.tokenizer.encode(example.prompt, add_special_tokens=False)
        for token in target.generate([ids], greedy)[0].choices[0].tokens:
            one = draft.generate([ids], SamplingParams(max_tokens=1, temperature=0))[0].choices[0].tokens[0]
            right, total, ids = right + (one == token), total + 1, [*ids, token]
    assert found.estimates[ACCEPTED].value == pytest.approx(right / total)
    assert sum(outcome.weight for outcome in found.outcomes) == total


def test_other_tokenizers_are_refused(target: LLM, tmp_path: Path) -> None:
    from tests.text import worlds

    folder = tiny.folder(tmp_path / "model", vocab_size=worlds.byte_level().get_vocab_size())
    worlds.byte_level().save(str(tmp_path / "model" / "tokenizer.json"))
    with pytest.raises(ValueError, match="different tokenizers"):
        acceptance(target, LLM(folder, set_=SETTINGS), [Letters()], 2, material=MATERIAL)
