"""Distributions of lengths from outputs that ended and outputs that were cut short, against naive counting."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.engine.scheduling.lengths.survival import BINS, LEVELS, LOWER, UPPER, Counts, bin_of, lengths


def weights(ended: list[int], cut: list[int] = []) -> np.ndarray:  # noqa: B006
    counts = Counts(1e12)
    for length in ended:
        counts.add(length, ended=True)
    for length in cut:
        counts.add(length, ended=False)
    return counts.weights()


def test_bins_are_single_tokens_first_and_leave_nothing_out() -> None:
    assert [bin_of(n) for n in range(1, 17)] == list(range(16))
    assert (LOWER[1:] == UPPER[:-1]).all() and (UPPER > LOWER).all()
    for length in (1, 17, 100, 5000, 10**6):
        place = bin_of(length)
        assert LOWER[place] < length <= UPPER[place]
    assert bin_of(10**9) == BINS - 1


@settings(max_examples=200)
@given(
    ended=st.lists(st.integers(1, 3000), min_size=1, max_size=40),
    cut=st.lists(st.integers(1, 3000), max_size=20),
    passed=st.integers(0, 2500),
)
def test_lengths_ascend_beyond_what_was_produced(ended: list[int], cut: list[int], passed: int) -> None:
    found = lengths(weights(ended, cut), passed)
    assert found.shape == LEVELS.shape and (np.diff(found) >= 0).all()
    assert (found > passed).all() and np.isfinite(found).all() and (found == np.rint(found)).all()


def survival(weights: np.ndarray, passed: int, length: int) -> float:
    """The share of outputs longer than `passed` that are longer than `length`, bin by bin."""
    share = 1.0
    for place in range(bin_of(passed + 1), BINS):
        low, high = max(int(LOWER[place]), passed), int(UPPER[place])
        if length <= low:
            break
        part = (high - low) / (UPPER[place] - LOWER[place])
        ended, cut = weights[0, place] * part, weights[1, place] * part
        risk = ended + cut / 2 + weights[:, place + 1 :].sum()
        if risk > 0:
            share *= 1 - ended / risk * (min(length, high) - low) / (high - low)
    return share


@settings(max_examples=60)
@given(
    ended=st.lists(st.integers(1, 600), min_size=1, max_size=30),
    cut=st.lists(st.integers(1, 600), max_size=15),
    passed=st.integers(0, 500),
)
def test_lengths_are_quantiles_of_the_product_limit_estimate(ended: list[int], cut: list[int], passed: int) -> None:
    counted = weights(ended, cut)
    last = int(UPPER[bin_of(max([*ended, *cut]))])
    for level, found in zip(LEVELS, lengths(counted, passed), strict=True):
        if found > last:  # beyond all that is known
            assert survival(counted, passed, last) >= 1 - level - 1e-6
            continue
        assert survival(counted, passed, int(found)) <= 1 - level + 1e-6
        assert survival(counted, passed, int(found) - 1) >= 1 - level - 1e-6


def test_cut_outputs_count_as_longer_and_dropping_them_would_not() -> None:
    random = np.random.default_rng(0)
    true = random.geometric(0.005, 20000)
    limits = random.geometric(0.005, 20000)
    ended, cut = true[true <= limits].tolist(), limits[true > limits].tolist()
    found, dropped = np.median(lengths(weights(ended, cut), 0)), np.median(lengths(weights(ended), 0))
    assert found == pytest.approx(np.median(true), rel=0.07)
    assert dropped < 0.7 * np.median(true)


def test_where_nobody_is_known_to_have_ended_it_goes_on() -> None:
    found = lengths(weights([10] * 50), 400)
    assert found.min() > 400 and 500 < np.median(found) < 800
    mostly_cut = lengths(weights([5], [300] * 99), 0)
    assert np.median(mostly_cut) > 300


def test_old_lengths_fade() -> None:
    counts = Counts(half_life=50)
    for _ in range(500):
        counts.add(10, ended=True)
    assert counts.total == pytest.approx(50 / np.log(2), rel=0.02)
    for _ in range(50):
        counts.add(1000, ended=True)
    found = lengths(counts.weights(), 0)
    assert (found < 20).mean() == pytest.approx(0.5, abs=0.05)
    for _ in range(20000):  # weights grow past what floats should hold, and are taken back
        counts.add(1000, ended=True)
    assert np.isfinite(counts.weights()).all() and lengths(counts.weights(), 0).min() > 900
