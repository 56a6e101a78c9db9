"""Random eviction: which keys are kept, that chance is fair, and bad knobs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tests.attention import naive

from hasten.engine.attention.budgeted import Budget
from hasten.engine.attention.random_eviction import Options, gone, make

CONTEXT: Any = SimpleNamespace(model=SimpleNamespace(max_length=64))


@pytest.mark.parametrize(("recent", "seed"), [(1, 0), (8, 0), (8, 5), (20, 1)])
@pytest.mark.parametrize("budget", [Budget(), Budget(share=0.3), Budget(share=1.0), Budget(tokens=24)])
def test_keys_are_kept_as_a_cache_that_evicts_would(budget: Budget, recent: int, seed: int) -> None:
    sizes = budget.sizes(150, recent)
    until = gone(sizes, recent, seed)
    for query, want in enumerate(naive.random_eviction(sizes.tolist(), recent, seed)):
        assert set(np.flatnonzero(query < until[: query + 1]).tolist()) == want
        assert len(want) == min(query + 1, sizes[query]), "the budget is used to the last key"
        assert want >= set(range(max(0, query + 1 - recent), query + 1))


@pytest.mark.parametrize(("context", "fair_from"), [(512, 0), (None, 1)])
def test_every_part_of_the_context_has_the_same_chance(context: int | None, fair_from: int) -> None:
    length, draws = 512, 200
    sizes = Budget(share=0.25).sizes(length, 8, context)
    kept = np.mean([gone(sizes, 8, seed) == length for seed in range(draws)], axis=0)
    older = kept[:-8].reshape(4, -1).mean(axis=1)
    assert kept[-8:].all()
    np.testing.assert_allclose(older[fair_from:], (128 - 8) / (length - 8), atol=0.05)
    assert fair_from == 0 or older[0] < older[1:].min(), "a budget that grows has room for few of the first keys"


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({"share": -0.1}, r"share must lie in \(0, 1\], got -0.1"),
        ({"recent": 0}, "recent must be at least 1, the query's own key, got 0"),
        ({"tokens": 7}, "tokens must be 0 .* or at least 8 here, got 7"),
    ],
)
def test_bad_knobs_are_refused(knobs: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=f"random-eviction: {said}"):
        make(CONTEXT, Options(**knobs))
