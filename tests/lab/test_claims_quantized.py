"""What the claims of quantised weights measure: perplexity from bits a byte, and steps in turns."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from tests.engine import tiny

from hasten.lab.claims import int4, int8, quantized
from hasten.lab.claims.quality import PLAIN
from hasten.lab.claims.sides import Side


def test_perplexity_is_that_of_a_token() -> None:
    """Two texts of 10 and 30 bytes, 5 and 9 tokens of which the first is given, at 1 and 2 bits a byte; and a third one."""

    def task(bits: list[float], weights: list[float], tokens: int) -> SimpleNamespace:
        return SimpleNamespace(
            values=lambda metric: np.array(bits),
            weights=lambda: np.array(weights),
            prompt_tokens=tokens,
            outcomes=[None] * len(bits),
        )

    scores = SimpleNamespace(tasks=[task([1.0, 2.0], [10, 30], 14), task([0.5], [20], 11)])
    assert quantized._perplexity(scores) == pytest.approx(2 ** ((10 + 60 + 10) / (12 + 10)))


def test_changes_are_per_cent_of_the_plain_engine_round_by_round() -> None:
    found = quantized.Perplexities({"plain": [10.0, 20.0], "a": [10.1, 19.0], "b": [5.0, 20.0]})
    assert found.risen(Side("a")) == pytest.approx([1.0, -5.0])
    assert found.risen(PLAIN, Side("b")) == pytest.approx([100.0, 0.0])


def test_steps_are_timed_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantized, "SHAPE", {**tiny.CONFIG, "tie_word_embeddings": True})
    monkeypatch.setattr(
        quantized, "SPEED_SETTINGS", ("model.load_format=dummy", "model.dtype=float32", "kv.memory_bytes=8388608")
    )
    monkeypatch.setattr(quantized, "BATCHES", (1, 5))
    monkeypatch.setattr(quantized, "STEPS", {1: 3, 5: 2})
    stepped: list[tuple[int, int]] = []
    step = quantized._step

    def watched(engine: object) -> tuple[float, int]:
        seconds, tokens = step(engine)  # type: ignore[arg-type]
        stepped.append((id(engine), tokens))
        return seconds, tokens

    monkeypatch.setattr(quantized, "_step", watched)
    told: list[float] = []
    times = quantized.decode_times(Side("small", ("int8",)), rounds=2, progress=lambda what, share: told.append(share))
    assert told == sorted(told) and told[-1] <= 1
    assert set(times.seconds) == {1, 5} and all(len(of["small"]) == len(of["plain"]) == 2 for of in times.seconds.values())
    assert all(ratio > 0 for ratio in times.faster(Side("small"), 5)) and times.smaller(Side("small")) > 2
    dense, small = dict.fromkeys(engine for engine, _ in stepped)
    # The prompt and two steps of each, then turns: dense, small, small, dense, ...
    turns = [engine for engine, _ in stepped[6:18]]
    assert turns == [dense] * 3 + [small] * 6 + [dense] * 3
    assert [tokens for _, tokens in stepped[:6]] == [1] * 6
    assert "a step at batch 5: " in times.in_words(Side("small"))


@pytest.mark.parametrize("claim", [int8.CLAIM, int4.CLAIM])
def test_what_is_required_is_what_was_asked_for(claim: object) -> None:
    asked = {"int8": (0.5, 1.5, 1.4), "int4": (3.0, 2.2, 1.2)}[claim.name]  # type: ignore[attr-defined]
    of = {requirement.name: requirement for requirement in claim.requirements}  # type: ignore[attr-defined]
    assert (of["perplexity"].at_most, of["decode-1"].at_least, of["decode-32"].at_least) == asked
