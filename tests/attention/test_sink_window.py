"""Sink and window: which keys are kept, and bad knobs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tests.attention import naive

from hasten.engine.attention.budgeted import Budget
from hasten.engine.attention.sink_window import Options, gone, make

CONTEXT: Any = SimpleNamespace(model=SimpleNamespace(max_length=64))


@pytest.mark.parametrize("sinks", [0, 1, 4, 20])
@pytest.mark.parametrize("budget", [Budget(), Budget(share=0.3), Budget(share=1.0), Budget(tokens=24)])
def test_keys_are_kept_as_the_definition_says(budget: Budget, sinks: int) -> None:
    sizes = budget.sizes(150, sinks + 1)
    until = gone(sizes, sinks)
    for query in range(150):
        want = naive.sink_window(query, int(sizes[query]), sinks)
        assert set(np.flatnonzero(query < until[: query + 1]).tolist()) == want
        assert len(want) == min(query + 1, sizes[query]), "the budget is used to the last key"


def test_a_share_is_of_the_context_so_far_or_of_the_prompt() -> None:
    sizes = Budget(share=0.25).sizes(400, 5)
    assert sizes[[0, 63, 64, 399]].tolist() == [16, 16, 17, 100]
    assert set(np.diff(sizes).tolist()) == {0, 1}
    assert set(Budget(share=0.25).sizes(400, 5, context=200).tolist()) == {50}
    assert set(Budget(tokens=9).sizes(400, 5).tolist()) == {9}


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({"share": 0.0}, r"share must lie in \(0, 1\], got 0"),
        ({"share": 1.5}, r"share must lie in \(0, 1\], got 1.5"),
        ({"share": float("nan")}, r"share must lie in"),
        ({"sinks": -1}, "sinks must be at least 0, got -1"),
        ({"tokens": 4}, "tokens must be 0 .* or at least 5 here, got 4"),
        ({"tokens": -3}, "tokens must be 0 .* got -3"),
    ],
)
def test_bad_knobs_are_refused(knobs: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=f"sink-window: {said}"):
        make(CONTEXT, Options(**knobs))
