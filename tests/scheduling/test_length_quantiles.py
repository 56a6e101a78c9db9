"""The quantile model: what its features tell apart, and that its conditional tail is a distribution."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from tests.scheduling.learning import ask, make

from hasten.engine.scheduling.length_quantiles import lengths
from hasten.engine.scheduling.lengths.survival import LEVELS


def test_output_may_follow_the_prompts_length() -> None:
    random = np.random.default_rng(0)
    predictor = make("length-quantiles")
    for number in range(4000):
        prompt = int(np.exp(random.uniform(2, 7)))
        predictor.observe(ask(str(number), prompt=prompt), max(1, int(prompt * random.uniform(0.4, 0.6))), ended=True)
    for prompt in (20, 150, 900):
        found = predictor.predict(ask("new", prompt=prompt), 0)
        assert found is not None
        assert 0.3 * prompt < np.median(found) < 0.75 * prompt


def test_tenants_limits_and_words_may_tell_too() -> None:
    random = np.random.default_rng(1)
    predictor = make("length-quantiles")

    def asked(number: int) -> dict[str, object]:
        words = random.integers(0, 15, 20) + (15 if number % 2 else 0)
        return {"tenant": f"t{number // 2 % 2}", "limit": 100 if number // 4 % 2 else 4000, "prompt": words}

    def length(number: int) -> int:
        return 10 * (1 + number % 2) * (1 + 3 * (number // 2 % 2)) * (1 if number // 4 % 2 else 5)

    for number in range(8000):
        predictor.observe(ask(str(number), **asked(number)), length(number), ended=True)  # type: ignore[arg-type]
    for number in range(8):
        found = predictor.predict(ask(f"new{number}", **asked(number)), 0)  # type: ignore[arg-type]
        assert found is not None
        assert 0.7 * length(number) < np.median(found) < 1.4 * length(number), number


@given(
    st.lists(st.floats(0, 9), min_size=len(LEVELS), max_size=len(LEVELS)),
    st.integers(0, 20_000),
)
def test_lengths_ascend_beyond_what_was_produced(quantiles: list[float], passed: int) -> None:
    found = lengths(np.array(quantiles), passed)
    assert (np.diff(found) >= 0).all() and (found > passed).all() and np.isfinite(found).all()


def test_conditioning_is_that_of_the_distribution() -> None:
    random = np.random.default_rng(2)
    sample = random.lognormal(5, 1, 200_000)
    quantiles = np.log(np.quantile(sample, LEVELS))
    for passed in (0, 30, 150, 400):
        expected = np.quantile(sample[sample > passed], LEVELS)
        assert np.abs(np.log(lengths(quantiles, passed)[:-2] / expected[:-2])).max() < 0.12, passed
    beyond = lengths(quantiles, 3000)
    assert 3000 < np.median(beyond) < 9000
