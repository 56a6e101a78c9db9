"""Fits the cost model to measured steps: least squares of the relative error, with every term at least zero."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hasten.engine.executors.cost import CostModel
from hasten.lab.planning.steps import Floats


@dataclass(frozen=True, slots=True)
class Fit:
    """`median_error`, `p95_error`: of single steps, absolute and relative; `bias`: predicted over measured seconds of all steps
    together, less 1. All count every one of the `steps` measured, the disturbed ones that the fit left out too."""

    costs: CostModel
    steps: int
    median_error: float
    p95_error: float
    bias: float


def knots_for(tokens: Floats) -> list[int]:
    """Where the broken line may bend: powers of two, as far as there are steps on both sides of them, and its ends."""
    low, high = max(1, int(tokens.min())), int(tokens.max())
    inner = [k for k in (2**i for i in range(1, 24)) if low < k < high]
    kept = [low]
    for knot in inner:
        if ((tokens > kept[-1]) & (tokens <= knot)).sum() >= 3 and (tokens >= knot).sum() >= 3:
            kept.append(knot)
    return [*kept, max(high, kept[-1] + 1)]


def _hats(tokens: Floats, knots: Sequence[int]) -> Floats:
    """[n, knots]: the weight of each knot in the broken line at each number of tokens."""
    return np.stack([np.interp(tokens, knots, row) for row in np.eye(len(knots))], axis=1)


def fit(shapes: Floats, seconds: Floats, *, copy_s: float = 0.0, copy_token_s: float = 0.0) -> Fit:
    """The cost model of steps of `shapes` [n, 5] that took `seconds` [n]. Raises ValueError for fewer than 20 steps.

    Steps that were disturbed (more than three times what the fit says) are left out and the rest fitted again."""
    if len(seconds) < 20:
        raise ValueError(f"at least 20 steps are needed to fit the cost model, got {len(seconds)}")
    from scipy.optimize import nnls

    keep = np.ones(len(seconds), dtype=bool)
    knots = knots_for(shapes[:, 0])
    terms = np.hstack([_hats(shapes[:, 0], knots), shapes[:, 1:]])
    for _ in range(3):
        relative = terms[keep] / seconds[keep, None]
        scale = np.maximum(np.abs(relative).max(axis=0), 1e-300)
        weights, _ = nnls(relative / scale, np.ones(int(keep.sum())), maxiter=100 * terms.shape[1])
        weights = weights / scale
        disturbed = seconds > 3 * (terms @ weights)
        if not (disturbed & keep).any():
            break
        keep = ~disturbed
    row_s, head_s, cached_s, pair_s = weights[len(knots) :].tolist()
    costs = CostModel(
        knots=tuple(knots),
        knot_s=tuple(weights[: len(knots)].tolist()),
        row_s=row_s,
        head_s=head_s,
        cached_s=cached_s,
        pair_s=pair_s,
        copy_s=copy_s,
        copy_token_s=copy_token_s,
    )
    return Fit(costs, len(seconds), *errors(costs, shapes, seconds))


def predict(costs: CostModel, shapes: Floats) -> Floats:
    """Seconds float64 [n] that the model says of `shapes` [n, 5]."""
    alone = np.array([costs.tokens(int(t)) for t in shapes[:, 0]])
    return alone + shapes[:, 1:] @ np.array([costs.row_s, costs.head_s, costs.cached_s, costs.pair_s])


def errors(costs: CostModel, shapes: Floats, seconds: Floats) -> tuple[float, float, float]:
    """(median, 95th percentile) of the absolute relative error of single steps, and the relative error of their sum."""
    predicted = predict(costs, shapes)
    relative = np.abs(predicted / seconds - 1)
    return float(np.median(relative)), float(np.percentile(relative, 95)), float(predicted.sum() / seconds.sum() - 1)
